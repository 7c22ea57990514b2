"""WebDataset: tar shards that stream from disks and object stores."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from granvit.corpus.exporters.base import ExportSummary, exporter, part_of
from granvit.corpus.layout import CorpusError
from granvit.images import as_plain_file
from granvit.regions import Region, RegionImage


@dataclass
class _Shards:
    """The shards of one split, of which the last one is open."""

    tar: tarfile.TarFile
    samples: int = 0
    number: int = 0


@exporter(
    "webdataset",
    text_only=True,
    keeps=("score", "alternatives", "polygon", "box_by", "text_by", "source", "licence"),
)
def write(records: Iterable[RegionImage], out: Path, *, samples_per_shard: int = 1_000) -> ExportSummary:
    """``train-00000.tar`` ... with ``00000001.jpg`` (``.png``, ``.webp``) and ``00000001.json`` for each image.

    Shards per split, "all" for images without one. The JSON has the image's id, size, source, licence, split and
    caption, and its regions and conversations as the importers jsonl and webdataset read them; a record of
    conversations alone is a JSON alone. The same corpus gives the same bytes:
    members carry no times and no owners.

    Boxes: x1, y1, x2, y2 in absolute pixels, right and bottom edges exclusive, unrounded.

    Raises:
        CorpusError: `samples_per_shard` is below 1.
    """
    if samples_per_shard < 1:
        raise CorpusError(f"samples_per_shard should be at least 1, got {samples_per_shard}")
    summary = ExportSummary()
    parts: dict[str, _Shards] = {}
    with ExitStack() as open_files:
        for record in records:
            name = part_of(record)
            if name not in parts or parts[name].samples == samples_per_shard:
                number = 0
                if name in parts:
                    parts[name].tar.close()
                    number = parts[name].number + 1
                tar = open_files.enter_context(tarfile.open(out / f"{name}-{number:05d}.tar", "w"))
                parts[name] = _Shards(tar, number=number)
            part = parts[name]
            part.samples += 1
            summary.images += 1
            summary.regions += len(record.regions)
            summary.conversations += len(record.conversations)
            summary.without_picture += record.text_only
            _add(part.tar, record, f"{summary.images:08d}")
    return summary


def _add(tar: tarfile.TarFile, record: RegionImage, key: str) -> None:
    files: list[tuple[str, bytes]] = []
    if not record.text_only:
        assert record.image is not None, "records to export have their pictures"
        data, ending = as_plain_file(record.image)
        files.append((f"{key}{ending}", data))
    row: dict[str, Any] = {
        "id": record.id,
        "image": files[0][0] if files else None,
        "width": record.width,
        "height": record.height,
        "source": record.source,
        "licence": record.licence,
        "split": record.split,
        "caption": record.caption,
        "regions": [_region_row(region) for region in record.regions],
    }
    if record.conversations:
        row["conversations"] = [
            [{"role": turn.role, "content": turn.text} for turn in conversation]
            for conversation in record.conversations
        ]
    for file, content in (*files, (f"{key}.json", json.dumps(row, ensure_ascii=False).encode())):
        info = tarfile.TarInfo(file)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))


def _region_row(region: Region) -> dict[str, Any]:
    """A region in the layout of the importer jsonl, without what is not there."""
    row = {
        "bbox": list(region.box),
        "kind": region.kind,
        "text" if region.kind == "text" else "caption": region.text,
        "captions": region.alternatives,
        "polygon": region.polygon,
        "score": region.score,
        "box_by": region.box_by,
        "text_by": region.text_by,
        "ignore": region.ignore,
    }
    return {name: value for name, value in row.items() if value is not None and value is not False and value != []}
