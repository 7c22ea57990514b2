"""Some of many things, chosen by a hash or evenly: the same ones on every machine and in every run."""

from __future__ import annotations

import hashlib
import heapq
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
G = TypeVar("G", bound=Hashable)


def unit_hash(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def lowest_by_hash(things: Iterable[tuple[T, G, str]], count: int) -> dict[G, list[T]]:
    """Of each group the `count` things whose names have the lowest hashes, lowest first.

    A smaller choice is part of a larger one, and neither the order of the things nor what else there is changes how one
    fares. No more things than are chosen are held in memory.

    Args:
        things: (thing, its group, its name) of each.
    """
    lowest: dict[G, list[tuple[float, int, T]]] = defaultdict(list)
    for number, (thing, group, name) in enumerate(things):
        heap = lowest[group]
        # Negated, so that the highest hash is on top of the heap: the first to go. Of equal ones the first stays.
        heapq.heappush(heap, (-unit_hash(name), -number, thing))
        if len(heap) > count:
            heapq.heappop(heap)
    return {
        group: [thing for *_, thing in sorted(heap, key=lambda e: e[:2], reverse=True)]
        for group, heap in lowest.items()
    }


def evenly(things: Sequence[T], limit: int) -> Iterator[T]:
    """At most so many of them, evenly spaced: a corpus's sources follow each other."""
    count = min(limit, len(things))
    return (things[index * len(things) // count] for index in range(count))
