"""A batch drawn from what the model is given and nothing else, so that whatever is wrong with it shows.

Boxes are read back out of the questions' and answers' own text. Beside the canvas stand these texts as they come out
of the tokens, and the crops that the teacher sees. A coordinate that refers to another picture than the canvas, a view
that forgot its padding, an answer that was cut: all can be seen here, before a day of training learns them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from granvit.coordinates import Box
from granvit.draw import PALETTE, draw_boxes
from granvit.geometry import TiledView, View, iou
from granvit.model.packing import IGNORE, Batch, unpack
from granvit.model.region_model import RegionModel
from granvit.questions import BBOX2CAPTION, CAPTION2BBOX, CONVERSATION, parse_box

PICTURE, TEXT, _CROP, GAP = 480, 720, 112, 16
_GREY, _BLACK, _RED = "#6b7280", "#111827", "#b91c1c"
_LINE = 22


def draw_batch(
    model: RegionModel, batch: Batch, images: int = 6, lines: int = 14, reader: BatchReader | None = None
) -> Image.Image:
    """The first `images` of a batch, each with at most `lines` questions and the teacher's crops.

    Solid frames: where the text of a question or an answer points to. Dashed frames: where the teacher's crop was cut.
    """
    shown = unpack(batch)[:images]
    panels = [_panel(model, reader or BatchReader(), single, lines) for single in shown]
    said = [
        f"{len(batch.ids)} images, {len(batch.tasks)} questions; shown: {len(shown)} images. Solid frames: where the "
        "coordinates in the text point to. Dashed: where the teacher's crop, below the text, was cut.",
        *_as_read(model, batch),
    ]
    sheet = Sheet(PICTURE + TEXT + GAP)
    for text in said:
        sheet.write(text, _GREY)
    return stack([sheet.cut(), *panels])


class BatchReader:
    """How canvases and places are read back out of a batch; a stage whose batches hold other ones brings its own."""

    def canvas(self, model: RegionModel, single: Batch) -> Image.Image:
        """What the model sees of one image."""
        assert single.pixels is not None
        view = single.views[0]
        if isinstance(view, TiledView):
            return view.drawn(single.pixels.cpu().numpy())
        return Image.fromarray(single.pixels[0].cpu().numpy())

    def located(self, model: RegionModel, question: str, answer: str) -> tuple[str, Box | None]:
        """What a Caption2Bbox question asks for, and the relative box that its answer names."""
        return question.partition(CAPTION2BBOX)[2].strip(), parse_box(answer, model.codec)


@dataclass
class _Asked:
    """One question as it stands in the tokens: its text, its answer, and the box that one of them names."""

    text: str
    color: str
    box: Box | None = None
    number: int = 0


def _panel(model: RegionModel, reader: BatchReader, single: Batch, lines: int) -> Image.Image:
    canvas = Image.new("RGB", (model.canvas, model.canvas), "white")
    if single.is_image.any():
        canvas = reader.canvas(model, single)
    asked = [_asked(model, reader, single, n) for n in range(1, len(single.tasks) + 1)]
    boxes = _number(asked)
    labels = [str(number) for number in range(1, len(boxes) + 1)]
    colors = [PALETTE[i % len(PALETTE)] for i in range(len(boxes))]
    places = _on_canvas(model, single, boxes)
    crops, owners = _crops(single, places)
    dashed_at = [] if single.crop_boxes is None else single.crop_boxes.tolist()
    enlarged = View.letterbox(canvas.size, PICTURE)
    drawn = draw_boxes(
        enlarged.apply(canvas),
        enlarged.to_canvas([*places, *dashed_at]),
        [*labels, *[""] * len(dashed_at)],
        [*colors, *[_color(owner) for owner in owners]],
        dashed=[False] * len(places) + [True] * len(dashed_at),
    )
    sheet = Sheet(TEXT)
    sheet.write(f"{single.ids[0]}   {_seen(single)}", _GREY)
    for one in asked[:lines]:
        sheet.write(one.text, one.color, one.number)
    if len(asked) > lines:
        sheet.write(f"and {len(asked) - lines} more questions", _GREY)
    for crop, owner in zip(crops, owners, strict=True):
        sheet.paste(crop, _color(owner))
    text = sheet.cut()
    panel = Image.new("RGB", (PICTURE + TEXT + 3 * GAP, max(PICTURE, text.height) + GAP), "white")
    panel.paste(drawn, (GAP, 0))
    panel.paste(text, (PICTURE + 2 * GAP, 0))
    return panel


def _seen(single: Batch) -> str:
    if single.text_only:
        return "without an image"
    view = single.views[0]
    tiles = f", in {view.grid[0]}x{view.grid[1]} tiles" if isinstance(view, TiledView) else ""
    return "" if view is None else f"pixels {view.source} of the image, padded to {view.padded}{tiles}"


def _asked(model: RegionModel, reader: BatchReader, single: Batch, n: int) -> _Asked:
    """The n-th question of an image."""
    task = single.tasks[n - 1]
    if task == CONVERSATION:
        return _Asked(_conversation(model, single, n), _BLACK)
    question, answer = _texts(model, single, n)
    if task == "global":
        return _Asked(f"(whole image)  →  {answer}", _BLACK)
    if task == "bbox2caption":
        # Without the spaces around: some tokenizers drop those beside location tokens.
        before, after = (part.strip() for part in BBOX2CAPTION)
        asked_for = question.partition(before)[2].partition(after)[0].strip()
        box = parse_box(asked_for, model.codec)
        text = f"{asked_for}  →  {answer}"
    else:
        asked_for, box = reader.located(model, question, answer)
        text = f"{asked_for}  →  {answer}"
    return _Asked(text, _BLACK, box) if box is not None else _Asked(f"NO BOX CAN BE READ: {text}", _RED)


def _texts(model: RegionModel, single: Batch, n: int) -> tuple[str, str]:
    """Question and answer of a branch, out of its tokens; the template's own words are cut off behind the question."""
    mine = single.of_branch(n)
    ids, labels = single.input_ids[0][mine], single.labels[0][mine]
    start = int((labels != IGNORE).nonzero()[0]) + 1
    answer: list[int] = labels[labels != IGNORE].tolist()
    closed = "" if answer[-1] == model.dialog.end_token else "  (cut)"
    question = model.dialog.decode(ids[:start].tolist())
    tail = model.dialog.decode(model.dialog.ask("")).split("\n")[-1]
    return question.removesuffix(tail).strip(), model.dialog.decode(answer) + closed


