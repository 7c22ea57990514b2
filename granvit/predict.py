"""Ask a checkpoint about a picture: describe boxes, locate phrases, read text, caption the whole."""

from __future__ import annotations

import math
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
from granvit.geometry import View, as_boxes, clip
from granvit.images import Picture, open_picture
from granvit.loading.devices import pick_device
from granvit.loading.run_folder import checkpoint_of
from granvit.model.generate import (
    LONGEST_ANSWER,
    LONGEST_BOX,
    LONGEST_CAPTION,
    LONGEST_DESCRIPTION,
    NonFiniteAnswer,
    Said,
    greedy_answers,
)
from granvit.model.region_model import RegionModel
from granvit.questions import CAPTION2BBOX, ask_about, ask_box, ask_caption, ask_global, parse_box

if TYPE_CHECKING:
    from granvit.evaluate.attention import QueryMaps

# What errors call a picture that has no name.
UNNAMED = "the picture"

# Tokens. What a question may have where the language model has more positions; attention takes its square in memory.
LONGEST_QUESTION = 4096
# Canvases that are encoded at once; a picture, or a window of one, is one or, in tiles, several.
_CANVASES = 64


@dataclass
class ImageQuestions:
    """Questions about one picture, in a view of it: the unit in which `GranViT.answer` works.

    `image` is EXIF-upright RGB; `questions` are plain text, or `Coded` where they hold a box; `name` is the picture's
    in errors.
    """

    image: Image.Image
    view: View
    questions: list[str]
    name: str = UNNAMED


class Text(str):
    """What a model said, and how sure it was: a str like any other, with two attributes.

    Attributes:
        confidence: the mean probability, in [0, 1], that the model gave the tokens of this answer, its end among them
            where it ended by itself; of an answer that is a box in the checkpoint's codec, of the tokens with digits
            alone (each location token is one). It orders answers; whether it is as high as they are right, `granvit
            eval` measures.
        box: the box that it states, xyxy pixels of the picture, where boxes were looked for (`GranViT.ask`).
        cut: it did not end by itself, but at the most tokens that it could have.
    """

    confidence: float
    box: Box | None
    cut: bool

    def __new__(cls, text: str, confidence: float = math.nan, box: Box | None = None, cut: bool = False) -> Text:
        made = super().__new__(cls, text)
        made.confidence, made.box, made.cut = confidence, box, cut
        return made


