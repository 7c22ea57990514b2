"""Copies of pictures: candidates by their hashes, then compared by thumbnails that are aligned first, part by part.

`CopyFinder` finds the copies of given pictures in a stream, `exact_groups` and `near_groups` those within one corpus.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from granvit.corpus.dedup.hamming_index import HashIndex, Indices, groups, nearest
from granvit.corpus.dedup.perceptual_hash import (
    CROPS,
    SIDE,
    FingerprintFile,
    Hashes,
    Thumbs,
    featureless,
    hashes,
    mirrored,
)

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


# Bits. A copy cropped by a tenth at any side is within 10 of the nearest window in 99 % of the measured photos.
_RADIUS = 10
# The other way round each picture asks with all its windows: half the buckets suffice, since several windows are near.
_REVERSE_RADIUS = 7
# Of pictures that look alike by their hashes, forms of one layout, each is compared with so many, the nearest: the
# pairs grow with the images, not with their square.
_LOOK_ALIKES = 32

_STARTS_ENDS = np.array(CROPS, dtype=np.float32)
_WINDOW_ROWS = np.repeat(_STARTS_ENDS, len(CROPS), axis=0)
_WINDOW_COLUMNS = np.tile(_STARTS_ENDS, (len(CROPS), 1))


@dataclass(frozen=True)
class Copy:
    """A picture that shows the same as an original.

    Attributes:
        picture: its index in the batch that was searched.
        original: index of the original.
        similarity: see `agreement`.
        mirrored: whether it is flipped left to right.
    """

    picture: int
    original: int
    similarity: float
    mirrored: bool


class CopyFinder:
    """Pictures whose copies are sought: resized, recompressed, mirrored, cropped by up to a fifth, or all of it.

    A copy may be a part of its original, or the original a part of the copy. Memory: 9 KB per original.

    Args:
        thumbs_mss: the originals' thumbnails, shape (M, SIDE, SIDE). Featureless ones are never found.
    """

    def __init__(self, thumbs_mss: Thumbs) -> None:
        self._thumbs = thumbs_mss
        self._known = np.flatnonzero(~featureless(thumbs_mss))
        windows = [hashes(thumbs_mss[self._known[i : i + 256]], CROPS) for i in range(0, len(self._known), 256)]
        hashes_mw = np.concatenate([np.empty((0, len(CROPS) ** 2), np.uint64), *windows])
        self._windows = HashIndex(hashes_mw.ravel())
        self._wholes = HashIndex(hashes_mw[:, 0])

    def search(self, thumbs_nss: Thumbs, similarity: float) -> list[Copy]:
        """All copies among the pictures with at least that similarity, each (picture, original) once."""
        known = np.flatnonzero(~featureless(thumbs_nss))
        if not len(known) or not len(self._known):
            return []
        best: dict[tuple[int, int], Copy] = {}
        for flipped in (False, True):
            pictures = thumbs_nss[known][:, :, ::-1] if flipped else thumbs_nss[known]
            for asked, original, score in self._judged(np.ascontiguousarray(pictures)):
                copy = Copy(int(known[asked]), int(self._known[original]), float(score), flipped)
                key = copy.picture, copy.original
                if score >= similarity and (key not in best or best[key].similarity < score):
                    best[key] = copy
        return [best[key] for key in sorted(best)]

    def _judged(self, pictures: Thumbs) -> list[tuple[int, int, float]]:
        """Pairs of picture and original that may be copies, with their agreement."""
        hashes_nw = hashes(pictures, CROPS)
        windows = len(CROPS) ** 2
        most = _LOOK_ALIKES * windows
        # The picture is a window of the original ...
        asked, hit, apart = self._windows.search(hashes_nw[:, 0], _RADIUS, most)
        asked, original, window = _best_windows(asked, hit // windows, hit % windows, apart)
        parts = (self._thumbs[self._known[original]], pictures[asked], _WINDOW_ROWS[window], _WINDOW_COLUMNS[window])
        judged = list(zip(asked, original, agreement(*parts), strict=True))
        # ... or the original a window of the picture.
        hit, original, apart = self._wholes.search(hashes_nw[:, 1:].ravel(), _REVERSE_RADIUS, _LOOK_ALIKES)
        asked, original, window = _best_windows(hit // (windows - 1), original, hit % (windows - 1) + 1, apart)
        parts = (pictures[asked], self._thumbs[self._known[original]], _WINDOW_ROWS[window], _WINDOW_COLUMNS[window])
        return judged + list(zip(asked, original, agreement(*parts), strict=True))


def _best_windows(
    asked: Indices, original: Indices, window: Indices, apart: NDArray[np.uint8]
) -> tuple[Indices, Indices, Indices]:
    """For each pair of picture and original the window that differs least; a picture's nearest originals alone."""
    order = np.lexsort((window, apart, original, asked))
    pairs = np.column_stack([asked[order], original[order]])
    first = order[np.unique(pairs, axis=0, return_index=True)[1]]
    first = first[nearest(asked[first], apart[first], _LOOK_ALIKES)]
    return asked[first], original[first], window[first]


