"""The images of benchmarks, which must not be trained on: as pictures, or as lists of names where there are none."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from granvit.corpus.annotate.source_files import InputFile
from granvit.corpus.annotate.sources import open_source
from granvit.corpus.fingerprint import SIDE, Thumbs
from granvit.corpus.fingerprinting import fingerprint
from granvit.corpus.importers.pictures import pictures
from granvit.corpus.layout import MANIFEST, CorpusError
from granvit.corpus.quarantine import Refused, Rejection
from granvit.regions import RegionImage

LISTS = (".txt", ".json", ".jsonl", ".txt.gz", ".json.gz", ".jsonl.gz")

# In the order of preference: a file name says more than a number.
_NAME_FIELDS = ("file_name", "img_path", "image_path", "image", "uri", "image_id", "id")
_COCO_NUMBER = re.compile(r"(?:^|\D)(\d{12})$")


@dataclass
class BenchmarkImages:
    """What is known of the images of one or several benchmarks.

    Attributes:
        names: of those with pictures.
        thumbs: their thumbnails, shape (N, SIDE, SIDE).
        by_sha256: index by the checksum of the image file.
        listed: for every key by which a listed image is known (see `keys`), its name in the list.
        problems: pictures that could not be read: name and reason.
    """

    names: list[str] = field(default_factory=list)
    thumbs: Thumbs = field(default_factory=lambda: np.empty((0, SIDE, SIDE), np.uint8))
    by_sha256: dict[bytes, int] = field(default_factory=dict)
    listed: dict[str, str] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)


def keys(name: str) -> set[str]:
    """What an image of this file name or id may be called in a list: its COCO number, or the name without folder and
    ending. COCO's numbers are the twelve digits at the end of "COCO_train2014_000000123456.jpg" and
    "000000123456.jpg"; a name of fewer digits, like "1.jpg", is a name."""
    stem = PurePosixPath(name.replace("\\", "/")).name
    stem = stem.rpartition(".")[0] or stem
    number = _COCO_NUMBER.search(stem)
    return {f"coco:{int(number[1])}"} if number else {f"name:{stem.casefold()}"}


def load_benchmarks(places: Iterable[Path], workers: int = 0) -> BenchmarkImages:
    """The images of benchmarks, each a corpus, a folder of pictures, Parquet or tars with pictures, or lists of names.

    A list is a text file with a name or number on each line, JSON lines, or JSON: an array, or an object with an array
    "images", as COCO has. Names stand in the field file_name, img_path, image_path, image, uri, image_id or id,
    whichever comes first. Numbers are COCO's image ids. A folder without pictures may hold several lists. Any list may
    be compressed with gzip.

    Raises:
        CorpusError: a place does not exist or holds neither, or a list is damaged.
    """
    found = BenchmarkImages()
    thumbs: list[Thumbs] = [found.thumbs]
    for place in places:
        if lists := _lists(place):
            for file in lists:
                _read_list(file, found.listed)
            continue
        for batch in fingerprint(_records(place, found), workers):
            for i, record in enumerate(batch.records):
                problem = batch.problems[i]
                if problem is not None:
                    found.problems.append((record.id, problem))
                    continue
                found.by_sha256.setdefault(batch.sha256[i], len(found.names))
                found.names.append(record.id)
                thumbs.append(batch.thumbs[i : i + 1])
    found.thumbs = np.concatenate(thumbs)
    if not found.names and not found.listed:
        raise CorpusError(f"no benchmark image to compare with: {len(found.problems)} could not be read")
    return found


def _lists(place: Path) -> list[Path]:
    if not place.exists():
        raise CorpusError(f"{place} does not exist")
    if place.is_file():
        return [place] if place.name.lower().endswith(LISTS) else []
    if (place / MANIFEST).exists() or any(pictures(place)):
        return []
    return sorted(file for file in place.iterdir() if file.name.lower().endswith(LISTS))


def _records(place: Path, found: BenchmarkImages) -> Iterator[RegionImage]:
    source = open_source(place, follow_links=True)
    for file in source.files():
        if isinstance(file, Rejection):
            found.problems.append((file.uri, file.reason))
        if not isinstance(file, InputFile):
            continue
        for index in range(file.images):
            try:
                yield source.read(file.name, index)
            except Refused as refused:
                found.problems.append((f"{file.name}#{index}", refused.reason))


def _read_list(file: Path, listed: dict[str, str]) -> None:
    try:
        data = file.read_bytes()
        text = (gzip.decompress(data) if file.name.endswith(".gz") else data).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise CorpusError(f"{file}: {error}") from error
    kind = file.name.lower().removesuffix(".gz").rpartition(".")[2]
    for number, entry in enumerate(_entries(file, kind, text), start=1):
        name = _name(entry)
        if name is None:
            raise CorpusError(f"{file}: entry {number} has none of the fields {', '.join(_NAME_FIELDS)}")
        for key in {f"coco:{int(name)}"} if name.isdecimal() else keys(name):
            listed.setdefault(key, name)


def _entries(file: Path, kind: str, text: str) -> list[Any]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
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
    if isinstance(entry, dict):
        entry = next((entry[name] for name in _NAME_FIELDS if name in entry), None)
    return str(entry) if isinstance(entry, str | int) and str(entry).strip() else None
