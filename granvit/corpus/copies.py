"""Finding the copies of given pictures in a stream: candidates by hash, judged by their aligned thumbnails."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from granvit.corpus.alignment import agreement
from granvit.corpus.fingerprint import CROPS, Thumbs, featureless, hashes
from granvit.corpus.near import HashIndex, Indices, nearest

# Bits. A copy cropped by a tenth at any side is within 10 of the nearest window in 99 % of the measured photos.
_RADIUS = 10
# The other way round each picture asks with all its windows: half the buckets suffice, since several windows are near.
_REVERSE_RADIUS = 7
# Of originals that look alike by their hashes, forms of one layout, a picture is compared with so many, the nearest.
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
        similarity: see `granvit.corpus.alignment.agreement`.
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
        for mirrored in (False, True):
            pictures = thumbs_nss[known][:, :, ::-1] if mirrored else thumbs_nss[known]
            for asked, original, score in self._judged(np.ascontiguousarray(pictures)):
                copy = Copy(int(known[asked]), int(self._known[original]), float(score), mirrored)
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
