"""What did not enter a corpus: counted by source and reason, with examples of each."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from granvit.corpus.check import Rejection
from granvit.sampling import lowest_by_hash

EXAMPLES = 8


@dataclass
class Refusals:
    """The quarantine of a corpus.

    Attributes:
        counts: source -> reason -> how many; the source is "" where the entry doesn't tell.
        examples: up to `EXAMPLES` of each source and reason, as (source, rejection).
    """

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    examples: list[tuple[str, Rejection]] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(counts.total() for counts in self.counts.values())

    @property
    def reasons(self) -> list[str]:
        """All that occur, in alphabetical order."""
        return sorted({reason for counts in self.counts.values() for reason in counts})

    def to_json(self) -> dict[str, Any]:
        """Counts and examples as JSON-able values."""
        return {
            "total": self.total,
            "counts": {source: dict(counts.most_common()) for source, counts in self.counts.items()},
            "examples": [{"source": source, **asdict(rejection)} for source, rejection in self.examples],
        }


def count_refusals(rejections: Iterable[Rejection], sources: Iterable[str], seed: int) -> Refusals:
    """Count rejections and choose examples by a hash; none but the examples are kept in memory.

    Ids begin with their source's name, by which a rejection is given to one of `sources`.
    """
    # Longest first: "coco" must not take what is of "coco/val".
    names = sorted((name for name in sources if name), key=lambda name: (-len(name), name))
    counts: dict[str, Counter[str]] = defaultdict(Counter)

    def counted() -> Iterator[tuple[tuple[int, Rejection], tuple[str, str], str]]:
        for number, rejection in enumerate(rejections):
            source = next((name for name in names if rejection.id.startswith(name + "/")), "")
            counts[source][rejection.reason] += 1
            yield (number, rejection), (source, rejection.reason), f"{seed}/{number}/{rejection.id}"

    chosen = lowest_by_hash(counted(), EXAMPLES)
    examples = [
        (source, rejection)
        for (source, _), some in sorted(chosen.items())
        for _, rejection in sorted(some, key=lambda numbered: numbered[0])
    ]
    return Refusals(dict(sorted(counts.items())), examples)