def _conversation(model: RegionModel, single: Batch, n: int) -> str:
    """A conversation out of its tokens: what is given, and behind each arrow what is to be answered."""
    mine = single.of_branch(n)
    ids, predicted = single.input_ids[0][mine].tolist(), (single.labels[0][mine] != IGNORE).tolist()
    said, at = "", 0
    for answer, run in groupby([False, *predicted[:-1]]):
        length = len(list(run))
        text = " ".join(model.dialog.decode(ids[at : at + length]).split())
        said, at = f"{said}{'  →  ' if answer else '  '}{text}", at + length
    return f"(conversation){said}"


def _as_read(model: RegionModel, batch: Batch) -> list[str]:
    """One question of each kind as the model reads it, template and all."""
    first: dict[str, str] = {}
    for single in unpack(batch):
        for n, task in enumerate(single.tasks, start=1):
            if task not in first:
                ids: Tensor = single.input_ids[0][single.of_branch(n)]
                first[task] = repr(model.dialog.tokenizer.decode(ids.tolist()))
    return [f"{task}: {text}" for task, text in first.items()]


def _number(asked: list[_Asked]) -> list[Box]:
    """Gives every place a number, the same one to all questions about it; returns the places."""
    boxes: list[Box] = []
    for one in asked:
        if one.box is not None:
            if one.box not in boxes:
                boxes.append(one.box)
            one.number = boxes.index(one.box) + 1
            one.color = _color(one.number)
    return boxes


