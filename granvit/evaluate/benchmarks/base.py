"""What benchmark readers share: the registry, finding files, and careful readers for untrusted files."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from granvit.corpus.check import Refused
from granvit.corpus.importers.base import read_image, read_json
from granvit.errors import GranvitError
from granvit.evaluate.items import EvalImage, EvalSet, Item, Task
from granvit.files import read_regular

# The questions of a benchmark; pictures in them count.
_LONGEST_FILE = 8 << 30


class Reader(Protocol):
    """A function that reads one benchmark's published files.

    Its docstring states the layout, in its first line what SRC is. It takes the place and the folder of the pictures,
    None where they lie as published. A row that is damaged is left out, counted and named in the set's notes; where
    nothing is left, or the file is of another layout, it raises `GranvitError` that names the file and what is wrong.
    """

    def __call__(self, src: Path, images: Path | None) -> EvalSet: ...


BENCHMARKS: dict[str, Reader] = {}


def benchmark(name: str) -> Callable[[Reader], Reader]:
    """Enter the decorated function into `BENCHMARKS`."""

    def register(reader: Reader) -> Reader:
        BENCHMARKS[name] = reader
        return reader

    return register


def open_benchmark(name: str, src: Path, images: Path | None = None) -> EvalSet:
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


class BadRow(GranvitError):
    """A question that can't be asked; the message says where it is and why."""


class LeftOut:
    """The rows of a benchmark that can't be asked; each is read within `row`."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    @contextmanager
    def row(self) -> Iterator[None]:
        """Notes a `BadRow` that is raised within, and goes on behind."""
        try:
            yield
        except BadRow as error:
            self.reasons.append(str(error))

    def note(self, name: str) -> str:
        """How many, and the first of them."""
        return f"{name}: {len(self.reasons):,} damaged rows are left out, such as {self.reasons[0]}"


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


def json_lines(file: Path, left_out: LeftOut) -> Iterator[tuple[str, Any]]:
    """Where each line that isn't empty is, for messages, and what it holds; what is no JSON is left out."""
    for number, line in enumerate(read_regular(file, _LONGEST_FILE).splitlines(), start=1):
        if line.strip():
            where = f"{file}: line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                left_out.reasons.append(f"{where}: {error}")
            else:
                yield where, row


def value(row: Any, name: str, kinds: type | tuple[type, ...], where: str) -> Any:
    """A field of a question.

    Raises:
        BadRow: it is missing or of another type.
    """
    if not isinstance(row, dict) or not isinstance(row.get(name), kinds) or isinstance(row[name], bool):
        raise BadRow(f"{where}: the field {name!r} is missing or not as published")
    return row[name]


def texts(row: Any, name: str, where: str) -> list[str]:
    """A field that holds one text or several, all of them right answers.

    Raises:
        BadRow: it is missing, empty or holds something else.
    """
    found = value(row, name, (str, list, int, float), where)
    answers = found if isinstance(found, list) else [found]
    plain = all(isinstance(answer, str | int | float) and not isinstance(answer, bool) for answer in answers)
    if not plain or not any(str(answer).strip() for answer in answers):
        raise BadRow(f"{where}: the field {name!r} holds no answers")
    return [str(answer) for answer in answers]


def check_some(items: Sequence[Item], left_out: LeftOut, none: str) -> None:
    """Whether anything of a file can be asked.

    Raises:
        GranvitError: nothing can; because of the last damaged row, or as `none` says where there is no such.
    """
    if not items:
        raise GranvitError(left_out.reasons[-1] if left_out.reasons else none)


def eval_set_of(
    name: str,
    tasks: Sequence[Task],
    items: Sequence[Item],
    left_out: LeftOut,
    loader: Callable[[str], Callable[[], bytes]],
) -> EvalSet:
    """Items gathered by image, images in order of their first question. `loader` tells how an image's file is read."""
    by_image: dict[str, list[Item]] = defaultdict(list)
    keys: set[tuple[str, str]] = set()
    for item in items:
        if (item.task, item.key) in keys:
            left_out.reasons.append(f"{item.task}: the question {item.key!r}, of which there are several")
        else:
            keys.add((item.task, item.key))
            by_image[item.id].append(item)

    def images() -> Iterator[EvalImage]:
        return (EvalImage(image, loader(image), [replace(item) for item in mine]) for image, mine in by_image.items())

    notes = [left_out.note(name)] if left_out.reasons else []
    return EvalSet(name, tasks, images, image_count=len(by_image), notes=notes)
