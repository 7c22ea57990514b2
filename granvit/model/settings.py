"""How a checkpoint preprocesses images and writes boxes; a file of its own, because recipes name it without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from granvit.geometry import Fit, Frame

# Of exported weights.
Precision = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class Settings:
    """How this checkpoint preprocesses images and writes boxes.

    Attributes:
        codec: how boxes are written ("decimal", "int1000", "loc", "loc:BINS").
        frame: what relative coordinates refer to: the visible "image" or the padded "canvas".
        fit: how the whole image becomes the canvas: "letterbox" (the paper) or "squash".
    """

    codec: str = "decimal"
    frame: Frame = "image"
    fit: Fit = "letterbox"
