"""Rank sharding: which samples of one stream each rank takes, and what remains when the number of ranks changes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import grain

# 2^64 over the golden ratio: multiples of it scatter evenly (Fibonacci hashing).
_GOLDEN = 0x9E3779B97F4A7C15


def _index_of(index: int, rank: int, world_size: int) -> int:
    """Where in the stream a rank's sample number `index` stands: of every `world_size` neighbours each rank gets one.

    In changing order, because a mixture is periodic: were it always the same neighbour, one rank could take all the
    documents and another all the photographs.
    """
    turn = (index * _GOLDEN % 2**64) >> 40
    return index * world_size + (rank + turn) % world_size


@dataclass(frozen=True)
class Remainder:
    """What is still to come of a stream after the number of ranks changed: stragglers, then all from `start` on.

    A rank that met more rejected records than the others is further on; stragglers are what the others had before them.
    """

    stragglers: tuple[int, ...] = ()
    start: int = 0

    def __getitem__(self, index: int) -> int:
        late = len(self.stragglers)
        return self.stragglers[index] if index < late else self.start + index - late

    def after(self, positions: Sequence[int]) -> Remainder:
        """What remains when rank r of `len(positions)` has taken the first `positions[r]` of its samples."""
        world, furthest = len(positions), max(positions)
        left = [_index_of(i, rank, world) for rank, taken in enumerate(positions) for i in range(taken, furthest)]
        end = furthest * world
        late = [self[index] for index in (*sorted(left), *range(end, len(self.stragglers)))]
        return Remainder(tuple(late), self[max(end, len(self.stragglers))])


class RankShard(grain.transforms.DatasetSelectionMap):
    """The samples of one rank among those that remain of the stream."""

    def __init__(self, rank: int, world_size: int, remainder: Remainder):
        self.rank, self.world_size, self.remainder = rank, world_size, remainder

    def __len__(self) -> int:
        return sys.maxsize // self.world_size - 1 - self.remainder.start

    def __getitem__(self, index: int) -> tuple[int, int]:
        return 0, self.remainder[_index_of(index, self.rank, self.world_size)]
