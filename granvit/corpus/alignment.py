"""Whether one thumbnail shows the same picture as a window of another: aligned first, then compared part by part."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from granvit.corpus.fingerprint import SIDE, Thumbs

Floats = NDArray[np.float32]

_STEPS = 4
_CHUNK = 128
_BLUR = 7
_BLOCKS = 8
_LEAST_SHARE = 0.15
_WORST = 0.1
_OUT = 0.05

_PLACES = ((np.arange(SIDE) + 0.5) / SIDE - 0.5).astype(np.float32)


def agreement(originals_pss: Thumbs, copies_pss: Thumbs, rows_p2: Floats, columns_p2: Floats) -> Floats:
    """How well each copy agrees with a window of its original, in [-1, 1], shape (P,).

    The window is first fitted: shifted and scaled along both axes so that the brightness agrees best. Then both are
    freed of slow changes of brightness and compared in 8 x 8 blocks; the result is what nine blocks in ten reach or
    exceed, blocks with little in them left out. A copy agrees everywhere. Two receipts of one shop, which agree over
    all, differ where the numbers are.

    Args:
        originals_pss, copies_pss: thumbnails, shape (P, SIDE, SIDE).
        rows_p2, columns_p2: about where in the original the copy lies, as shares of its height and width.
    """
    scores = [np.empty(0, np.float32)]
    for low in range(0, len(originals_pss), _CHUNK):
        some = slice(low, low + _CHUNK)
        scores.append(
            _agreement(
                originals_pss[some].astype(np.float32),
                copies_pss[some].astype(np.float32),
                rows_p2[some],
                columns_p2[some],
            )
        )
    return np.concatenate(scores)


def _agreement(originals_pss: Floats, copies_pss: Floats, rows_p2: Floats, columns_p2: Floats) -> Floats:
    copies_pss = _normalised(copies_pss)
    rows_p2, columns_p2 = rows_p2.astype(np.float32), columns_p2.astype(np.float32)
    for _ in range(_STEPS):
        windows_pss = _normalised(_cut(originals_pss, rows_p2, columns_p2))
        shifts_p4 = _best_shifts(windows_pss, copies_pss)
        rows_p2 = _moved(rows_p2, shifts_p4[:, :2])
        columns_p2 = _moved(columns_p2, shifts_p4[:, 2:])
    return _blockwise(_normalised(_cut(originals_pss, rows_p2, columns_p2)), copies_pss)


def _normalised(pictures_pss: Floats) -> Floats:
    """Mean 0 and deviation 1."""
    centred = pictures_pss - pictures_pss.mean(axis=(1, 2), keepdims=True)
    deviation = np.sqrt(np.square(centred).mean(axis=(1, 2), keepdims=True))
    return np.asarray(centred / np.maximum(deviation, 1e-3), np.float32)


def _cut(pictures_pss: Floats, rows_p2: Floats, columns_p2: Floats) -> Floats:
    """The windows enlarged to full size, by linear interpolation."""
    rows_pss, columns_pss = _interpolation(rows_p2), _interpolation(columns_p2)
    return np.asarray(rows_pss @ pictures_pss @ columns_pss.transpose(0, 2, 1), np.float32)


def _interpolation(spans_p2: Floats) -> Floats:
    start, end = spans_p2[:, :1], spans_p2[:, 1:]
    places_ps = np.clip((start + (_PLACES + 0.5) * (end - start)) * SIDE - 0.5, 0, SIDE - 1)
    return np.clip(1 - np.abs(places_ps[:, :, None] - np.arange(SIDE, dtype=np.float32)), 0, None)


def _best_shifts(windows_pss: Floats, copies_pss: Floats) -> Floats:
    """A Lucas-Kanade step: the shift and stretch along rows, then columns, in pixels, that explains the difference."""
    down_pss, right_pss = np.gradient(windows_pss, axis=(1, 2))
    slopes = [down_pss, down_pss * _PLACES[:, None], right_pss, right_pss * _PLACES]
    slopes_p4n = np.stack(slopes, axis=1).reshape(len(windows_pss), 4, -1)
    difference_pn1 = (copies_pss - windows_pss).reshape(len(windows_pss), -1, 1)
    # The small diagonal keeps a picture without slopes along one axis solvable.
    normal_p44 = slopes_p4n @ slopes_p4n.transpose(0, 2, 1) + np.eye(4, dtype=np.float32) * SIDE * SIDE * 1e-3
    shifts_p4 = np.linalg.solve(normal_p44, slopes_p4n @ difference_pn1)[:, :, 0]
    return np.clip(shifts_p4, -2, 2)


def _moved(spans_p2: Floats, shifts_p2: Floats) -> Floats:
    pixel_p1 = (spans_p2[:, 1:] - spans_p2[:, :1]) / SIDE
    ends_p2 = shifts_p2[:, :1] + shifts_p2[:, 1:] * np.array([-0.5, 0.5], np.float32)
    return np.clip(spans_p2 + ends_p2 * pixel_p1, -_OUT, 1 + _OUT)


def _detail(pictures_pss: Floats) -> Floats:
    """The pictures without what a 7 x 7 mean keeps."""
    edge = _BLUR // 2
    padded = np.pad(pictures_pss, ((0, 0), (edge, edge), (edge, edge)), mode="edge")
    sums = np.pad(padded.cumsum(axis=1).cumsum(axis=2), ((0, 0), (1, 0), (1, 0)))
    boxes = sums[:, _BLUR:, _BLUR:] - sums[:, :-_BLUR, _BLUR:] - sums[:, _BLUR:, :-_BLUR] + sums[:, :-_BLUR, :-_BLUR]
    return pictures_pss - boxes / _BLUR**2


def _blockwise(a_pss: Floats, b_pss: Floats) -> Floats:
    a_pbn, b_pbn = _blocks(_detail(a_pss)), _blocks(_detail(b_pss))
    a_energy, b_energy = np.square(a_pbn).sum(axis=2), np.square(b_pbn).sum(axis=2)
    # 1 only where both pattern and strength are the same, unlike a correlation.
    alike_pb = 2 * (a_pbn * b_pbn).sum(axis=2) / np.maximum(a_energy + b_energy, 1e-6)
    energy_pb = np.maximum(a_energy, b_energy)
    alike_pb[energy_pb < _LEAST_SHARE * energy_pb.mean(axis=1, keepdims=True)] = np.nan
    return np.nanquantile(alike_pb, _WORST, axis=1).astype(np.float32)


def _blocks(pictures_pss: Floats) -> Floats:
    """Shape (P, blocks, pixels of a block)."""
    side = SIDE // _BLOCKS
    cut = pictures_pss.reshape(-1, _BLOCKS, side, _BLOCKS, side).transpose(0, 1, 3, 2, 4)
    return cut.reshape(len(pictures_pss), _BLOCKS * _BLOCKS, side * side)
