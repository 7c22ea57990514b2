"""Where a page is looked at for text, and which of the boxes found there are one line: geometry alone.

The detector sees a picture scaled down to some 960 pixels. A long strip, or a large page of small text, is therefore
looked at through several overlapping windows, whose boxes are put together again.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from granvit import geometry

Quad = NDArray[np.float64]
Window = tuple[int, int, int, int]

# A picture longer than this, as a multiple of its short side, is looked at in strips of half as much again.
_LONGEST_WHOLE, _STRIP = 3.0, 1.5
# What neighbouring windows share, of their side, and at least in pixels: more than the height of a line.
_SHARED, _LEAST_SHARED = 0.15, 64
# Two boxes from different windows are one where the smaller lies in the other to this share ...
_SAME = 0.6
# ... or where an edge of the window cut one and what both make together is no thicker than a line.
_AS_THIN = 1.4
# A box is taken for cut where it ends this near to the edge of its window, in pixels that the detector sees.
_NEAR_EDGE = 6.0
# Letters one below the other: how far apart they may be, how far aside, and how like their widths are.
_LETTER_GAP, _LETTER_SHIFT, _LETTER_LIKENESS, _FEWEST_LETTERS = 0.9, 0.35, 0.5, 3
# A table rather than a column: other boxes within so many letters beside it, or columns nearer than so many rows.
_BESIDE, _COLUMNS_APART = 8.0, 1.2
# From so many times as high as wide a line is written downwards, as PP-OCR has it.
TALL = 1.5


def windows(size: tuple[int, int], max_side: int) -> list[Window]:
    """The windows (x1, y1, x2, y2) through which a picture of `size` (width, height) is first looked at."""
    width, height = size
    short, long = sorted(size)
    if long <= max(max_side, _LONGEST_WHOLE * short):
        return [(0, 0, width, height)]
    strip = max(max_side, round(_STRIP * short))
    return _tiled((0, 0, width, height), min(width, strip), min(height, strip))


def closer(looked: Sequence[Window]) -> list[Window]:
    """Four windows for each of those that were too far from the page to read it."""
    nearer = []
    for x1, y1, x2, y2 in looked:
        shared = 1 + _SHARED
        nearer += _tiled((x1, y1, x2, y2), round((x2 - x1) * shared / 2), round((y2 - y1) * shared / 2))
    return nearer


def _tiled(area: Window, width: int, height: int) -> list[Window]:
    x1, y1, x2, y2 = area
    return [(x, y, x + width, y + height) for y in _starts(y1, y2, height) for x in _starts(x1, x2, width)]


def _starts(low: int, high: int, side: int) -> list[int]:
    """Where windows of `side` begin so that they cover low..high and overlap, evenly."""
    rest = high - low - side
    if rest <= 0:
        return [low]
    step = max(1, side - max(round(_SHARED * side), min(_LEAST_SHARED, side // 2)))
    count = -(-rest // step)
    return [low + rest * i // count for i in range(count + 1)]


def thickness(quads: NDArray[np.float64]) -> NDArray[np.float64]:
    """The shorter side of each quad of (N, 4, 2), pixels: the height of its letters, whichever way they run."""
    sides = np.linalg.norm(np.roll(quads, -1, axis=1) - quads, axis=2)
    return np.minimum(np.maximum(sides[:, 0], sides[:, 2]), np.maximum(sides[:, 1], sides[:, 3]))


def is_tall(quad: Quad) -> bool:
    """Whether a line is written downwards or upwards."""
    sides = np.linalg.norm(np.roll(quad, -1, axis=0) - quad, axis=1)
    return bool(max(sides[1], sides[3]) >= TALL * max(sides[0], sides[2]))


def joined(
    found: Sequence[NDArray[np.float64]], looked: Sequence[Window], size: tuple[int, int], max_side: int
) -> NDArray[np.float64]:
    """The boxes of several windows as those of the page: each line once, and whole where windows cut it.

    Args:
        found: for each window its quads, (N, 4, 2) pixels of the page.
        size: (width, height) of the page.

    Returns:
        Quads of shape (M, 4, 2).
    """
    quads = np.concatenate([np.reshape(quads, (-1, 4, 2)) for quads in found])
    owner = np.repeat(np.arange(len(found)), [len(quads) for quads in found])
    if len(quads) == 0:
        return quads
    cut = np.array([_is_cut(quad, looked[int(w)], size, max_side) for quad, w in zip(quads, owner, strict=True)])
    hulls = np.array([geometry.hull(quad) for quad in quads])
    group = list(range(len(quads)))

    def root(i: int) -> int:
        while group[i] != i:
            group[i] = group[group[i]]
            i = group[i]
        return i

    for i in range(len(quads)):
        near = np.flatnonzero(geometry.intersection(hulls[i], hulls[i + 1 :])[0] > 0) + i + 1
        for j in near[owner[near] != owner[i]]:
            if _are_one(quads[i], quads[j], bool(cut[i] or cut[j])):
                group[root(int(j))] = root(i)
    members: dict[int, list[int]] = {}
    for i in range(len(quads)):
        members.setdefault(root(i), []).append(i)
    return np.array([_united(quads[rows], cut[rows]) for rows in members.values()])


def _is_cut(quad: Quad, window: Window, size: tuple[int, int], max_side: int) -> bool:
    near = _NEAR_EDGE * max(1.0, max(window[2] - window[0], window[3] - window[1]) / max_side)
    x1, y1, x2, y2 = geometry.hull(quad)
    inner = (window[0] > 0, window[1] > 0, window[2] < size[0], window[3] < size[1])
    gaps = (x1 - window[0], y1 - window[1], window[2] - x2, window[3] - y2)
    return any(edge and gap <= near for edge, gap in zip(inner, gaps, strict=True))


def _are_one(a: Quad, b: Quad, cut: bool) -> bool:
    shared, _ = cv2.intersectConvexConvex(a.astype(np.float32), b.astype(np.float32))
    smaller = min(cv2.contourArea(a.astype(np.float32)), cv2.contourArea(b.astype(np.float32)))
    if shared > _SAME * smaller:
        return True
    thick = thickness(np.stack([a, b]))
    if not cut or shared < 0.3 * thick.min() ** 2:
        return False
    together = min(cv2.minAreaRect(np.concatenate([a, b]).astype(np.float32))[1])
    return bool(together <= _AS_THIN * thick.max())


def _united(quads: NDArray[np.float64], cut: NDArray[np.bool_]) -> Quad:
    """One quad for those of one line: one that a window saw whole, or what they make together."""
    areas = np.array([cv2.contourArea(quad.astype(np.float32)) for quad in quads])
    whole = np.flatnonzero(~cut)
    largest = int(whole[areas[whole].argmax()] if len(whole) else areas.argmax())
    points = quads.reshape(-1, 2)
    rectangle = cv2.minAreaRect(points.astype(np.float32))
    if areas[largest] >= 0.8 * rectangle[1][0] * rectangle[1][1]:
        return quads[largest]
    if all(_is_upright(quad) for quad in quads):
        x1, y1, x2, y2 = geometry.hull(points)
        return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], float)
    return _from_top_left(cv2.boxPoints(rectangle).astype(np.float64))


def _is_upright(quad: Quad) -> bool:
    x1, y1, x2, y2 = geometry.hull(quad)
    return bool(np.abs(quad - [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]).max() <= 0.1 * min(x2 - x1, y2 - y1) + 2)


def _from_top_left(corners: Quad) -> Quad:
    """The corners of a rectangle in PP-OCR's order: clockwise from the top left one."""
    by_x = corners[np.argsort(corners[:, 0], kind="stable")]
    left, right = by_x[:2][np.argsort(by_x[:2, 1])], by_x[2:][np.argsort(by_x[2:, 1])]
    return np.array([left[0], right[0], right[1], left[1]])


