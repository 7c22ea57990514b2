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

from granvit.corpus.dedup.perceptual_hash import Hashes

MAX_RADIUS = 11

_PARTS, _PART_BITS = 4, 16
_BUCKETS = 1 << _PART_BITS
# Comparisons held at once, 40 bytes each, and pairs found, 8 bytes each.
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

    def search(
        self, queries: Hashes, radius: int, most: int | None = None
    ) -> tuple[Indices, Indices, NDArray[np.uint8]]:
        """All pairs of a query and a hash within `radius` bits (at most MAX_RADIUS); of each query the `most` nearest.

        Returns query indices, hash indices and distances, each pair once, ordered by query, then hash.
        """
        queries = np.ascontiguousarray(queries, dtype=np.uint64)
        found, waiting = [np.empty(0, np.int64)], 0
        for part in range(_PARTS):
            for asked, items in self._bucketed(queries, part, radius):
                near = distance(queries[asked], self.hashes[items]) <= radius
                found.append(asked[near] * len(self.hashes) + items[near])
                waiting += len(found[-1])
                if waiting > _CHUNK:
                    found, waiting = [self._pruned(queries, found, most)], 0
        asked, items = np.divmod(self._pruned(queries, found, most), max(len(self.hashes), 1))
        return asked, items, distance(queries[asked], self.hashes[items])

    def _pruned(self, queries: Hashes, found: list[Indices], most: int | None) -> Indices:
        """Pairs, each the number query * hashes + hash, once each and at most so many of a query; ascending."""
        pairs = np.unique(np.concatenate(found))
        if most is None or not len(pairs):
            return pairs
        asked, items = np.divmod(pairs, len(self.hashes))
        return pairs[nearest(asked, distance(queries[asked], self.hashes[items]), most)]

    def _bucketed(self, queries: Hashes, part: int, radius: int) -> Iterator[tuple[Indices, Indices]]:
        """Query and hash indices that share a bucket of one part, in chunks."""
        starts, order = self._starts[part], self._order[part]
        buckets = _parts(queries)[:, part][:, None] ^ _flips(radius // _PARTS)
        sizes = starts[buckets.astype(np.int32) + 1] - starts[buckets]
        asked, bucket = np.nonzero(sizes)
        buckets, sizes = buckets[asked, bucket], sizes[asked, bucket].astype(np.int64)
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


def nearest(asked: Indices, apart: NDArray[np.uint8], most: int) -> Indices:
    """The places of each query's `most` nearest finds, ascending; of equally near ones the earlier."""
    order = np.lexsort((apart, asked))
    counts = np.unique(asked, return_counts=True)[1]
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[rank < most])


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
