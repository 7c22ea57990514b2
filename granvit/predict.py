"""Ask a checkpoint about a picture: describe boxes, locate phrases, read text, caption the whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image

from granvit.coordinates import Box
from granvit.errors import GranvitError
from granvit.files import read_regular
from granvit.geometry import View, as_boxes, clip
from granvit.images import decode, upright_rgb
from granvit.loading.devices import pick_device
from granvit.loading.run_folder import checkpoint_of
from granvit.model.generate import LONGEST_BOX, LONGEST_CAPTION, LONGEST_DESCRIPTION, NonFiniteAnswer, greedy
from granvit.model.region_model import RegionModel
from granvit.questions import CAPTION2BBOX, ask_box, ask_caption, ask_global, parse_box

if TYPE_CHECKING:
    from granvit.evaluate.attention import QueryMaps

Picture = Image.Image | bytes | str | Path

# Tokens. What a question may have where the language model has more positions; attention takes its square in memory.
LONGEST_QUESTION = 4096
# Canvases that are encoded at once; a picture, or a window of one, is one or, in tiles, several.
_CANVASES = 64
# No picture within the limits of `images` needs a larger file.
_LARGEST_FILE = 1 << 30


@dataclass
class ImageQuestions:
    """Questions about one picture, in a view of it: the unit in which `GranViT.answer` works.

    `image` is EXIF-upright RGB; `questions` are plain text, or `Coded` where they hold a box; `name` is the picture's
    in errors.
    """

    image: Image.Image
    view: View
    questions: list[str]
    name: str = "the picture"


class GranViT:
    """A trained model, ready to be asked. Boxes are xyxy float pixels of the EXIF-upright picture.

    A picture is a path, the bytes of a file, or a PIL image, all converted alike (`images.upright_rgb`). Phrases are
    plain text, whatever control tokens they spell, and a text answer holds no location tokens: what a model puts there
    is left out.

    `rows` questions are answered at once; it bounds the memory of keys and values and changes no answer (in float32).

    All calls raise `GranvitError` where the model's numbers are not finite (its weights are damaged), a question is
    longer than the model can read, or a picture cannot be used (`ImageError`).
    """

    def __init__(self, model: RegionModel, rows: int = 256):
        if rows < 1:
            raise GranvitError(f"rows={rows}: at least one question is answered at a time")
        self.model = model
        self.rows = rows
        tokenizer = model.processor.tokenizer
        self._places = frozenset(tokenizer.convert_tokens_to_ids(model.codec.tokens))

    @classmethod
    def load(
        cls, folder: Path | str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> GranViT:
        """A checkpoint directory, or a run directory that holds one in `checkpoint/`.

        Raises:
            CheckpointError: the directory is no granvit checkpoint; the message names the file at fault.
            GranvitError: there is no such device here.
        """
        if isinstance(device, str):
            device = pick_device(device)
        return cls(RegionModel.load(checkpoint_of(folder), device, dtype))

    def describe(self, image: Picture, boxes: ArrayLike, normalized: bool = False) -> list[str]:
        """What each box (N, 4) holds; all boxes share one look at the picture.

        With `normalized` boxes are shares of the picture's width and height in place of pixels. Boxes partly outside
        are cut to the picture.

        Raises:
            GranvitError: a box is inverted, not finite, outside the picture, or no box of pixels.
        """
        picture = open_picture(image)
        view = self.model.view(picture.size)
        checked = checked_boxes(boxes, picture.size, normalized)
        ask = ImageQuestions(picture, view, self.box_questions(view, checked), name_of(image))
        return self._texts([ask], LONGEST_DESCRIPTION)[0]

    def read(self, image: Picture, boxes: ArrayLike, window: int | None = None, normalized: bool = False) -> list[str]:
        """The text in each box (N, 4), by the same question as `describe`, as in the paper.

        With `window` every box is read in a window of that side (pixels) around it, for text too small to be
        read in the whole picture; each window is then a look of its own.

        Raises:
            GranvitError: as `describe`.
        """
        if window is None:
            return self.describe(image, boxes, normalized)
        picture = open_picture(image)
        asks = []
        for box in checked_boxes(boxes, picture.size, normalized):
            view = self.model.window(box, picture.size, window)
            asks.append(ImageQuestions(picture, view, self.box_questions(view, box), name_of(image)))
        return [answers[0] for answers in self._texts(asks, LONGEST_DESCRIPTION)]

    def locate(self, image: Picture, phrases: Sequence[str]) -> list[Box | None]:
        """Where each phrase is, xyxy pixels of the picture, or None where the model's answer is no box.

        Raises:
            GranvitError: a phrase is empty, not valid Unicode, or longer than the model can read.
        """
        if isinstance(phrases, str):
            raise GranvitError("locate takes a list of phrases, not one string")
        for phrase in phrases:
            if not phrase.strip():
                raise GranvitError("an empty phrase cannot be located")
            if any("\ud800" <= c <= "\udfff" for c in phrase):
                raise GranvitError(f"the phrase {ascii(phrase[:80])} is not valid Unicode")
        picture = open_picture(image)
        view = self.model.view(picture.size)
        asks = [ImageQuestions(picture, view, [ask_box(p) for p in phrases], name_of(image))]
        return [self.to_pixels(answer, view) for answer in self.answer(asks, LONGEST_BOX)[0]]

    def caption(self, image: Picture) -> str:
        """One paragraph about the whole picture."""
        picture = open_picture(image)
        ask = ImageQuestions(picture, self.model.view(picture.size), [ask_global()], name_of(image))
        return self._texts([ask], LONGEST_CAPTION)[0][0]

    def attend(self, image: Picture, box: ArrayLike, normalized: bool = False) -> QueryMaps:
        """Where the encoder looks from a box, what is alike to it, and where each word of the model's answer looks.

        Raises:
            GranvitError: as `describe`.
        """
        # Below, not above: evaluation is built on prediction.
        from granvit.evaluate.attention import attend_box
        from granvit.evaluate.patch_encoder import PatchEncoder

        picture = open_picture(image)
        checked = checked_boxes(box, picture.size, normalized)[0]
        return attend_box(PatchEncoder.of(self.model, "encoder"), picture, checked)

    def box_questions(self, view: View, boxes: ArrayLike) -> list[str]:
        """Bbox2Caption for each box (N, 4) in image pixels."""
        relative = view.to_relative(boxes, self.model.settings.frame)
        return [ask_caption(box, self.model.codec) for box in relative]

    def to_pixels(self, answer: str, view: View) -> Box | None:
        """The box that an answer states, in image pixels, or None."""
        box = parse_box(answer, self.model.codec)
        if box is None:
            return None
        x1, y1, x2, y2 = view.from_relative(box, self.model.settings.frame)[0].tolist()
        return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None

    def answer(self, asks: Sequence[ImageQuestions], max_new_tokens: int) -> list[list[str]]:
        """Greedy answers to all questions as they are said, picture by picture.

        Raises:
            GranvitError: a question is longer than the model can read, or the model's numbers are not finite.
        """
        decode_row = self.model.dialog.decode
        return [[decode_row(row) for row in rows] for rows in self._tokens(asks, max_new_tokens)]

    def _texts(self, asks: Sequence[ImageQuestions], max_new_tokens: int) -> list[list[str]]:
        """As `answer`, without the location tokens that a text has no place for."""
        decode_row, places = self.model.dialog.decode, self._places
        return [
            [decode_row([token for token in row if token not in places]) for row in rows]
            for rows in self._tokens(asks, max_new_tokens)
        ]

    def _tokens(self, asks: Sequence[ImageQuestions], max_new_tokens: int) -> Iterator[list[list[int]]]:
        for chunk in _chunks(asks, self.rows):
            questions = [[self.tokens_of(question) for question in ask.questions] for ask in chunk]
            canvases, views = torch.cat([self.model.show(a.image, a.view) for a in chunk]), [a.view for a in chunk]
            try:
                yield from greedy(self.model, canvases, questions, max_new_tokens, self.rows, views)
            except NonFiniteAnswer as error:
                raise GranvitError(f"{chunk[error.image].name}: {error}") from error

    def tokens_of(self, question: str) -> list[int]:
        """A question's tokens with the template's.

        Raises:
            GranvitError: it is longer than the model can read, or not valid Unicode.
        """
        tokens = self.model.dialog.ask(question)
        prefix = len(self.model.dialog.prefix(self.model.tokens_of(self.model.largest_view)))
        positions = self.model.llava.config.text_config.max_position_embeddings - prefix
        most = min(LONGEST_QUESTION, positions)
        if len(tokens) > most:
            about = question.removeprefix(CAPTION2BBOX)[:60]
            raise GranvitError(f"{about!r}... makes a question of {len(tokens)} tokens, at most {most} are read")
        return tokens


def open_picture(image: Picture) -> Image.Image:
    """An EXIF-upright RGB picture from a path, the bytes of a file, or a PIL image: the same for all three.

    Raises:
        ImageError: the file is damaged or not a picture. OSError: it cannot be read.
        GranvitError: the path leads to no regular file, or cannot be one.
    """
    if isinstance(image, Image.Image):
        return upright_rgb(image)
    if isinstance(image, bytes):
        return decode(image)
    try:
        return decode(read_regular(Path(image), _LARGEST_FILE))
    except UnicodeEncodeError:
        raise GranvitError(f"{ascii(str(image))}: no file can have this name") from None


def name_of(image: Picture) -> str:
    """What errors call a picture: its path, where it is known."""
    if isinstance(image, Image.Image):
        return str(getattr(image, "filename", "") or "the picture")
    return "the picture" if isinstance(image, bytes) else str(image)


def checked_boxes(boxes: ArrayLike, size: tuple[int, int], normalized: bool = False) -> np.ndarray:
    """Boxes in pixels as (N, 4), cut to a picture of (width, height) pixels.

    With `normalized` they are given as shares of width and height.

    Raises:
        GranvitError: a box is inverted, not finite, outside the picture, or seems to be given in shares, all of its
            numbers being at most 1, where pixels are wanted.
    """
    try:
        array = as_boxes(boxes)
    except (TypeError, ValueError) as error:
        raise GranvitError(f"boxes are rows of four numbers: {error}") from error
    scale = np.array([*size, *size]) if normalized else np.ones(4)
    unit = "shares of the picture" if normalized else "pixels"
    for box in array:
        x1, y1, x2, y2 = box * scale
        if not np.isfinite(box).all() or not (x1 < x2 and y1 < y2):
            raise GranvitError(f"box {box.tolist()} is not x1 < x2, y1 < y2 ({unit})")
        if not normalized and box.max() <= 1:
            raise GranvitError(
                f"box {box.tolist()} holds one pixel at most: boxes are in pixels; "
                "for shares of the picture add --normalized (normalized=True)"
            )
        if x1 >= size[0] or y1 >= size[1] or x2 <= 0 or y2 <= 0:
            inside = "" if not normalized else ", as shares of it,"
            raise GranvitError(f"box {box.tolist()}{inside} lies outside the picture of {size[0]}x{size[1]} pixels")
    return clip(array * scale, *size)


def _chunks(asks: Sequence[ImageQuestions], rows: int) -> Iterator[list[ImageQuestions]]:
    """Images of at most `_CANVASES` together with at most `rows` questions; one with more makes a group of its own."""
    chunk: list[ImageQuestions] = []
    canvases = filled = 0
    for ask in asks:
        if chunk and (canvases + ask.view.count > _CANVASES or filled + len(ask.questions) > rows):
            yield chunk
            chunk, canvases, filled = [], 0, 0
        chunk.append(ask)
        canvases += ask.view.count
        filled += len(ask.questions)
    if chunk:
        yield chunk
