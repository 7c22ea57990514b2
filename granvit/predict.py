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
from granvit.devices import pick_device
from granvit.errors import GranvitError
from granvit.geometry import View, as_boxes
from granvit.images import decode
from granvit.model.generate import greedy
from granvit.model.region_model import RegionModel
from granvit.questions import ask_box, ask_caption, ask_global, parse_box

if TYPE_CHECKING:
    from granvit.evaluate.attention import Seen

Picture = Image.Image | bytes | str | Path

LONGEST_CAPTION = 128
LONGEST_DESCRIPTION = 48
LONGEST_BOX = 32


@dataclass
class Ask:
    """Questions about one picture, in a view of it: the unit in which `GranViT.answer` works.

    `image` is EXIF-upright RGB; `questions` are plain text.
    """

    image: Image.Image
    view: View
    questions: list[str]


class GranViT:
    """A trained model, ready to be asked. Boxes are xyxy float pixels of the EXIF-upright picture.

    `rows` questions are answered at once; it bounds the memory of keys and values and changes no answer (in float32).
    """

    def __init__(self, model: RegionModel, rows: int = 256):
        self.model = model
        self.rows = rows

    @classmethod
    def load(
        cls, folder: Path | str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> GranViT:
        """A checkpoint directory, or a run directory that holds one in `checkpoint/`.

        Raises:
            CheckpointError: the directory is no granvit checkpoint; the message names the file at fault.
            GranvitError: there is no such device here.
        """
        folder = Path(folder)
        inner = folder / "checkpoint"
        if isinstance(device, str):
            device = pick_device(device)
        return cls(RegionModel.load(inner if inner.is_dir() else folder, device, dtype))

    def describe(self, image: Picture, boxes: ArrayLike) -> list[str]:
        """What each box (N, 4) holds; all boxes share one look at the picture.

        Raises:
            ValueError: a box is inverted, not finite or outside the picture.
        """
        picture = open_picture(image)
        view = self.model.view(picture.size)
        checked = checked_boxes(boxes, picture.size)
        return self.answer([Ask(picture, view, self.box_questions(view, checked))], LONGEST_DESCRIPTION)[0]

    def read(self, image: Picture, boxes: ArrayLike, window: int | None = None) -> list[str]:
        """The text in each box (N, 4), by the same question as `describe`, as in the paper.

        With `window` every box is read in a window of that side (pixels) around it, for print too small to be
        read in the whole picture; each window is then a look of its own.

        Raises:
            ValueError: a box is inverted, not finite or outside the picture.
        """
        if window is None:
            return self.describe(image, boxes)
        picture = open_picture(image)
        asks = []
        for box in checked_boxes(boxes, picture.size):
            view = View.window_around(box, picture.size, window, self.model.canvas)
            asks.append(Ask(picture, view, self.box_questions(view, box)))
        return [answers[0] for answers in self.answer(asks, LONGEST_DESCRIPTION)]

    def locate(self, image: Picture, phrases: Sequence[str]) -> list[Box | None]:
        """Where each phrase is, xyxy pixels of the picture, or None where the model's answer is no box.

        Raises:
            ValueError: a phrase is empty.
        """
        if any(not p.strip() for p in phrases):
            raise GranvitError("an empty phrase cannot be located")
        picture = open_picture(image)
        view = self.model.view(picture.size)
        answers = self.answer([Ask(picture, view, [ask_box(p) for p in phrases])], LONGEST_BOX)[0]
        return [self.to_pixels(answer, view) for answer in answers]

    def caption(self, image: Picture) -> str:
        """One paragraph about the whole picture."""
        picture = open_picture(image)
        return self.answer([Ask(picture, self.model.view(picture.size), [ask_global()])], LONGEST_CAPTION)[0][0]

    def attend(self, image: Picture, box: ArrayLike) -> Seen:
        """Where the encoder looks from a box, what is alike to it, and where each word of the model's answer looks.

        Raises:
            ValueError: the box is inverted, not finite or outside the picture.
        """
        # Below, not above: evaluation is built on prediction.
        from granvit.evaluate.attention import attend_box
        from granvit.evaluate.patch_encoder import PatchEncoder

        picture = open_picture(image)
        return attend_box(PatchEncoder.of(self.model, "encoder"), picture, checked_boxes(box, picture.size)[0])

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

    def answer(self, asks: Sequence[Ask], max_new_tokens: int) -> list[list[str]]:
        """Greedy answers to all questions, picture by picture."""
        answers: list[list[str]] = []
        for chunk in _chunks(asks, self.rows):
            canvases = np.stack([np.asarray(a.view.apply(a.image, self.model.fill)) for a in chunk])
            questions = [[self.model.dialog.ask(q) for q in a.questions] for a in chunk]
            for rows in greedy(self.model, torch.from_numpy(canvases), questions, max_new_tokens):
                answers.append([self.model.dialog.decode(row) for row in rows])
        return answers


def open_picture(image: Picture) -> Image.Image:
    """An EXIF-upright RGB picture from a path, bytes, or a PIL image taken as it is.

    Raises:
        ImageError: the file is damaged or not a picture. OSError: it cannot be read.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    return decode(image if isinstance(image, bytes) else Path(image).read_bytes())


def checked_boxes(boxes: ArrayLike, size: tuple[int, int]) -> np.ndarray:
    """Boxes as (N, 4), all of them in a picture of (width, height) pixels at least in part.

    Raises:
        ValueError: a box is inverted, not finite or outside the picture.
    """
    array = as_boxes(boxes)
    for box in array:
        x1, y1, x2, y2 = box
        if not np.isfinite(box).all() or not (x1 < x2 and y1 < y2):
            raise GranvitError(f"box {box.tolist()} is not x1 < x2, y1 < y2 (pixels)")
        if x1 >= size[0] or y1 >= size[1] or x2 <= 0 or y2 <= 0:
            raise GranvitError(f"box {box.tolist()} lies outside the picture of {size[0]}x{size[1]} pixels")
    return array


def _chunks(asks: Sequence[Ask], rows: int) -> Iterator[list[Ask]]:
    """Pictures in groups of at most `rows` questions; a picture with more makes a group of its own."""
    chunk: list[Ask] = []
    filled = 0
    for ask in asks:
        if chunk and filled + len(ask.questions) > rows:
            yield chunk
            chunk, filled = [], 0
        chunk.append(ask)
        filled += len(ask.questions)
    if chunk:
        yield chunk
