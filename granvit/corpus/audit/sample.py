"""Which images a person looks at: chosen by a hash, so that anyone can choose them again."""

from __future__ import annotations

from collections.abc import Iterable

from granvit.sampling import lowest_by_hash


def sample(images: Iterable[tuple[int, str, str]], count: int, seed: int) -> list[int]:
    """The positions of up to `count` images, spread evenly over the sources.

    Within a source, those whose hash with the seed is smallest: the choice depends neither on the order of the corpus
    nor on the machine, and an image added to the corpus changes it by one image at most.

    Args:
        images: (position, source, id) of each candidate.
    """
    lowest = lowest_by_hash(((position, source, f"{seed}/{id}") for position, source, id in images), count)
    queues = [queue for _, queue in sorted(lowest.items())]
    turns = [queue[turn] for turn in range(count) for queue in queues if turn < len(queue)]
    return turns[:count]
