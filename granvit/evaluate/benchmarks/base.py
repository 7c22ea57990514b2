"""What benchmark readers share: the registry, finding files, and careful reading of what strangers wrote."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from granvit.corpus.importers.base import read_image, read_json
from granvit.corpus.quarantine import Refused
from granvit.errors import GranvitError
from granvit.evaluate.items import Item, Look, Source, Task


class Reader(Protocol):
    """A function that reads one benchmark's published files.

    Its docstring states the layout, in its first line what SRC is. It takes the place and the folder of the pictures,
    None where they lie as published. It raises `ValueError` that names the file and what is wrong with it: a benchmark
    is read whole or not at all.
    """

    def __call__(self, src: Path, images: Path | None) -> Source: ...


BENCHMARKS: dict[str, Reader] = {}


def benchmark(name: str) -> Callable[[Reader], Reader]:
    """Enter the decorated function into `BENCHMARKS`."""

    def register(reader: Reader) -> Reader:
        BENCHMARKS[name] = reader
        return reader

    return register


def open_benchmark(name: str, src: Path, images: Path | None = None) -> Source:
    """The questions of a benchmark.

    Raises:
        ValueError: there is no such benchmark, or nothing at `src`; what its reader finds wrong.
    """
    if name not in BENCHMARKS:
        raise GranvitError(f"unknown benchmark {name!r}: use one of {', '.join(sorted(BENCHMARKS))}")
    for place in filter(None, (src, images)):
        if not place.exists():
            raise GranvitError(f"{place} does not exist")
    return BENCHMARKS[name](src, images)


def find(src: Path, *patterns: str) -> list[Path]:
    """`src` itself where it is a file, or the files in it or right below by the first pattern that matches any.

    Raises:
        ValueError: none matches.
    """
    if src.is_file():
        return [src]
    for pattern in patterns:
        if files := sorted(chain(src.glob(pattern), src.glob(f"*/{pattern}"))):
            return files
    raise GranvitError(f"{src} holds none of {', '.join(patterns)}")


def picture_root(images: Path | None, base: Path, folders: Iterable[str], example: str) -> Path:
    """The folder of the pictures: `images`, or the first of `folders` below `base` that has `example`.

    Raises:
        ValueError: none has it.
    """
    places = [images] if images else [base / folder for folder in folders]
    for place in places:
        if (place / example).is_file():
            return place
    told = ", ".join(str(place) for place in places)
    raise GranvitError(f"no picture {example!r} in {told}; name the pictures' folder with --images")


def file_loader(root: Path, name: str) -> Callable[[], bytes]:
    """Gives the bytes of a picture file; its name comes from the data, so it must not lead out of `root`."""

    def load() -> bytes:
        try:
            return read_image(root, name)
        except Refused as refused:
            raise GranvitError(f"{refused.reason}: {refused.detail}") from refused

    return load


def rows_of(file: Path, key: str | None = None) -> list[Any]:
    """The list in a JSON file, under `key` where it is an object.

    Raises:
        ValueError: there is none, or an empty one.
    """
    content = read_json(file)
    rows = content.get(key) if key is not None and isinstance(content, dict) else content
    if not isinstance(rows, list) or not rows:
        raise GranvitError(f"{file}: a list of questions is expected" + (f' under "{key}"' if key else ""))
    return rows


def json_lines(file: Path) -> Iterator[tuple[str, Any]]:
    """Where each line that isn't empty is, for messages, and what it holds.

    Raises:
        ValueError: a line is no JSON.
    """
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        if line.strip():
            where = f"{file}: line {number}"
            try:
                yield where, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise GranvitError(f"{where}: {error}") from error


def value(row: Any, name: str, kinds: type | tuple[type, ...], where: str) -> Any:
    """A field of a question.

    Raises:
        ValueError: it is missing or of another type.
    """
    if not isinstance(row, dict) or not isinstance(row.get(name), kinds) or isinstance(row[name], bool):
        raise GranvitError(f"{where}: the field {name!r} is missing or not as published")
    return row[name]


def texts(row: Any, name: str, where: str) -> list[str]:
    """A field that holds one text or several, all of them right answers.

    Raises:
        ValueError: it is missing, empty or holds something else.
    """
    found = value(row, name, (str, list, int, float), where)
    answers = found if isinstance(found, list) else [found]
    if not answers or not all(isinstance(answer, str | int | float) for answer in answers):
        raise GranvitError(f"{where}: the field {name!r} holds no answers")
    return [str(answer) for answer in answers]


def source_of(
    name: str, tasks: Sequence[Task], items: Sequence[Item], loader: Callable[[str], Callable[[], bytes]]
) -> Source:
    """Items gathered by image, images in order of their first question. `loader` tells how an image's file is read."""
    by_image: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_image[item.id].append(item)

    def looks() -> Iterator[Look]:
        return (Look(image, loader(image), [replace(item) for item in mine]) for image, mine in by_image.items())

    return Source(name, tasks, looks, images=len(by_image))
