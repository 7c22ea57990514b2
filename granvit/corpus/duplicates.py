"""Images of one corpus that are copies of each other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from granvit.corpus.alignment import agreement
from granvit.corpus.fingerprint import Hashes, mirrored
from granvit.corpus.fingerprinting import FingerprintFile
from granvit.corpus.near import HashIndex, Indices, groups

# Bits. What was only resized, recompressed or mirrored is within 7 in more than 99 % of the measured images.
RADIUS = 7
# From which agreement two pictures are the same. Of measured photos, all copies reach it and no others come near; of
# 300 receipts, some from one shop, 18 passed for another.
SIMILARITY = 0.8

# Of pictures that look alike by their hashes, forms of one layout, each is compared with so many: the pairs grow with
# the images, not with their square.
_LOOK_ALIKES = 32
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

    Every pair that makes a group has at least `similarity`, see `granvit.corpus.alignment.agreement`. Entries without a
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