class Place(tuple[float, float, float, float]):
    """A box that was found, (x1, y1, x2, y2) in pixels of the picture, with `confidence` as a `Text` has it."""

    confidence: float

    def __new__(cls, box: Box, confidence: float = math.nan) -> Place:
        made = super().__new__(cls, box)
        made.confidence = confidence
        return made


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

    def describe(self, image: Picture, boxes: ArrayLike, normalized: bool = False) -> list[Text]:
        """What each box (N, 4) holds; all boxes share one look at the picture.

        With `normalized` boxes are shares of the picture's width and height in place of pixels. Boxes partly outside
        are cut to the picture.

        Raises:
            GranvitError: a box is inverted, not finite, outside the picture, or no box of pixels.
        """
        return self.read(image, boxes, normalized=normalized)

    def read(self, image: Picture, boxes: ArrayLike, window: int | None = None, normalized: bool = False) -> list[Text]:
        """The text in each box (N, 4), by the same question as `describe`, as in the paper.

        With `window` every box is read in a window of that side (pixels) around it, for text too small to be
        read in the whole picture; each window is then a look of its own.

        Raises:
            GranvitError: as `describe`.
        """
        picture = open_picture(image)
        asks = self.about_boxes(picture, checked_boxes(boxes, picture.size, normalized), window, name_of(image))
        return [text for texts in self.texts(asks, LONGEST_DESCRIPTION) for text in texts]

    def locate(self, image: Picture, phrases: Sequence[str], min_confidence: float = 0.0) -> list[Place | None]:
        """Where each phrase is, xyxy pixels of the picture, or None where the model's answer is no box.

        An answer with a lower confidence than `min_confidence` is none either: the phrase is not there, as far as the
        model can tell.

        Raises:
            GranvitError: a phrase is empty, not valid Unicode, or longer than the model can read.
        """
        if isinstance(phrases, str):
            raise GranvitError("locate takes a list of phrases, not one string")
        check_phrases(phrases)
        picture = open_picture(image)
        ask = self.about_phrases(picture, phrases, name_of(image))
        return [self.place(said, ask.view, min_confidence) for said in self.answer([ask], LONGEST_BOX)[0]]

    def caption(self, image: Picture) -> Text:
        """One paragraph about the whole picture."""
        picture = open_picture(image)
        return self.texts([self.about_whole(picture, [ask_global()], name_of(image))], LONGEST_CAPTION)[0][0]

    def ask(
        self,
        image: Picture,
        question: str | Sequence[str],
        boxes: ArrayLike | None = None,
        normalized: bool = False,
        max_tokens: int = LONGEST_ANSWER,
    ) -> list[Text]:
        """The answer to a question in your own words, or to each of several, put through the model's chat template.

        With `boxes` (N, 4) every question is asked about each of them in turn: its box stands where the question says
        {box}, or behind it. Answers are as they are said, location tokens with the rest; `Text.box` holds the box that
        an answer states, in pixels. They end after `max_tokens` tokens at the latest.

        Raises:
            GranvitError: as `describe`; or a question is empty, not valid Unicode, or longer than the model can read;
                or an answer is to have no token.
        """
        if max_tokens < 1:
            raise GranvitError(f"max_tokens {max_tokens}: an answer has at least one token")
        questions = [question] if isinstance(question, str) else list(question)
        check_questions(questions)
        picture = open_picture(image)
        checked = None if boxes is None else checked_boxes(boxes, picture.size, normalized)
        asks = self.about(picture, questions, checked, name_of(image))
        return [self.with_box(said, asks.view) for said in self.answer([asks], max_tokens)[0]]

    def attend(self, image: Picture, box: ArrayLike, normalized: bool = False) -> QueryMaps:
        """Where the encoder looks from a box, what is alike to it, and where each word of the model's answer looks.

        Raises:
            GranvitError: as `describe`.
        """
        # Below, not above: evaluation is built on prediction.
        from granvit.evaluate.attention import attend_box
        from granvit.evaluate.patch_encoder import PatchEncoder

        picture = open_picture(image)
        checked = checked_boxes(box, picture.size, normalized)
        if len(checked) != 1:
            raise GranvitError(f"attention is of one box at a time, not of {len(checked)}")
        return attend_box(PatchEncoder.of(self.model, "encoder"), picture, checked[0])

    def about_boxes(
        self, picture: Image.Image, boxes: np.ndarray, window: int | None = None, name: str = UNNAMED
    ) -> list[ImageQuestions]:
        """Bbox2Caption for each box (N, 4), xyxy pixels of the upright picture: one look for all, or one a window."""
        if window is None:
            view = self.model.view(picture.size)
            return [ImageQuestions(picture, view, self.box_questions(view, boxes), name)]
        views = [self.model.window(box, picture.size, window) for box in boxes]
        return [
            ImageQuestions(picture, view, self.box_questions(view, box), name)
            for view, box in zip(views, boxes, strict=True)
        ]

    def about_phrases(self, picture: Image.Image, phrases: Sequence[str], name: str = UNNAMED) -> ImageQuestions:
        """Caption2Bbox for each phrase, of an upright picture."""
        return self.about_whole(picture, [ask_box(phrase) for phrase in phrases], name)

    def about(
        self, picture: Image.Image, questions: Sequence[str], boxes: np.ndarray | None, name: str = UNNAMED
    ) -> ImageQuestions:
        """Questions in anybody's words, of an upright picture: each about all boxes in turn, where there are some."""
        asks = self.about_whole(picture, questions, name)
        if boxes is not None:
            codec = self.model.codec
            relative = asks.view.to_relative(boxes, self.model.settings.frame)
            asks.questions = [ask_about(question, box, codec) for question in questions for box in relative]
        return asks

    def about_whole(self, picture: Image.Image, questions: Sequence[str], name: str = UNNAMED) -> ImageQuestions:
        """Questions about an upright picture as a whole."""
        return ImageQuestions(picture, self.model.view(picture.size), list(questions), name)

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

    def place(self, said: Text, view: View, min_confidence: float = 0.0) -> Place | None:
        """The box that an answer states, in image pixels; None where it states none, or its confidence is lower."""
        box = self.to_pixels(said, view) if said.confidence >= min_confidence else None
        return None if box is None else Place(box, said.confidence)

    def with_box(self, said: Text, view: View) -> Text:
        """The same answer, with the box that it states."""
        return Text(said, said.confidence, self.to_pixels(said, view), said.cut)

    def answer(self, asks: Sequence[ImageQuestions], max_new_tokens: int) -> list[list[Text]]:
        """Greedy answers to all questions as they are said, picture by picture.

        Raises:
            GranvitError: a question is longer than the model can read, or the model's numbers are not finite.
        """
        return [[self._text(said, said.tokens) for said in row] for row in self._said(asks, max_new_tokens)]

    def texts(self, asks: Sequence[ImageQuestions], max_new_tokens: int) -> list[list[Text]]:
        """As `answer`, without the location tokens that a text has no place for."""
        return [
            [self._text(said, [token for token in said.tokens if token not in self._places]) for said in row]
            for row in self._said(asks, max_new_tokens)
        ]

    def _text(self, said: Said, shown: list[int]) -> Text:
        cut = len(said.probabilities) == len(said.tokens)
        return Text(self.model.dialog.decode(shown), self._confidence(said), cut=cut)

    def _confidence(self, said: Said) -> float:
        """The mean probability of an answer's tokens, its end with them; of one that is a box, of its numbers alone.

        Brackets, commas and the end of a box are as good as certain whatever is in the picture, and each codec has
        others of them.
        """
        counted = said.probabilities
        if parse_box(self.model.dialog.decode(said.tokens), self.model.codec) is not None:
            words = self.model.dialog.tokenizer.convert_ids_to_tokens(said.tokens)
            numbers = [any(c.isdigit() for c in word) for word in words]
            counted = [p for p, number in zip(counted, numbers, strict=False) if number]
        return sum(counted) / len(counted)

    def _said(self, asks: Sequence[ImageQuestions], max_new_tokens: int) -> Iterator[list[Said]]:
        for chunk in _chunks(asks, self.rows):
            questions = [[self.tokens_of(question) for question in ask.questions] for ask in chunk]
            canvases, views = torch.cat([self.model.show(a.image, a.view) for a in chunk]), [a.view for a in chunk]
            try:
                yield from greedy_answers(self.model, canvases, questions, max_new_tokens, self.rows, views)
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


def check_phrases(phrases: Sequence[str]) -> None:
    """
    Raises:
        GranvitError: a phrase is empty, or not valid Unicode.
    """
    for phrase in phrases:
        if not phrase.strip():
            raise GranvitError("an empty phrase cannot be located")
        _check_unicode("phrase", phrase)


def check_questions(questions: Sequence[str]) -> None:
    """
    Raises:
        GranvitError: a question is empty, or not valid Unicode.
    """
    for question in questions:
        if not question.strip():
            raise GranvitError("an empty question cannot be answered")
        _check_unicode("question", question)


def _check_unicode(what: str, text: str) -> None:
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise GranvitError(f"the {what} {ascii(text[:80])} is not valid Unicode")


def name_of(image: Picture) -> str:
    """What errors call a picture: its path, where it is known."""
    if isinstance(image, Image.Image):
        return str(getattr(image, "filename", "") or UNNAMED)
    return UNNAMED if isinstance(image, bytes) else str(image)


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
