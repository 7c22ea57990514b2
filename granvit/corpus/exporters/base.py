"""What exporters share: the registry, pictures as files, and JSON lists that need not fit the memory."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeVar

from granvit.corpus.layout import CorpusError
from granvit.images import as_plain_file
from granvit.regions import SPLITS, RegionImage


@dataclass
class ExportSummary:
    """What an export wrote, and what it left out for which reason.

    Attributes:
        images, regions: how many were written.
        skipped: images and regions that were not, and questions that could not be asked, by reason.
    """

    images: int = 0
    regions: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = [f"images   {self.images} written", f"regions  {self.regions} written"]
        return "\n".join(lines + [f"  left out  {count:>7}  {reason}" for reason, count in self.skipped.most_common()])


class Exporter(Protocol):
    """A function that writes one layout into the empty folder `out`.

    Its docstring states the layout and how boxes are written there. `records` all have their pictures. File names are
    numbers: an id may hold whatever a source put there.
    """

    def __call__(self, records: Iterable[RegionImage], out: Path, **options: Any) -> ExportSummary: ...


EXPORTERS: dict[str, Exporter] = {}

_Writer = TypeVar("_Writer", bound=Callable[..., ExportSummary])


def exporter(name: str) -> Callable[[_Writer], _Writer]:
    """Enter the decorated function into `EXPORTERS`."""

    def register(writer: _Writer) -> _Writer:
        EXPORTERS[name] = writer
        return writer

    return register


def part_of(record: RegionImage) -> str:
    """The name of the part that a record belongs to: its split, or "all" where it has none. Files are called so.

    Raises:
        CorpusError: the split is none that there is, and could lead anywhere.
    """
    if record.split not in SPLITS:
        raise CorpusError(f"record {record.id!r}: split is {record.split!r}")
    return record.split or "all"


def save_picture(record: RegionImage, folder: Path, number: int) -> str:
    """Write the picture of a record as number `number` of `folder`; the file's name."""
    assert record.image is not None, "records to export have their pictures"
    data, ending = as_plain_file(record.image)
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{number:08d}{ending}"
    (folder / name).write_bytes(data)
    return name


class JsonRows:
    """The elements of a JSON list, kept on the disk until the list is written. Use as a context manager.

    Args:
        folder: where the unnamed file for them is made.
    """

    def __init__(self, folder: Path) -> None:
        self.count = 0
        self._file = tempfile.TemporaryFile("w+", encoding="utf-8", dir=folder)

    def __enter__(self) -> JsonRows:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, value: Any) -> None:
        self._file.write((",\n" if self.count else "") + json.dumps(value, ensure_ascii=False))
        self.count += 1

    def write_to(self, out: TextIO) -> None:
        """Write the list of all elements so far."""
        self._file.seek(0)
        out.write("[\n")
        shutil.copyfileobj(self._file, out)
        out.write("\n]")


def write_object(file: Path, members: dict[str, Any]) -> None:
    """A JSON object whose members are values or `JsonRows`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as out:
        for index, (name, value) in enumerate(members.items()):
            out.write(("{" if index == 0 else ",\n") + f"{json.dumps(name)}: ")
            if isinstance(value, JsonRows):
                value.write_to(out)
            else:
                json.dump(value, out, ensure_ascii=False)
        out.write("}\n")
