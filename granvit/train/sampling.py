"""What a sample is made of: which questions are asked about an image, and what of it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from granvit.questions import Task
from granvit.regions import Kind
from granvit.train.config import SELDOM


@dataclass
class SampleConfig:
    """Which questions an image is asked, and what of it is shown.

    The paper asks global and bbox2caption in stage 1, global and caption2bbox in stage 2.

    Attributes:
        questions: the chance of each question, per image or per region.
        max_regions: at most so many regions per image, drawn anew each time.
        subphrases: the chance that a region is also asked for by a part of its text, where that part fits no
            other region of the image.
        mirror: the chance that an image is mirrored where it holds no text and nothing said of it is "left" or "right".
        windows: the chance that a part of the image is shown in place of the whole (for small text).
        window_kind: parts are shown only of images with regions of this kind, around one of them; None shows any.
        window_side: the part's side, smallest and largest, in canvas sides.
        max_answer: answers are cut after so many tokens.
        max_tokens: images share rows of at most so many tokens (best fit); of an image with more some questions are
            drawn anew each time, and the rest are counted as left out. None gives each image a row of its own.
    """

    questions: Mapping[Task, float] = field(default_factory=lambda: {"global": 1.0, "bbox2caption": 1.0})
    max_regions: int = 16
    subphrases: float = field(default=0.0, metadata=SELDOM)
    mirror: float = field(default=0.0, metadata=SELDOM)
    windows: float = field(default=0.0, metadata=SELDOM)
    window_kind: Kind | None = field(default=None, metadata=SELDOM)
    window_side: tuple[float, float] = field(default=(1.0, 2.0), metadata=SELDOM)
    max_answer: int = field(default=96, metadata=SELDOM)
    max_tokens: int | None = field(default=None, metadata=SELDOM)


@dataclass
class CroppedSample(SampleConfig):
    """The same with crops of regions for the teacher of the self-distillation.

    Attributes:
        crops: at most so many region crops per image; 0 for none.
        crop_size: side of a crop in pixels; 0 takes the canvas.
    """

    crops: int = 0
    crop_size: int = 0
