"""Benchmark images in a training corpus: found by name, by file and by looks, listed, and left out if wanted.

The benchmark's images are held in memory, 9 KB each; the corpus streams past them, so its size costs time alone.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from granvit.corpus.benchmark_images import BenchmarkImages, keys
from granvit.corpus.copies import CopyFinder
from granvit.corpus.fingerprint import featureless
from granvit.corpus.fingerprinting import FEATURELESS, Batch, FingerprintFile, fingerprint, store_fingerprints
from granvit.corpus.parts import write_part
from granvit.corpus.store import Corpus
from granvit.files import write_text
from granvit.regions import RegionImage

# From which agreement an image counts as a copy. Of 1,814 photos (benchmarks/leakage.py) all others stay below 0.15,
# and more than 99 of 100 copies that were cropped by a tenth, halved, mirrored and recompressed reach it.
SIMILARITY = 0.4


@dataclass(frozen=True)
class Leak:
    """An image of the corpus that a benchmark has too.

    Attributes:
        id, uri, source: of the image.
        how: "name": a list has its name; "file": the same bytes; "picture": a copy of some kind.
        benchmark: the benchmark image's id, or its name in the list.
        similarity: of pictures, in [0, 1]; see `granvit.corpus.alignment.agreement`.
        mirrored: whether it is flipped left to right.
    """

    id: str
    uri: str
    source: str
    how: Literal["name", "file", "picture"]
    benchmark: str
    similarity: float | None = None
    mirrored: bool = False


@dataclass
class LeakageReport:
    """What was found.

    Attributes:
        images: how many images were looked at.
        leaks: by corpus order; an image may be a copy of several benchmark images.
        unseen: images whose picture could not be compared, by reason; their names and, if blank, files were.
    """

    images: int = 0
    leaks: list[Leak] = field(default_factory=list)
    unseen: Counter[str] = field(default_factory=Counter)

    @property
    def ids(self) -> list[str]:
        """The ids of the leaked images, each once, in order."""
        return list(dict.fromkeys(leak.id for leak in self.leaks))

    def to_json(self) -> dict[str, Any]:
        """Counts by how and by source, and every leak."""
        first = {leak.id: leak for leak in reversed(self.leaks)}
        return {
            "images": self.images,
            "leaked": len(first),
            "by_how": dict(Counter(leak.how for leak in first.values())),
            "by_source": dict(Counter(leak.source for leak in first.values())),
            "unseen": dict(+self.unseen),
            "leaks": [asdict(leak) for leak in self.leaks],
        }

    def write(self, path: Path) -> Path:
        """Write the numbers to `path` and, beside it, the ids alone, one on each line. Returns the second file."""
        ids = path.with_suffix(".txt")
        texts = {
            path: json.dumps(self.to_json(), indent=1, ensure_ascii=False),
            ids: "".join(f"{i}\n" for i in self.ids),
        }
        for file, text in texts.items():
            write_text(file, text)
        return ids


def find_leaks(
    corpus: Corpus,
    benchmarks: BenchmarkImages,
    *,
    similarity: float = SIMILARITY,
    fingerprints: Path | None = None,
    workers: int = 0,
    progress: bool = False,
) -> LeakageReport:
    """Look for benchmark images in a corpus.

    Found are the same files, and pictures that were resized, recompressed, mirrored, cropped by up to a tenth along
    each axis (a fifth, less reliably), or all of it; and where the benchmark is a cropped copy of the corpus's image.

    Args:
        similarity: from which agreement a picture is a copy. Forms and receipts in the same layout reach 0.9.
        fingerprints: a file with the corpus's fingerprints, or to keep them in; None computes them in passing.
        workers: threads that decode; 0 for one per core.
        progress: show a progress bar.

    Raises:
        CorpusError: the corpus cannot be read, or `fingerprints` are another corpus's.
    """
    report = LeakageReport()
    bar = tqdm(desc="compare", total=len(corpus), unit=" images", disable=not progress)
    if not benchmarks.names:
        for record in corpus.records():
            report.images += 1
            report.leaks += _by_name(record, benchmarks)
            bar.update()
        return report
    finder = CopyFinder(benchmarks.thumbs)
    for batch in _fingerprinted(corpus, fingerprints, workers):
        report.images += len(batch.records)
        report.unseen.update(problem for problem in batch.problems if problem is not None)
        blank = featureless(batch.thumbs).tolist()
        report.unseen[FEATURELESS] += sum(b for b, p in zip(blank, batch.problems, strict=True) if p is None)
        leaks: list[list[Leak]] = [_by_name(record, benchmarks) for record in batch.records]
        for found, record, digest in zip(leaks, batch.records, batch.sha256, strict=True):
            if digest in benchmarks.by_sha256:
                name = benchmarks.names[benchmarks.by_sha256[digest]]
                found.append(Leak(record.id, record.uri, record.source, "file", name, 1.0))
        for copy in finder.search(batch.thumbs, similarity):
            record, name = batch.records[copy.picture], benchmarks.names[copy.original]
            found = leaks[copy.picture]
            if name not in (leak.benchmark for leak in found):
                score = round(copy.similarity, 3)
                found.append(Leak(record.id, record.uri, record.source, "picture", name, score, copy.mirrored))
        report.leaks += [leak for found in leaks for leak in found]
        bar.update(len(batch.records))
    return report


def _by_name(record: RegionImage, benchmarks: BenchmarkImages) -> list[Leak]:
    listed = benchmarks.listed
    names = dict.fromkeys(listed[key] for key in sorted(keys(record.id) | keys(record.uri)) if key in listed)
    return [Leak(record.id, record.uri, record.source, "name", name) for name in names]


def _fingerprinted(corpus: Corpus, kept: Path | None, workers: int) -> Iterator[Batch]:
    if kept is None:
        return fingerprint(corpus, workers)
    file = FingerprintFile(kept, corpus) if kept.exists() else store_fingerprints(corpus, kept, None, workers)
    return file.batches(corpus)


def write_without(corpus: Corpus, ids: Sequence[str], out: Path, overwrite: bool = False) -> int:
    """Write the corpus without the images of these ids to `out`; returns how many images it has.

    Raises:
        CorpusError: `out` is in use, or nothing is left.
    """
    left_out = set(ids)
    clean = (record for record in corpus if record.id not in left_out)
    return write_part(corpus, clean, out, {"without_benchmark_images": len(left_out)}, overwrite)
