"""Benchmark images in a training corpus: found by name, checksum and image similarity, listed, and left out if wanted.

A benchmark is given as pictures, or as lists of names where there are none. Its images are held in memory, 9 KB each;
the corpus streams past them, so its size costs time alone.
"""

from __future__ import annotations

import gzip
import json
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from granvit.corpus.annotate.base import InputFile
from granvit.corpus.annotate.sources import open_source, open_sources
from granvit.corpus.check import Refused, Rejection
from granvit.corpus.dedup.copy_search import CopyFinder
from granvit.corpus.dedup.perceptual_hash import (
    FEATURELESS,
    NO_BYTES,
    NO_PICTURE,
    SIDE,
    Batch,
    FingerprintFile,
    Thumbs,
    featureless,
    fingerprint,
    store_fingerprints,
)
from granvit.corpus.derive import write_part
from granvit.corpus.importers.image_folder import RAW_SUFFIXES, SUFFIXES, UNSUPPORTED_SUFFIXES, listing
from granvit.corpus.layout import MANIFEST, CorpusError
from granvit.corpus.store import Corpus
from granvit.files import open_regular, read_regular, write_text
from granvit.regions import RegionImage, picture_id

# A list of names: RefCOCO's have a few MB.
_LONGEST_LIST = 1 << 30

# Pictures in these are not compared.
_UNREAD_ARCHIVES = (".zip", ".7z", ".rar", ".tar.zst", ".tar.bz2", ".tar.xz", ".tbz2", ".txz")
UNREAD_ARCHIVE = "archive-not-read"

_COCO_DIGITS = 12
# Numbers of fewer digits are many a file's name.
_LEAST_NAME = 6
_TELLS_LITTLE = re.compile(rf"name:0*\d{{1,{_LEAST_NAME - 1}}}")
LISTS = (".txt", ".json", ".jsonl", ".txt.gz", ".json.gz", ".jsonl.gz")

# In the order of preference: a file name says more than a number.
_NAME_FIELDS = ("file_name", "img_path", "image_path", "image", "uri", "image_id", "id")
# What a file name may end on that is not part of the picture's name. "2101.00001" has no ending.
_ENDINGS = (*SUFFIXES, *UNSUPPORTED_SUFFIXES, *RAW_SUFFIXES, ".txt", ".json", ".xml", ".csv", ".npy", ".mat")
# REFER's names have an annotation's number behind COCO's, which begin with six zeros; photos' dates do not.
_QUERY = re.compile(r"[?#].*")
_EARLIER_TILE = re.compile(r"(?:(?<=\.\w{3})|(?<=\.\w{4}))@\d+,\d+$")  # a picture file's, sure to be one
_COCO_NUMBER = re.compile(r"(?:^|\D)(\d{12}$|0{6}\d{6}(?=_\d+$))")


@dataclass
class Benchmark:
    """One of the benchmarks, and how many of its images are compared: by their pictures, as names of a list, and by
    name alone because a corpus has no file of them."""

    place: str
    pictures: int = 0
    listed: int = 0
    by_name_alone: int = 0


@dataclass
class BenchmarkImages:
    """What is known of the images of one or several benchmarks.

    Attributes:
        names: of those with pictures.
        thumbs: their thumbnails, shape (N, SIDE, SIDE).
        by_sha256: index by the checksum of the image file.
        listed: for every key by which an image without a picture is known (see `keys`), its name in a list, or its id.
        problems: images that are not compared at all: name and reason.
        benchmarks: each of them, with counts.
    """

    names: list[str] = field(default_factory=list)
    thumbs: Thumbs = field(default_factory=lambda: np.empty((0, SIDE, SIDE), np.uint8))
    by_sha256: dict[bytes, int] = field(default_factory=dict)
    listed: dict[str, str] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    benchmarks: list[Benchmark] = field(default_factory=list)

    def add_unpictured(self, record: RegionImage) -> bool:
        """Let an image of which there is no file be known by its id and URI; gives whether they tell it from others."""
        known = {key for key in _keys_of(record) if not _TELLS_LITTLE.fullmatch(key)}
        for key in known:
            self.listed.setdefault(key, record.id)
        return bool(known)


def keys(name: str) -> set[str]:
    """What an image of this file name, URL or id may be called in a list: its COCO number, or the name without folder
    and ending, in Unicode's composed form and whatever its case; nothing where there is no name. COCO's numbers are
    the twelve digits at the end of "COCO_train2014_000000123456.jpg", "000000123456.jpg" and RefCOCO's
    "COCO_train2014_000000123456_16.jpg"; a name of fewer digits, like "1.jpg", is a name. Endings are those of
    pictures and annotations, so that "2101.00001" stays whole."""
    path = picture_id(_QUERY.sub("", name) if "://" in name else name, earlier=False)
    path = _EARLIER_TILE.sub("", path)
    stem = unicodedata.normalize("NFC", PurePosixPath(path.replace("\\", "/")).name)
    ending = next((ending for ending in _ENDINGS if stem.lower().endswith(ending)), "")
    stem = stem[: -len(ending)] if 0 < len(ending) < len(stem) else stem
    number = _COCO_NUMBER.search(stem)
    if number:
        return {f"coco:{int(number[1])}"}
    return {f"name:{unicodedata.normalize('NFC', stem.casefold())}"} if stem else set()


