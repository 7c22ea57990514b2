"""Proof that a stored corpus is what its manifest says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from granvit.corpus.layout import MANIFEST, SHARDS, CorpusError, check_schema, read_manifest, sha256
from granvit.corpus.quarantine import check_record
from granvit.regions import RegionImage


def verify(path: str | Path) -> list[str]:
    """Every problem of the corpus at `path`, one line each; an empty list means there is none.

    Reads everything: checksums, columns and counts of every shard, and for every record whether its image
    decodes to the stated size, its boxes lie inside, its texts are clean, and its id is its own.
    """
    path = Path(path)
    try:
        manifest = read_manifest(path)
    except CorpusError as error:
        return [str(error)]
    problems: list[str] = []
    found: Counter[tuple[str, str]] = Counter()
    ids: set[str] = set()
    for shard in manifest["shards"]:
        problems += _shard_problems(path / shard["name"], shard, found, ids)
    known = {shard["name"] for shard in manifest["shards"]}
    problems += [f"{file}: not in {MANIFEST}" for file in sorted(path.glob(SHARDS)) if file.name not in known]
    problems += _count_problems(path / MANIFEST, manifest, found)
    return problems


def _shard_problems(file: Path, shard: dict[str, Any], found: Counter[tuple[str, str]], ids: set[str]) -> Iterator[str]:
    if not file.exists():
        yield f"{file}: missing"
        return
    if file.stat().st_size != shard["bytes"]:
        yield f"{file}: {file.stat().st_size} bytes, {MANIFEST} says {shard['bytes']}"
    elif sha256(file) != shard["sha256"]:
        yield f"{file}: the checksum differs from {MANIFEST}: the file was altered"
    rows = regions = 0
    try:
        for record in _records(file):
            where = f"{file}: row {rows} ({record.id})"
            yield from (f"{where}: {problem}" for problem in _record_problems(record, ids))
            rows += 1
            regions += len(record.regions)
            _count(record, found)
    except (CorpusError, OSError, pa.ArrowException, ValueError) as error:
        yield f"{file}: unreadable after {rows} rows: {error}"
        return
    if (rows, regions) != (shard["rows"], shard["regions"]):
        yield (f"{file}: {rows} images and {regions} regions, {MANIFEST} says {shard['rows']} and {shard['regions']}")


def _records(file: Path) -> Iterator[RegionImage]:
    with pq.ParquetFile(file) as parquet:
        check_schema(file, parquet.schema_arrow)
        for group in range(parquet.num_row_groups):
            yield from map(RegionImage.from_row, parquet.read_row_group(group, use_threads=False).to_pylist())


def _record_problems(record: RegionImage, ids: set[str]) -> Iterator[str]:
    if record.id in ids:
        yield "duplicate-id"
    ids.add(record.id)
    checked = check_record(record)
    for rejection in checked.rejections:
        region = "" if rejection.region is None else f"region {rejection.region}: "
        yield f"{region}{rejection.reason}: {rejection.detail}"
    # A stored record has been through the gate, which leaves what it let through as it is.
    for change, times in (+checked.changes).items():
        yield f"{times} {change} on reading: the record was never checked"


def _count(record: RegionImage, found: Counter[tuple[str, str]]) -> None:
    found["images", ""] += 1
    found["regions", ""] += len(record.regions)
    found["images_by_source", record.source] += 1
    found["images_by_split", record.split] += 1
    found.update(("regions_by_kind", region.kind) for region in record.regions)


def _count_problems(file: Path, manifest: dict[str, Any], found: Counter[tuple[str, str]]) -> Iterator[str]:
    stated = {(name, ""): manifest.get(name) for name in ("images", "regions")}
    for name in ("images_by_source", "images_by_split", "regions_by_kind"):
        stated.update({(name, key): count for key, count in manifest.get(name, {}).items()})
    for name, key in sorted(stated.keys() | found.keys()):
        if stated.get((name, key), 0) != found[name, key]:
            label = f"{name} of {key!r}" if key else name
            yield f"{file}: {label} is {stated.get((name, key), 0)}, the shards hold {found[name, key]}"
