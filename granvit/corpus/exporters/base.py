"""What exporters share: the registry, pictures as files, JSON lists that need not fit the memory; and running one.

An exporter writes into a hidden folder beside the place, which is renamed into it as a whole.
"""

from __future__ import annotations

import inspect
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeVar

from tqdm import tqdm

from granvit.corpus.layout import CorpusError
from granvit.corpus.store import Corpus
from granvit.errors import flag
from granvit.files import staged_folder, write_text
from granvit.images import as_plain_file
from granvit.regions import SPLITS, Region, RegionImage


@dataclass
class ExportSummary:
    """What an export wrote, and what it left out for which reason.

    Attributes:
        images, regions, conversations: how many were written.
        without_picture: how many of the images are conversations alone.
        skipped: images, regions and conversations that were not, and questions that could not be asked, by reason.
        not_kept: of how many regions or images the layout has no place for a field, by its name.
    """

    images: int = 0
    regions: int = 0
    conversations: int = 0
    without_picture: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    not_kept: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = [f"images   {self.images} written", f"regions  {self.regions} written"]
        if self.conversations:
            lines.append(f"conversations  {self.conversations} written")
        if self.without_picture:
            lines[0] += f" ({self.without_picture} without a picture, conversations alone)"
        lines += [f"  left out  {count:>7}  {reason}" for reason, count in self.skipped.most_common()]
        return "\n".join(lines + [f"  not kept  {count:>7}  {name}" for name, count in self.not_kept.most_common()])


class Exporter(Protocol):
    """A function that writes one layout into the empty folder `out`.

    Its docstring states the layout and how boxes are written there. `records` all have their pictures, but those of
    conversations alone, which only exporters in `TEXT_ONLY` get. File names are numbers: an id may hold whatever a
    source put there.
    """

    def __call__(self, records: Iterable[RegionImage], out: Path, **options: Any) -> ExportSummary: ...


EXPORTERS: dict[str, Exporter] = {}

_Writer = TypeVar("_Writer", bound=Callable[..., ExportSummary])


# Layouts that have a place for conversations without a picture.
TEXT_ONLY: set[str] = set()
# What a region or an image may have that not every layout has a place for, and when it has it.
_OF_REGIONS: dict[str, Callable[[Region], bool]] = {
    "score": lambda region: region.score is not None,
    "alternatives": lambda region: bool(region.alternatives),
    "polygon": lambda region: region.polygon is not None,
    "box_by": lambda region: region.box_by != "human",
    "text_by": lambda region: region.text_by != "human",
}
_OF_IMAGES: dict[str, Callable[[RegionImage], bool]] = {
    "source": lambda record: bool(record.source),
    "licence": lambda record: bool(record.licence),
}
# Which of these a layout has a place for.
KEEPS: dict[str, frozenset[str]] = {}


def exporter(name: str, *, text_only: bool = False, keeps: Collection[str]) -> Callable[[_Writer], _Writer]:
    """Enter the decorated function into `EXPORTERS`, and into `TEXT_ONLY` if that is said.

    `keeps` are those fields of `Region` and `RegionImage` the layout has a place for which not every layout has.
    """

    def register(writer: _Writer) -> _Writer:
        EXPORTERS[name] = writer
        KEEPS[name] = frozenset(keeps)
        if text_only:
            TEXT_ONLY.add(name)
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


# What an export was made of and how; it is also what tells a folder that may be replaced from one that may not.
RECEIPT = "export.json"


def export_corpus(
    name: str,
    corpus: str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    progress: bool = False,
    **options: Any,
) -> ExportSummary:
    """Write a corpus in a layout that other trainers read; it is at `out` as a whole, or not at all.

    Args:
        name: a key of `EXPORTERS`.
        corpus: the corpus folder.
        out: the folder to write, which must not exist or be empty.
        overwrite: replace an earlier export at `out`; it stays until the new one is complete.
        progress: show a progress bar.
        options: passed to the exporter.

    Raises:
        CorpusError: unknown exporter or option, no corpus, `out` is in use, or nothing could be exported.
    """
    writer = _exporter(name, options)
    source = Corpus(corpus)
    with staged_folder(out, partial(_refuse_foreign_files, overwrite=overwrite)) as folder:
        seen = ExportSummary()
        records = tqdm(source, total=len(source), unit=" images", disable=not progress)
        usable = _usable(records, name in TEXT_ONLY, seen)
        summary = writer(_watched(usable, KEEPS[name], seen), folder, **options)
        summary.skipped += seen.skipped
        summary.not_kept += seen.not_kept
        if not summary.images:
            why = ", ".join(f"{reason}: {count}" for reason, count in summary.skipped.most_common())
            raise CorpusError(f"{source.path}: nothing to export as {name} ({why})")
        _write_receipt(folder / RECEIPT, name, options, summary)
    return summary


def _exporter(name: str, options: dict[str, Any]) -> Exporter:
    if name not in EXPORTERS:
        raise CorpusError(f"unknown exporter {name!r}: use one of {', '.join(sorted(EXPORTERS))}")
    known = inspect.signature(EXPORTERS[name]).parameters.keys() - {"records", "out"}
    if unknown := options.keys() - known:
        takes = ", ".join(flag(option) for option in sorted(known)) or "no option of its own"
        raise CorpusError(f"the layout {name!r} does not take {flag(min(unknown))}; it takes {takes}")
    return EXPORTERS[name]


def _refuse_foreign_files(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise CorpusError(f"{out} is a file; an export is a folder")
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / RECEIPT).is_file():
        raise CorpusError(f"{out} is not empty, and no export (it has no {RECEIPT}): choose another folder")
    if not overwrite:
        raise CorpusError(f"{out} holds an export: choose another folder or overwrite it")


def _usable(records: Iterator[RegionImage], text_only: bool, left_out: ExportSummary) -> Iterator[RegionImage]:
    for record in records:
        if record.image is not None or (record.text_only and text_only):
            yield record
        elif record.text_only:
            left_out.skipped["conversations without a picture"] += len(record.conversations)
        else:
            left_out.skipped["images without picture bytes"] += 1


def _watched(records: Iterator[RegionImage], keeps: Collection[str], summary: ExportSummary) -> Iterator[RegionImage]:
    """The records, counting in `summary` what they have that the layout has no place for."""
    for record in records:
        summary.not_kept.update(name for name, has in _OF_IMAGES.items() if name not in keeps and has(record))
        for region in record.regions:
            summary.not_kept.update(name for name, has in _OF_REGIONS.items() if name not in keeps and has(region))
        yield record


def _write_receipt(file: Path, name: str, options: dict[str, Any], summary: ExportSummary) -> None:
    receipt = {
        "format": f"granvit-export {name}",
        "options": options,
        "images": summary.images,
        "regions": summary.regions,
        "conversations": summary.conversations,
        "left_out": dict(summary.skipped),
        "not_kept": dict(summary.not_kept),
    }
    write_text(file, json.dumps(receipt, indent=1, ensure_ascii=False) + "\n")