def _color(number: int) -> str:
    return PALETTE[(number - 1) % len(PALETTE)] if number else _GREY


def _on_canvas(model: RegionModel, single: Batch, boxes: list[Box]) -> list[list[float]]:
    """Relative boxes as canvas pixels, by the way that prediction takes."""
    view = next(iter(single.views), None)
    if view is None or not boxes:
        return View.squash((1, 1), model.canvas).to_canvas(boxes).tolist()
    return view.to_features(view.from_relative(boxes, model.settings.frame)).tolist()


def _crops(single: Batch, places: list[list[float]]) -> tuple[list[Image.Image], list[int]]:
    """The teacher's crops, and the number of the place that each lies at (0 where there is none)."""
    if single.crops is None or single.crop_boxes is None:
        return [], []
    crops = [Image.fromarray(crop).resize((_CROP, _CROP)) for crop in single.crops.cpu().numpy()]
    if not places:
        return crops, [0] * len(crops)
    overlap = iou(single.crop_boxes.cpu().numpy(), places)
    return crops, [int(row.argmax()) + 1 if row.max() > 0.3 else 0 for row in overlap]


@dataclass
class Sheet:
    """A white column that grows downwards: lines of text, then crops side by side."""

    width: int
    image: Image.Image = field(init=False)
    y: int = 0
    x: int = 0

    def __post_init__(self) -> None:
        self.image = Image.new("RGB", (self.width, 4096), "white")
        self.pen = ImageDraw.Draw(self.image)
        fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"  # more scripts than Pillow's own font
        self.font = ImageFont.truetype(str(fonts / "DejaVuSans.ttf"), 15)

    def write(self, text: str, color: str, number: int = 0) -> None:
        """Wrapped lines, with a numbered plate in front where there is a number."""
        left = 34 if number else 0
        if number:
            self.pen.rectangle((0, self.y + 1, 26, self.y + _LINE - 3), fill=_color(number))
            self.pen.text((13, self.y + _LINE / 2 - 1), str(number), fill="white", font=self.font, anchor="mm")
        for line in self._wrapped(text, self.width - left):
            self.pen.text((left, self.y), line, fill=_BLACK if number else color, font=self.font)
            self.y += _LINE

    def _wrapped(self, text: str, width: float) -> list[str]:
        """At most four lines, broken at spaces where there are any."""
        lines: list[str] = []
        rest = " ".join(text.split())
        while rest and len(lines) < 4:
            fits = next((n for n in range(len(rest), 0, -1) if self.font.getlength(rest[:n]) <= width), 1)
            cut = rest.rfind(" ", 0, fits + 1) if fits < len(rest) else fits
            cut = cut if cut > 0 else fits
            lines.append(rest[:cut])
            rest = rest[cut:].lstrip()
        return [*lines[:-1], lines[-1] + " …"] if rest else lines

    def paste(self, crop: Image.Image, color: str) -> None:
        border = 3
        step = crop.width + 2 * border + 6
        if self.x + step > self.width:
            self.x, self.y = 0, self.y + step
        box = (self.x, self.y + 6, self.x + crop.width + 2 * border, self.y + 6 + crop.height + 2 * border)
        self.pen.rectangle(box, fill=color)
        self.image.paste(crop, (box[0] + border, box[1] + border))
        self.x += step

    def cut(self) -> Image.Image:
        """What is filled of it."""
        height = self.y + (_CROP + 20 if self.x else 0) + 8
        return self.image.crop((0, 0, self.width, min(height, self.image.height)))


def stack(parts: list[Image.Image]) -> Image.Image:
    """Pictures below each other on white, centred."""
    sheet = Image.new("RGB", (PICTURE + TEXT + 3 * GAP, GAP + sum(part.height for part in parts)), "white")
    y = GAP
    for part in parts:
        sheet.paste(part, ((sheet.width - part.width) // 2, y))
        y += part.height
    return sheet