def columns(quads: NDArray[np.float64]) -> list[list[int]]:
    """Boxes that are letters of one word written downwards, letter below letter: indices, from the top.

    Single figures in a table stand like that too, but beside other boxes; letters of a column have none near.
    """
    if len(quads) < 2:
        return []
    hulls = np.array([geometry.hull(quad) for quad in quads])
    width, height = geometry.sizes(hulls).T
    middle = geometry.centres(hulls)[:, 0]
    narrow = width <= 1.3 * height  # a letter, or some letters below each other that were found as one
    order = [int(i) for i in np.argsort(hulls[:, 1], kind="stable") if narrow[i]]
    widest = max((width[i] for i in order), default=0.0)
    found: list[list[int]] = []
    taken: set[int] = set()
    for place, first in enumerate(order):
        if first in taken:
            continue
        column = [first]
        for i in order[place + 1 :]:
            last = column[-1]
            gap = hulls[i, 1] - hulls[last, 3]
            if gap > _LETTER_GAP * widest:
                break  # and so are all that follow: they begin below
            letter = min(width[i], width[last])
            if (
                i not in taken
                and hulls[i, 1] > hulls[last, 1] + 0.3 * letter
                and -0.5 * letter <= gap <= _LETTER_GAP * max(width[i], width[last])
                and abs(middle[i] - middle[last]) <= _LETTER_SHIFT * letter
                and letter >= _LETTER_LIKENESS * max(width[i], width[last])
            ):
                column.append(i)
        letters = sum(max(1, round(height[i] / width[i])) for i in column)
        single = any(height[i] < TALL * width[i] for i in column)  # two lines of a turned page are no column
        if len(column) > 1 and single and letters >= _FEWEST_LETTERS:
            found.append(column)
            taken.update(column)
    return [column for column in found if not _is_table(column, found, hulls)]


def _is_table(column: list[int], columns: list[list[int]], hulls: NDArray[np.float64]) -> bool:
    """Whether boxes stand beside the column's letters row by row, or other columns no farther than its letters."""
    x1, y1, x2, y2 = geometry.hull(hulls[column].reshape(-1, 2))
    letter = float(np.median(geometry.sizes(hulls[column])[:, 0]))
    pitch = (y2 - y1) / len(column)
    middle = geometry.centres(hulls)
    for other in columns:
        beside = (middle[other, 1] > y1) & (middle[other, 1] < y2)
        if other is not column and beside.any():
            apart = np.abs(middle[other, 0][beside] - middle[column, 0].mean()).min()
            if apart < _COLUMNS_APART * pitch:
                return True
    near = geometry.intersection((x1 - _BESIDE * letter, y1, x2 + _BESIDE * letter, y2), hulls)[0] > 0
    near[[i for other in columns for i in other]] = False
    rows = geometry.sizes(hulls[near])[:, 1] < 0.5 * (y2 - y1)
    return int(rows.sum()) * 2 >= len(column)