def _keys_of(record: RegionImage) -> set[str]:
    return keys(record.id) | keys(record.uri)


def load_benchmarks(places: Iterable[Path], workers: int = 0) -> BenchmarkImages:
    """The images of benchmarks, each a corpus, a folder of pictures, Parquet or tars with pictures, or lists of names.

    Pictures, Parquet and tars may lie side by side in a folder; texts beside them are not taken for lists.

    A list is a text file with a name or number on each line, JSON lines, or JSON: an array, or an object with an array
    "images", as COCO has. Names stand in the field file_name, img_path, image_path, image, uri, image_id or id,
    the first that holds one. Numbers are COCO's image ids. A folder without pictures may hold several lists. Any list
    may be compressed with gzip.

    Images of a corpus that has no files of them are compared by id and URI, unless these are short numbers, which
    are many a file's name.

    Raises:
        CorpusError: a place does not exist, holds neither or no image that can be compared, or a list is damaged.
    """
    found = BenchmarkImages()
    thumbs: list[Thumbs] = [found.thumbs]
    for place in places:
        benchmark = Benchmark(str(place))
        found.benchmarks.append(benchmark)
        if lists := _lists(place):
            benchmark.listed = sum(_read_list(file, found.listed) for file in lists)
            _check_some(benchmark, [])
            continue
        known = len(found.problems)
        for batch in fingerprint(_records(place, found), workers):
            for i, record in enumerate(batch.records):
                problem = batch.problems[i]
                if problem == NO_PICTURE:
                    continue
                if problem == NO_BYTES and found.add_unpictured(record):
                    benchmark.by_name_alone += 1
                    continue
                if problem is not None:
                    found.problems.append((record.id, problem))
                    continue
                found.by_sha256.setdefault(batch.sha256[i], len(found.names))
                found.names.append(record.id)
                benchmark.pictures += 1
                thumbs.append(batch.thumbs[i : i + 1])
        _check_some(benchmark, found.problems[known:])
    found.thumbs = np.concatenate(thumbs)
    return found


def _check_some(benchmark: Benchmark, problems: list[tuple[str, str]]) -> None:
    """Raises a CorpusError where nothing of a benchmark can be compared with anything."""
    if not (benchmark.pictures or benchmark.listed or benchmark.by_name_alone):
        counts = Counter(reason for _, reason in problems).most_common()
        why = f": {', '.join(f'{reason} {count}' for reason, count in counts)}" if counts else ""
        raise CorpusError(f"{benchmark.place}: no benchmark image to compare with{why}")


def _lists(place: Path) -> list[Path]:
    if not place.exists():
        raise CorpusError(f"{place} does not exist")
    if not place.is_dir():
        return [place] if place.name.lower().endswith(LISTS) else []
    lists = sorted(file for file in place.iterdir() if file.name.lower().endswith(LISTS))
    if not lists or (place / MANIFEST).exists():
        return []
    try:
        open_source(place, follow_links=True)
    except CorpusError:
        return lists
    return []  # beside pictures of whatever kind a text is more likely a licence than a list


def _records(place: Path, found: BenchmarkImages) -> Iterator[RegionImage]:
    if place.is_dir() and not (place / MANIFEST).exists():
        archives = (name for name, _ in listing(place) if name.lower().endswith(_UNREAD_ARCHIVES))
        found.problems += [(name, UNREAD_ARCHIVE) for name in archives]
    for source in open_sources(place, follow_links=True):
        for file in source.files():
            if isinstance(file, Rejection):
                found.problems.append((file.uri, file.reason))
            # What one source leaves out is no picture, or another one's.
            if not isinstance(file, InputFile):
                continue
            for index in range(file.images):
                try:
                    yield source.read(file.name, index)
                except Refused as refused:
                    found.problems.append((f"{file.name}#{index}", refused.reason))


def _unpacked(file: Path) -> bytes:
    """The bytes of a list of names, unpacked where it is packed; at most `_LONGEST_LIST`."""
    if not file.name.endswith(".gz"):
        return read_regular(file, _LONGEST_LIST)
    with open_regular(file) as stored, gzip.open(stored) as packed:
        data = packed.read(_LONGEST_LIST + 1)
    if len(data) > _LONGEST_LIST:
        raise CorpusError(f"{file}: unpacks to more than {_LONGEST_LIST} bytes")
    return data


