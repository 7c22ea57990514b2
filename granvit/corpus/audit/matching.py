"""Which found box is which true box, in one image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from granvit.geometry import area, as_boxes, intersection, iou

THRESHOLD = 0.5


@dataclass(frozen=True)
class Matching:
    """The outcome for one image; numbers are indices into the found and the true boxes as they were given.

    Attributes:
        pairs: (found, true, IoU), best first; no box is in two pairs.
        false: found boxes that are no true box.
        missed: true boxes that were not found.
        excused: found boxes in regions to be ignored: neither right nor wrong.
    """

    pairs: list[tuple[int, int, float]]
    false: list[int]
    missed: list[int]
    excused: list[int]


def match(found: ArrayLike, true: ArrayLike, ignored: ArrayLike = (), threshold: float = THRESHOLD) -> Matching:
    """Pair boxes one to one, greedily by IoU: the best pair of all first, then the best of what is left.

    Ignored regions follow ICDAR's rule: a found box without a partner of which more than half lies in ignored regions
    is excused. (ICDAR takes such boxes out before it matches; here, as in COCO, a true box may be found by one first.)

    Args:
        found, true, ignored: (N, 4), (M, 4), (K, 4), xyxy pixels of one image.
        threshold: the least IoU of a pair.
    """
    overlap_nm = iou(found, true)
    rows, columns = np.nonzero((overlap_nm >= threshold) & (overlap_nm > 0))
    pairs: list[tuple[int, int, float]] = []
    free_found, free_true = set(range(overlap_nm.shape[0])), set(range(overlap_nm.shape[1]))
    # A stable sort: of equal overlaps the first boxes win, on every machine.
    for index in np.argsort(-overlap_nm[rows, columns], kind="stable").tolist():
        row, column = int(rows[index]), int(columns[index])
        if row in free_found and column in free_true:
            pairs.append((row, column, float(overlap_nm[row, column])))
            free_found.remove(row)
            free_true.remove(column)
    excused = set(np.flatnonzero(covered(found, ignored) > 0.5).tolist()) & free_found
    return Matching(pairs, sorted(free_found - excused), sorted(free_true), sorted(excused))


def covered(boxes: ArrayLike, by: ArrayLike) -> NDArray[np.float64]:
    """The share of each box's area that lies in the boxes `by`, in [0, 1], shape (N,).

    What lies in two of them counts twice, up to the whole box: exact where they don't overlap, as words and lines
    of text don't.
    """
    total = area(boxes)
    inside = intersection(boxes, by).sum(axis=1)
    return np.clip(np.divide(inside, total, out=np.zeros_like(total), where=total > 0), 0, 1)


def holding_several(outer: ArrayLike, inner: ArrayLike) -> tuple[int, int]:
    """How many outer boxes hold two or more inner ones, at least half of each, and how many inner ones those are.

    A line of text holds its words: many such boxes mean that two annotations differ in granularity.
    """
    outer_n4, inner_m4 = as_boxes(outer), as_boxes(inner)
    shares_nm = intersection(outer_n4, inner_m4) / np.maximum(area(inner_m4), 1e-9)
    held_nm = shares_nm >= 0.5
    several = held_nm.sum(axis=1) >= 2
    return int(several.sum()), int(held_nm[several].any(axis=0).sum())
