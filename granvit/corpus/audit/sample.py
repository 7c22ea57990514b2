"""Which images a person looks at: chosen by a hash, so that anyone can choose them again."""

from __future__ import annotations

import hashlib
import heapq
from collections import defaultdict
from collections.abc import Iterable


def sample(images: Iterable[tuple[int, str, str]], count: int, seed: int) -> list[int]:
    """The positions of up to `count` images, spread evenly over the sources.

    Within a source, those whose hash with the seed is smallest: the choice depends neither on the order of the corpus
    nor on the machine, and an image added to the corpus changes it by one image at most.

    Args:
        images: (position, source, id) of each candidate.
    """
    smallest: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for position, source, id in images:
        heap = smallest[source]
        # Negated, so that the largest hash is on top of the heap: the first to go.
        heapq.heappush(heap, (-rank(seed, id), position))
        if len(heap) > count:
            heapq.heappop(heap)
    queues = [[position for _, position in sorted(heap, reverse=True)] for _, heap in sorted(smallest.items())]
    turns = [queue[turn] for turn in range(count) for queue in queues if turn < len(queue)]
    return turns[:count]


def rank(seed: int, name: str) -> int:
    """A number that depends on the seed and the name alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big")