def _read_list(file: Path, listed: dict[str, str]) -> int:
    """Add the names of a list to those that are known; gives how many images it names."""
    try:
        text = _unpacked(file).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise CorpusError(f"{file}: {error}") from error
    kind = file.name.lower().removesuffix(".gz").rpartition(".")[2]
    named: set[str] = set()
    for number, entry in enumerate(_entries(file, kind, text), start=1):
        name = _name(entry)
        if name is None:
            raise CorpusError(f"{file}: entry {number} has none of the fields {', '.join(_NAME_FIELDS)}")
        found = keys(name)
        if name.isdecimal() and len(name) <= _COCO_DIGITS:
            # COCO's number; a long one may be the name of a file as well, as Flickr30k's are.
            found = {f"coco:{int(name)}"} | (found if len(name.lstrip("0")) >= _LEAST_NAME else set())
        named.add(name)
        for key in found:
            listed.setdefault(key, name)
    return len(named)


def _entries(file: Path, kind: str, text: str) -> list[Any]:
    # Not `splitlines`, which also cuts at characters that occur inside texts.
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
    if kind == "txt":
        return lines
    try:
        if kind == "jsonl":
            return [json.loads(line) for line in lines]
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{file}: {error}") from error
    images = value.get("images") if isinstance(value, dict) else value
    if not isinstance(images, list):
        raise CorpusError(f'{file}: an array is expected, or an object with an array "images"')
    return images


def _name(entry: Any) -> str | None:
    """The name or number in an entry of a list: of its fields the first that holds one, or None."""
    if isinstance(entry, dict):
        return next((named for name in _NAME_FIELDS if (named := _name_in(entry.get(name)))), None)
    return _name_in(entry)


def _name_in(value: Any) -> str | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas writes the whole numbers of a column with gaps so
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip() else None


# From which agreement an image counts as a copy. Of 1,814 photos (benchmarks/leakage.py) all others stay below 0.15,
# and more than 99 of 100 copies that were cropped by a tenth, halved, mirrored and recompressed reach it.
SIMILARITY = 0.4
SHOWN_NAMES = 100


def ids_beside(report: Path) -> Path:
    """The file of ids beside a report."""
    return report.with_suffix(".txt")


@dataclass(frozen=True)
class Leak:
    """An image of the corpus that a benchmark has too.

    Attributes:
        id, uri, source: of the image.
        how: "name": a list, or a benchmark without pictures, has its name; "file": the same bytes; "picture": a copy
            of some kind.
        benchmark: the benchmark image's id, or its name in a list.
        similarity: of pictures, in [0, 1]; see `granvit.corpus.dedup.copy_search.agreement`.
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
        against: the benchmarks.
        similarity: from which agreement a picture counted as a copy; None where no benchmark has pictures.
        not_compared: benchmark images that nothing was compared with, name and reason.
    """

    images: int = 0
    leaks: list[Leak] = field(default_factory=list)
    unseen: Counter[str] = field(default_factory=Counter)
    against: list[Benchmark] = field(default_factory=list)
    similarity: float | None = None
    not_compared: list[tuple[str, str]] = field(default_factory=list)

    @property
    def ids(self) -> list[str]:
        """The ids of the leaked images, each once, in order."""
        return list(dict.fromkeys(leak.id for leak in self.leaks))

    def to_json(self) -> dict[str, Any]:
        """What was compared with what, counts by how and by source, and every leak. Of the benchmark images that were
        not compared all are counted, and `SHOWN_NAMES` of each reason named."""
        first = {leak.id: leak for leak in reversed(self.leaks)}
        missed: dict[str, list[str]] = {}
        for name, reason in self.not_compared:
            missed.setdefault(reason, []).append(name)
        return {
            "against": [asdict(benchmark) for benchmark in self.against],
            "similarity": self.similarity,
            "not_compared": {
                reason: {"images": len(names), "names": names[:SHOWN_NAMES]} for reason, names in missed.items()
            },
            "images": self.images,
            "leaked": len(first),
            "by_how": dict(Counter(leak.how for leak in first.values())),
            "by_source": dict(Counter(leak.source for leak in first.values())),
            "unseen": dict(+self.unseen),
            "leaks": [asdict(leak) for leak in self.leaks],
        }

    def write(self, path: Path) -> Path:
        """Write the numbers to `path` and, beside it, the ids alone, one on each line. Returns the second file."""
        ids = ids_beside(path)
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
    report = LeakageReport(
        against=benchmarks.benchmarks,
        similarity=similarity if benchmarks.names else None,
        not_compared=benchmarks.problems,
    )
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
        report.unseen.update(problem for problem in batch.problems if problem not in (None, NO_PICTURE))
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
    names = dict.fromkeys(listed[key] for key in sorted(_keys_of(record)) if key in listed)
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
