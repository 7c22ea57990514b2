"""Boxes and their labels drawn on a picture, legible at any picture size."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageColor, ImageDraw, ImageFont

from granvit.errors import GranvitError
from granvit.files import atomic_file
from granvit.geometry import as_boxes

PALETTE = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#0891b2", "#b91c1c", "#4d7c0f")
SMALLEST_SIDE = 320
# A plate that hides another's text does more harm than one that hides a part of a box.
_PLATE_COUNTS = 4


def colors_for(count: int) -> list[str]:
    """`count` colours that differ from their neighbours, from `PALETTE` in order."""
    return [PALETTE[i % len(PALETTE)] for i in range(count)]


def draw_boxes(
    image: Image.Image,
    boxes: ArrayLike,
    labels: Sequence[str],
    colors: Sequence[str],
    *,
    dashed: bool | Sequence[bool] = False,
) -> Image.Image:
    """A copy of the picture with a frame around each box and its label on a plate at one of the frame's corners.

    That is the upper left one, unless the plate would hide more of the boxes or of earlier plates there than elsewhere.

    A picture whose longer side is below 320 px is enlarged to that first, since text has a least legible size.

    Args:
        image: any mode; the copy is RGB.
        boxes: (N, 4), (x1, y1, x2, y2) in pixels of `image`.
        labels: N texts; an empty one draws no plate. Texts too wide for the picture are cut with an ellipsis.
        colors: N colour names or "#rrggbb".
        dashed: frames in dashes on white, for predictions beside true boxes; one for all, or N of them. White, so that
            a dashed frame shows even where it lies exactly on a solid one.

    Raises:
        ValueError: there are not as many labels, colours and dashes as boxes.
    """
    boxes_n4 = as_boxes(boxes)
    if not len(boxes_n4) == len(labels) == len(colors):
        raise ValueError(f"{len(boxes_n4)} boxes, {len(labels)} labels and {len(colors)} colors")
    dashes = [dashed] * len(boxes_n4) if isinstance(dashed, bool) else dashed
    picture, scale = _enlarged(image.convert("RGB"))
    pen = ImageDraw.Draw(picture)
    unit = max(picture.size) / 400
    frame_width = max(2, round(1.5 * unit))
    font = ImageFont.load_default(size=max(12, round(10 * unit)))

    scaled = (boxes_n4 * np.tile(scale, 2)).tolist()
    for box, color, in_dashes in zip(scaled, colors, dashes, strict=True):
        _frame(pen, box, color, frame_width, in_dashes)
    # Labels last, so that no later frame crosses an earlier label.
    taken = np.reshape(scaled, (-1, 4))
    for box, label, color in zip(scaled, labels, colors, strict=True):
        if label:
            plate = _label(pen, box, label, color, font, picture.size, taken)
            taken = np.concatenate([taken, np.tile(plate, (_PLATE_COUNTS, 1))])
    return picture


def _enlarged(image: Image.Image) -> tuple[Image.Image, tuple[float, float]]:
    longest = max(image.size)
    if longest >= SMALLEST_SIDE:
        return image.copy(), (1.0, 1.0)
    width, height = (max(1, round(side * SMALLEST_SIDE / longest)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC), (width / image.width, height / image.height)


def _frame(pen: ImageDraw.ImageDraw, box: list[float], color: str, width: int, dashed: bool) -> None:
    # PIL includes the right and bottom edge; boxes do not.
    x1, y1, x2, y2 = box[0], box[1], max(box[0], box[2] - 1), max(box[1], box[3] - 1)
    pen.rectangle((x1, y1, x2, y2), outline="white" if dashed else color, width=width)
    if not dashed:
        return
    dash, inner = 4 * width, width - 1
    for x in np.arange(x1, x2, 2 * dash).tolist():
        end = min(x + dash, x2)
        pen.rectangle((x, y1, end, min(y1 + inner, y2)), fill=color)
        pen.rectangle((x, max(y2 - inner, y1), end, y2), fill=color)
    for y in np.arange(y1, y2, 2 * dash).tolist():
        end = min(y + dash, y2)
        pen.rectangle((x1, y, min(x1 + inner, x2), end), fill=color)
        pen.rectangle((max(x2 - inner, x1), y, x2, end), fill=color)


def _label(
    pen: ImageDraw.ImageDraw,
    box: list[float],
    text: str,
    color: str,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    size: tuple[int, int],
    taken: np.ndarray,
) -> tuple[int, int, int, int]:
    """Writes a label where its plate covers the least of what is `taken` (N, 4); returns the plate."""
    pad = 3
    text = _fitted(text, font, size[0] - 2 * pad)
    left, top, right, bottom = font.getbbox(text)
    width, height = round(right - left) + 2 * pad, round(bottom - top) + 2 * pad
    x1, y1, x2, y2 = box
    above, below, beside, before = y1 - height, y2, x2, x1 - width
    places = [(x1, above), (x1, y1), (x2 - width, above), (before, y1), (beside, y1), (x1, below), (x2 - width, below)]
    # Whole pixels, so that letters stay crisp, and never beyond the picture.
    inside = [
        (max(round(min(max(x, 0), size[0] - width)), 0), max(round(min(max(y, 0), size[1] - height)), 0))
        for x, y in places
        if y >= 0
    ]
    x, y = min(inside, key=lambda place: _covered((*place, place[0] + width, place[1] + height), taken))
    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=color)
    red, green, blue = ImageColor.getrgb(color)[:3]
    ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 150 else "white"
    pen.text((x + pad - left, y + pad - top), text, fill=ink, font=font)
    return x, y, x + width, y + height


def _covered(plate: tuple[int, int, int, int], taken: np.ndarray) -> float:
    """How many pixels of boxes and plates (N, 4) a plate would hide."""
    low, high = np.maximum(taken[:, :2], plate[:2]), np.minimum(taken[:, 2:], plate[2:])
    return float(np.clip(high - low, 0, None).prod(axis=1).sum())


def _fitted(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: float) -> str:
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture in the format of the name's ending; the file is there as a whole, or not at all.

    Raises:
        GranvitError: the format cannot hold the picture, or the file cannot be written.
    """
    try:
        with atomic_file(path) as unfinished:
            picture.save(unfinished, Image.registered_extensions()[path.suffix.lower()])
    except GranvitError:
        raise
    except (OSError, ValueError, KeyError, struct.error) as error:  # what Pillow's encoders raise for sizes and modes
        raise GranvitError(f"{path}: {error}") from error
