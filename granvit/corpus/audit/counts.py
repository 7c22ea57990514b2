"""What did not enter a corpus, by source and reason with examples; and how much of it is there more than once."""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from granvit.corpus.check import Rejection
from granvit.corpus.curate.curation import Curation
from granvit.corpus.dedup.copy_search import exact_groups, near_groups
from granvit.corpus.dedup.perceptual_hash import FingerprintFile, store_fingerprints
from granvit.corpus.store import Corpus
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


@dataclass
class Duplication:
    """Images of one source that show what another image of the corpus shows.

    Attributes:
        images: all of the source that could be compared; featureless ones and those without a file can't.
        exact: those of which an earlier image is the same file, byte by byte.
        near: those of which an earlier image shows the same picture, the exact ones included.
    """

    images: int = 0
    exact: int = 0
    near: int = 0

    @property
    def rate(self) -> float | None:
        """The share of images that could go without a picture being lost; None where none could be compared."""
        return self.near / self.images if self.images else None

    def to_json(self) -> dict[str, Any]:
        """Counts and rate."""
        return {**asdict(self), "rate": self.rate}


def count_duplicates(corpus: Corpus, kept: Path | None = None) -> dict[str, Duplication]:
    """Duplicates by source, found as curation finds them; images of two sources may be duplicates of each other.

    Every picture is decoded once, at reduced size. Their fingerprints, about 3 KB an image, go to a temporary file, or
    to the file `kept`, which is used as it is where it exists.

    Raises:
        CorpusError: the corpus can't be read, or `kept` holds another corpus's fingerprints.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = kept or Path(folder) / "fingerprints.parquet"
        return _count(corpus, FingerprintFile(path, corpus) if path.exists() else store_fingerprints(corpus, path))


def _count(corpus: Corpus, file: FingerprintFile) -> dict[str, Duplication]:
    sources = [record.source for record in corpus.records()]
    entries = np.arange(len(file.rows))
    known = entries[~np.isin(entries, list(file.problems))]
    counts = {source: Duplication() for source in dict.fromkeys(sources)}
    if not known.size:
        return counts
    for source, images in Counter(sources[row] for row in file.rows[known].tolist()).items():
        counts[source].images = images
    for row in _later(file, exact_groups(file.sha256, known)):
        counts[sources[row]].exact += 1
    for row in _later(file, near_groups(file, known, Curation.similarity)):
        counts[sources[row]].near += 1
    return counts


def _later(file: FingerprintFile, groups: Sequence[Sequence[int]]) -> list[int]:
    """The rows of all members of the groups but the first, which may stay."""
    return [int(file.rows[entry]) for group in groups for entry in group[1:]]
