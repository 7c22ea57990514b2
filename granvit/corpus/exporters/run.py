"""Running an exporter: into a hidden folder beside the place, and as a whole into the place."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from granvit.corpus.exporters.base import EXPORTERS, Exporter, ExportSummary
from granvit.corpus.layout import CorpusError
from granvit.corpus.store import Corpus
from granvit.files import staged_folder, write_text
from granvit.regions import RegionImage

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
        pictureless = ExportSummary()
        records = tqdm(source, total=len(source), unit=" images", disable=not progress)
        summary = writer(_with_picture(records, pictureless), folder, **options)
        summary.skipped += pictureless.skipped
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
        has = f"it has {', '.join(sorted(known))}" if known else "it has none"
        raise CorpusError(f"the exporter {name!r} has no option {min(unknown)!r}; {has}")
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


def _with_picture(records: Iterator[RegionImage], left_out: ExportSummary) -> Iterator[RegionImage]:
    for record in records:
        if record.image is not None:
            yield record
        else:
            left_out.skipped["images without picture bytes"] += 1


def _write_receipt(file: Path, name: str, options: dict[str, Any], summary: ExportSummary) -> None:
    receipt = {
        "format": f"granvit-export {name}",
        "options": options,
        "images": summary.images,
        "regions": summary.regions,
        "left_out": dict(summary.skipped),
    }
    write_text(file, json.dumps(receipt, indent=1, ensure_ascii=False) + "\n")
