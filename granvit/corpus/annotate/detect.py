"""Boxes for natural images: from any detector of `transformers`, or those that the corpus already has.

Of many detections that overlap some stay (non-maximum suppression).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from granvit.corpus.annotate.base import MODEL, AnnotateError, Item, each_or_error
from granvit.corpus.check import MIN_BOX_SIDE
from granvit.geometry import as_boxes, clip, iou
from granvit.regions import Region

if TYPE_CHECKING:
    from granvit.corpus.annotate.detect_models import Detector, Found


def nms(boxes: ArrayLike, scores: ArrayLike, threshold: float) -> NDArray[np.int64]:
    """Greedy non-maximum suppression over all classes together.

    The best box stays and takes with it every box whose IoU with it is above `threshold`; then the best of the rest.

    Args:
        boxes: (N, 4) pixels.
        scores: (N,); of equal scores the earlier box is the better one.

    Returns:
        Indices of the boxes that stay, best first.
    """
    boxes_n4 = as_boxes(boxes)
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    kept: list[int] = []
    while order.size:
        best, rest = order[0], order[1:]
        kept.append(int(best))
        # One row of the IoU matrix at a time: a detector may propose thousands of boxes.
        order = rest[iou(boxes_n4[best], boxes_n4[rest])[0] <= threshold]
    return np.array(kept, dtype=np.int64)


def round_robin(labels: Sequence[str]) -> list[int]:
    """An order in which the classes take turns: the first of each class, then the second of each, and so on.

    Cutting this order instead of the given one (by score) leaves every class its best boxes, where twenty people would
    otherwise crowd out the one bicycle.
    """
    seen: Counter[str] = Counter()
    turns = []
    for label in labels:
        turns.append(seen[label])
        seen[label] += 1
    return sorted(range(len(labels)), key=lambda i: (turns[i], i))


# Names of classes that name nothing: of the ids that COCO leaves out, and of checkpoints that state none.
_NO_NAME = re.compile(r"|n/?a|none|null|unknown|background|no[ _-]object|label_\d+|class_?\d+", re.IGNORECASE)
# A picture that any detector can look at, pixels.
_PLAIN = (256, 256)

Dtype = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class DetectConfig:
    """Object boxes by a detector; the text of a region is its class name until it is captioned.

    Works with any checkpoint that `transformers` knows as an object detector (D-FINE, RT-DETR, DETR, YOLOS...) or as
    a zero-shot detector (Grounding DINO, MM-Grounding-DINO, LLMDet, OWLv2), as long as its weights are safetensors.
    """

    model: str = field(metadata=MODEL)
    """Name of a checkpoint on the hub, or its folder."""
    labels: tuple[str, ...] = ()
    """Zero-shot detector: what to look for. Other detector: the classes to keep, all where empty."""
    threshold: float = 0.3
    """Boxes of a lower score are left out."""
    nms_iou: float = 0.7
    """Of two boxes that overlap more than this, of whatever class, the better one stays."""
    top_k: int = 50
    """Most boxes of one image."""
    balance_classes: bool = False
    """Fill `top_k` by the best box of each class, then the second best of each, rather than by score alone."""
    batch_size: int = 8
    """Images that go through the detector at once."""
    dtype: Dtype = "float32"
    """Precision of the weights."""

    @property
    def name(self) -> str:
        return f"detector:{Path(self.model).name}"

    def build(self, device: str = "cpu") -> Detect:
        """Load the detector.

        Raises:
            AnnotateError: the checkpoint is not there, is no detector, or doesn't fit `labels`.
        """
        if not 0 <= self.threshold < 1 or not 0 < self.nms_iou <= 1:
            raise AnnotateError(
                f"detect: threshold must be in [0, 1) and nms_iou in (0, 1], got {self.threshold} and {self.nms_iou}"
            )
        if self.top_k < 1 or self.batch_size < 1:
            raise AnnotateError(f"detect: top_k and batch_size start at 1, got {self.top_k} and {self.batch_size}")
        from granvit.corpus.annotate.detect_models import load_detector

        return Detect(self, load_detector(self.model, self.labels, self.threshold, device, self.dtype))


class Detect:
    """Adds the detector's boxes to the regions of each image."""

    def __init__(self, config: DetectConfig, detector: Detector):
        self.config, self.detector = config, detector

    def __call__(self, items: Sequence[Item]) -> list[Item]:
        for start in range(0, len(items), self.config.batch_size):
            batch = items[start : start + self.config.batch_size]
            each = each_or_error(self.detector, [item.picture for item in batch], Image.new("RGB", _PLAIN, "grey"))
            for item, found in zip(batch, each, strict=True):
                if isinstance(found, Exception):
                    item.refuse("detector-failed", f"{type(found).__name__}: {found}")
                elif found is None:
                    item.refuse("detector-not-finite", f"{self.config.name} gave scores or boxes that are no numbers")
                else:
                    item.record.regions.extend(self._regions(found, item))
        return list(items)

    def _regions(self, found: Found, item: Item) -> list[Region]:
        boxes_n4 = clip(found.boxes, *item.picture.size)
        sides_n2 = boxes_n4[:, 2:] - boxes_n4[:, :2]
        seen = (sides_n2 >= MIN_BOX_SIDE).all(axis=1)
        named = np.array([not _NO_NAME.fullmatch(label.strip()) for label in found.labels], dtype=bool)
        sure = (found.scores >= 0) & (found.scores <= 1)
        for reason, wrong in (
            ("detector-box-outside", ~seen),
            ("detector-class-without-name", seen & ~named),
            ("detector-bad-score", seen & named & ~sure),
        ):
            for i in np.flatnonzero(wrong):
                box = [round(v, 1) for v in found.boxes[i].tolist()]
                item.refuse(reason, f"{found.labels[i]!r} {found.scores[i]:.3g} at {box}")
        usable = np.flatnonzero(seen & named & sure)
        kept = usable[nms(boxes_n4[usable], found.scores[usable], self.config.nms_iou)]
        if self.config.balance_classes:
            kept = kept[round_robin([found.labels[i] for i in kept])]
        chosen = sorted(kept[: self.config.top_k], key=lambda i: -found.scores[i])
        name = self.config.name
        regions = []
        for i in chosen:
            x1, y1, x2, y2 = boxes_n4[i].tolist()
            score = float(found.scores[i])
            regions.append(Region((x1, y1, x2, y2), found.labels[i], "object", score, box_by=name, text_by=name))
        return regions


@dataclass(frozen=True)
class KeepConfig:
    """Boxes that are already in the corpus, as the paper keeps those of UMG-41M (section 3.1); captions come next."""

    @property
    def name(self) -> str:
        return "keep"

    def build(self, device: str = "cpu") -> Keep:
        """Nothing is loaded."""
        return Keep()


class Keep:
    """Leaves the regions as they are, and says which images have none."""

    def __call__(self, items: Sequence[Item]) -> list[Item]:
        for item in items:
            if not item.record.regions:
                item.refuse("no-box", "the corpus has no box for this image")
        return list(items)
