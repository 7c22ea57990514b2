"""What a constant box would score: the floor that a model has to leave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from granvit.geometry import as_boxes, iou

# References that all candidates are compared with at once; bounds the memory.
_AT_ONCE = 8_192


def best_constant_box(references: ArrayLike, thresholds: Sequence[float] = (0.5,)) -> dict[str, float]:
    """What the one box that, answered to every question, scores best would reach, score by score.

    Candidates are the median and the mean of the references, their 50 most frequent after rounding to eighths, and all
    boxes on a grid of quarters. They are judged on the references themselves, so the baseline is generous: a model that
    beats it has seen something.

    Args:
        references: (N, 4), relative (x1, y1, x2, y2) in [0, 1] of each picture.

    Returns:
        "acc50" (and so on for `thresholds`) and "miou", in [0, 1]; each is its own best candidate's.

    Raises:
        ValueError: there are no references.
    """
    references_n4 = as_boxes(references)
    if not len(references_n4):
        raise ValueError("nothing to score: no references")
    candidates_c4 = _candidates(references_n4)
    sums: dict[str, NDArray[np.float64]] = {}
    for start in range(0, len(references_n4), _AT_ONCE):
        iou_cn = iou(candidates_c4, references_n4[start : start + _AT_ONCE])
        told = {f"acc{round(100 * t)}": (iou_cn >= t).sum(1) for t in thresholds} | {"miou": iou_cn.sum(1)}
        sums = {name: sums.get(name, 0) + value for name, value in told.items()}
    return {name: float(value.max()) / len(references_n4) for name, value in sums.items()}


def _candidates(boxes_n4: NDArray[np.float64]) -> NDArray[np.float64]:
    eighths = Counter(map(tuple, (np.round(boxes_n4 * 8) / 8).tolist()))
    frequent = [box for box, _ in eighths.most_common(50) if box[0] < box[2] and box[1] < box[3]]
    spans = [(low / 4, high / 4) for low in range(4) for high in range(low + 1, 5)]
    grid = [(x1, y1, x2, y2) for x1, x2 in spans for y1, y2 in spans]
    return np.array([np.median(boxes_n4, axis=0), boxes_n4.mean(axis=0), *frequent, *grid])
