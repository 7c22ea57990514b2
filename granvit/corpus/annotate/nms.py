"""Which of many overlapping detections stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from granvit.geometry import as_boxes, iou


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


def in_turns(labels: Sequence[str]) -> list[int]:
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
