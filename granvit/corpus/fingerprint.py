"""What stays of a picture when it is resized, recompressed, mirrored or cropped a little: a thumbnail and 64 bits.

The thumbnail is 64 x 64 grey pixels (`granvit.images.thumbnail`). Its bits are the signs of its 64 lowest
cosine coefficients without the mean, a perceptual hash ("pHash") whose mirror image is known without looking: a sign
turns exactly where the horizontal frequency is odd. Since the coefficients are linear in the thumbnail, the hashes of
many windows of it (the picture with a tenth cut off at one side or another) cost two small matrix products.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from granvit import images

SIDE = 64
BITS = 64

Thumbs = NDArray[np.uint8]
Hashes = NDArray[np.uint64]
Span = tuple[float, float]

WHOLE: tuple[Span, ...] = ((0.0, 1.0),)
# What a copy cropped by a tenth, or by a fifth, may have left of the picture, along one axis. Windows are all pairs.
CROPS: tuple[Span, ...] = (
    *WHOLE,
    *((start / 40, start / 40 + 0.9) for start in range(5)),
    *((start / 20, start / 20 + 0.8) for start in range(5)),
)

_FREQUENCIES = 9
# (vertical, horizontal), from low to high, without the mean.
_CHOSEN = sorted(((v, u) for v in range(_FREQUENCIES) for u in range(_FREQUENCIES)), key=lambda p: (sum(p), p))[1:65]
_V, _U = np.array(_CHOSEN).T
_BIT_WEIGHTS = np.left_shift(np.uint64(1), np.arange(BITS, dtype=np.uint64))
_MIRROR = (_BIT_WEIGHTS * (_U % 2 == 1)).sum(dtype=np.uint64)
# Grey levels: below this, what a thumbnail shows beside slow changes of brightness is noise.
_LEAST_DETAIL = 1.5


def thumbnail(data: bytes) -> Thumbs:
    """The thumbnail of an image file, shape (SIDE, SIDE).

    Raises:
        ImageError: as `granvit.images.decode`.
    """
    return np.asarray(images.thumbnail(data, SIDE))


def featureless(thumbs_nss: Thumbs) -> NDArray[np.bool_]:
    """Whether there is nothing in a thumbnail to know it by: a blank page, a black frame. Shape (N,)."""
    return np.abs(np.diff(thumbs_nss.astype(np.int16), axis=2)).mean(axis=(1, 2)) < _LEAST_DETAIL / 4


@lru_cache
def _cosines(spans: tuple[Span, ...]) -> NDArray[np.float32]:
    """The cosine transform of each window along one axis, shape (len(spans) * frequencies, SIDE)."""
    edges = np.arange(SIDE + 1) / SIDE
    rows = []
    for start, end in spans:
        left, right = np.clip(edges[:-1], start, end), np.clip(edges[1:], start, end)
        covered = right - left
        places = ((left + right) / 2 - start) / (end - start)
        waves = np.cos(np.pi * np.outer(np.arange(_FREQUENCIES), places)) * covered
        # Without a share of the mean, which would tip the signs of the weak coefficients.
        waves[1:] -= np.outer(waves[1:].sum(axis=1), covered / covered.sum())
        rows.append(waves)
    return np.concatenate(rows).astype(np.float32)


def hashes(thumbs_nss: Thumbs, spans: tuple[Span, ...] = WHOLE) -> Hashes:
    """The hashes of all windows of the thumbnails, shape (N, len(spans) ** 2).

    Column i is the window with rows `spans[i // len(spans)]` and columns `spans[i % len(spans)]`.
    """
    waves, count = _cosines(spans), len(spans)
    found = waves @ thumbs_nss.astype(np.float32) @ waves.T
    per_window = found.reshape(-1, count, _FREQUENCIES, count, _FREQUENCIES).transpose(0, 1, 3, 2, 4)
    bits = per_window[..., _V, _U] > 0
    packed = np.ascontiguousarray(np.packbits(bits, axis=-1, bitorder="little"))
    return packed.view("<u8").reshape(len(thumbs_nss), count * count)


def mirrored(hashes: Hashes) -> Hashes:
    """The hashes of the pictures flipped left to right."""
    return hashes ^ _MIRROR
