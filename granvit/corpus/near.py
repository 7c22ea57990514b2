"""Near neighbours among 64-bit hashes, without comparing all pairs.

Multi-index hashing (Norouzi et al., 2012): two hashes that differ in at most r bits differ in at most r // 4 bits in
one of their four 16-bit parts. So each part has a table of buckets, and a query looks into the buckets within r // 4
bits of its own parts: 4 for r < 4, 68 for r < 8, 548 for r < 12. Nothing within r is missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from granvit.corpus.fingerprint import Hashes

MAX_RADIUS = 11

_PARTS, _PART_BITS = 4, 16
_BUCKETS = 1 << _PART_BITS
# Comparisons held at once, 40 bytes each.
_CHUNK = 2_000_000
_ONES = np.array([bin(i).count("1") for i in range(_BUCKETS)], dtype=np.uint8)

Indices = NDArray[np.int64]


def distance(a: Hashes, b: Hashes) -> NDArray[np.uint8]:
    """In how many bits the hashes differ, element by element."""
    parts = np.ascontiguousarray(a ^ b).view(np.uint16).reshape(*np.broadcast(a, b).shape, _PARTS)
    return _ONES[parts].sum(axis=-1, dtype=np.uint8)


class HashIndex:
    """Hashes to look up by similarity. 24 bytes each, and 1 MB.

    Args:
        hashes: shape (M,).
    """

    def __init__(self, hashes: Hashes) -> None:
        self.hashes = np.ascontiguousarray(hashes, dtype=np.uint64)
        self._order: list[NDArray[np.int32]] = []
        self._starts: list[NDArray[np.int32]] = []
        for keys in _parts(self.hashes).T:
            self._order.append(np.argsort(keys, kind="stable").astype(np.int32))
            counts = np.bincount(keys, minlength=_BUCKETS)
            self._starts.append(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))

    def search(self, queries: Hashes, radius: int) -> tuple[Indices, Indices, NDArray[np.uint8]]:
        """All pairs of a query and a hash within `radius` bits (at most MAX_RADIUS).

        Returns query indices, hash indices and distances, each pair once, ordered by query, then hash.
        """
        queries = np.ascontiguousarray(queries, dtype=np.uint64)
        found = [np.empty((0, 3), dtype=np.int64)]
        for part in range(_PARTS):
            for asked, items in self._bucketed(queries, part, radius):
                apart = distance(queries[asked], self.hashes[items])
                near = apart <= radius
                found.append(np.column_stack([asked[near], items[near], apart[near]]))
        pairs = np.unique(np.concatenate(found), axis=0)
        return pairs[:, 0], pairs[:, 1], pairs[:, 2].astype(np.uint8)

    def _bucketed(self, queries: Hashes, part: int, radius: int) -> Iterator[tuple[Indices, Indices]]:
        """Query and hash indices that share a bucket of one part, in chunks."""
        starts, order = self._starts[part], self._order[part]
        buckets = _parts(queries)[:, part][:, None] ^ _flips(radius // _PARTS)
        sizes = starts[buckets.astype(np.int32) + 1] - starts[buckets]
        asked, probe = np.nonzero(sizes)
        buckets, sizes = buckets[asked, probe], sizes[asked, probe].astype(np.int64)
        ends = np.cumsum(sizes)
        low = 0
        while low < len(asked):
            high = max(low + 1, int(np.searchsorted(ends, (ends[low - 1] if low else 0) + _CHUNK, side="right")))
            some = sizes[low:high]
            within = np.arange(some.sum()) - np.repeat(np.cumsum(some) - some, some)
            yield np.repeat(asked[low:high], some), order[np.repeat(starts[buckets[low:high]], some) + within]
            low = high


def _parts(hashes: Hashes) -> NDArray[np.uint16]:
    """The four parts of each hash, shape (N, 4)."""
    return np.ascontiguousarray(hashes).view(np.uint16).reshape(-1, _PARTS)


def _flips(bits: int) -> NDArray[np.uint16]:
    """All 16-bit masks of at most `bits` ones."""
    chosen = (c for count in range(bits + 1) for c in combinations(range(_PART_BITS), count))
    return np.array([sum(1 << b for b in c) for c in chosen], dtype=np.uint16)


def groups(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The connected sets of two or more that the pairs make, each ascending, in order of their first members."""
    parent: dict[int, int] = {}

    def root(i: int) -> int:
        parent.setdefault(i, i)
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for a, b in pairs:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    members: dict[int, list[int]] = {}
    for i in sorted(parent):
        members.setdefault(root(i), []).append(i)
    return [group for group in members.values() if len(group) > 1]