# Bits. What was only resized, recompressed or mirrored is within 7 in more than 99 % of the measured images.
RADIUS = 7
# From which agreement two pictures are the same. Of measured photos, all copies reach it and no others come near; of
# 300 receipts, some from one shop, 18 passed for another.
SIMILARITY = 0.8

_QUERIES = 8_192
# Each portion reads the file of thumbnails once and holds at most two for each pair, 4 KB each.
_PAIRS = 32_768


def exact_groups(sha256_n32: NDArray[np.uint8], entries: Indices) -> list[list[int]]:
    """Those of `entries` that are the same file, byte by byte: groups of two or more; one without a file is no copy."""
    entries = entries[sha256_n32[entries].any(axis=1)]
    digests = np.ascontiguousarray(sha256_n32[entries]).view("V32").ravel()
    order = np.argsort(digests, kind="stable")
    same = np.flatnonzero(digests[order][1:] == digests[order][:-1])
    return groups((int(entries[order[i]]), int(entries[order[i + 1]])) for i in same)


def near_groups(file: FingerprintFile, entries: Indices, similarity: float) -> list[list[int]]:
    """Those of `entries` that show the same picture, resized, recompressed, mirrored or cropped by a few per cent.

    Every pair that makes a group has at least `similarity`, see `agreement`. Entries without a
    thumbnail, or with a featureless one, are in no group.
    """
    known = entries[~np.isin(entries, list(file.problems))]
    similar: list[tuple[int, int]] = []
    for first, second, flipped in _candidates(file.hashes[known]):
        similar += _similar(file, known[first], known[second], flipped, similarity)
    return groups(similar)


def _candidates(hashes: Hashes) -> Iterator[tuple[Indices, Indices, bool]]:
    """Index pairs within `RADIUS` bits, as they are and mirrored, each once, in portions."""
    # Thousands of images may share one hash (blank forms): each is compared with the first of them alone.
    unique, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    shared = np.flatnonzero(first[inverse] != np.arange(len(hashes)))
    pairs = {False: [(first[inverse[shared]], shared)], True: []}
    index = HashIndex(unique)
    for low in range(0, len(unique), _QUERIES):
        some = unique[low : low + _QUERIES]
        for flipped, queries in ((False, some), (True, mirrored(some))):
            asked, found, _ = index.search(queries, RADIUS, _LOOK_ALIKES)
            other = found != asked + low  # a picture may be its own mirror image, which says nothing
            pairs[flipped].append((first[asked[other] + low], first[found[other]]))
    for flipped, parts in pairs.items():
        a, b = (np.concatenate([np.empty(0, np.int64), *(part[side] for part in parts)]) for side in (0, 1))
        # A pair comes up from both its ends, but where one of them has nearer ones.
        a, b = np.divmod(np.unique(np.minimum(a, b) * len(hashes) + np.maximum(a, b)), max(len(hashes), 1))
        for i in range(0, len(a), _PAIRS):
            yield a[i : i + _PAIRS], b[i : i + _PAIRS], flipped


def _similar(
    file: FingerprintFile, first: Indices, second: Indices, flipped: bool, similarity: float
) -> list[tuple[int, int]]:
    needed = np.unique(np.concatenate([first, second]))
    thumbs = file.thumbs(needed)
    originals = thumbs[np.searchsorted(needed, first)]
    copies = thumbs[np.searchsorted(needed, second)]
    whole = np.tile(np.array([0, 1], np.float32), (len(first), 1))
    scores = agreement(originals, copies[:, :, ::-1] if flipped else copies, whole, whole)
    enough = scores >= similarity
    return list(zip(first[enough].tolist(), second[enough].tolist(), strict=True))
