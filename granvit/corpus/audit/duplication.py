"""How much of a corpus is there more than once: the same file, or the same picture in another file."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from granvit.corpus.curate.curation import Curation
from granvit.corpus.dedup.copy_search import exact_groups, near_groups
from granvit.corpus.dedup.perceptual_hash import FingerprintFile, store_fingerprints
from granvit.corpus.store import Corpus


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
