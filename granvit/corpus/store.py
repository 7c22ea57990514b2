"""A region corpus on disk: Parquet shards that any Parquet reader opens, and a manifest that says they are whole.

    corpus/
      part-00000.parquet ...   one row per image, its file embedded, in the layout of `granvit.regions.SCHEMA`
      manifest.json            written last: counts, checksums
      quarantine.jsonl         what an import refused, if there was one
      curation.json            what a curation dropped, if there was one

Without a manifest there is no corpus: what an interrupted writer leaves behind is never mistaken for one.
"""

from __future__ import annotations

import json
import operator
import os
import shutil
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from granvit.corpus.layout import (
    CURATION,
    MANIFEST,
    QUARANTINE,
    SHARDS,
    CorpusError,
    check_schema,
    encoding,
    group_ends,
    read_manifest,
    sha256,
)
from granvit.files import sync
from granvit.regions import SCHEMA, SCHEMA_VERSION, RegionImage, schema_with_viewer_features

__all__ = ["Corpus", "CorpusError", "CorpusWriter"]

_STAGING = ".partial"

# Reading one image reads its row group: the size in bytes, not the number of rows, is what random access pays for. But
# a reader keeps the shards' metadata, which grows with the groups: 16 rows each took 190 MB more for 250,000 images.
ROW_GROUP_ROWS = 64
ROW_GROUP_BYTES = 4 << 20


class CorpusWriter:
    """Writes a corpus; it becomes readable as a whole when the `with` block ends, or not at all.

    Everything is written to a hidden folder inside `path` and moved into place at the end, the manifest last.

    Args:
        path: the corpus folder; made if absent.
        rows_per_shard: images per Parquet file.
        meta: JSON-able facts for the manifest's "meta"; may be filled in until the block ends.
        overwrite: replace the corpus at `path`; it stays readable until the new one is complete.

    Raises:
        CorpusError: `path` holds other files and `overwrite` is off; on leaving the block, no image was written.
    """

    def __init__(
        self, path: str | Path, rows_per_shard: int = 2_000, meta: dict[str, Any] | None = None, overwrite: bool = False
    ) -> None:
        self.path = Path(path)
        self.meta = dict(meta or {})
        self.images = self.regions = 0
        self._kinds: Counter[str] = Counter()
        self._sources: Counter[str] = Counter()
        self._splits: Counter[str] = Counter()
        self._ids: set[str] = set()
        self._shards: list[dict[str, Any]] = []
        self._rows_per_shard = rows_per_shard
        self._rows: list[dict[str, Any]] = []
        self._row_bytes = 0
        self._shard: pq.ParquetWriter | None = None
        self._refuse_foreign_files(overwrite)

    def _refuse_foreign_files(self, overwrite: bool) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise CorpusError(f"{self.path} is a file; a corpus is a folder")
        present = {p.name for p in self.path.iterdir()} if self.path.exists() else set()
        ours = {_STAGING, QUARANTINE}
        if overwrite:
            ours |= {MANIFEST, CURATION} | {p.name for p in self.path.glob(SHARDS)}
        if present - ours:
            hint = "choose another folder" if overwrite else "choose another folder or overwrite it"
            raise CorpusError(f"{self.path} is not empty (it holds {min(present - ours)}): {hint}")

    def __enter__(self) -> CorpusWriter:
        shutil.rmtree(self.path / _STAGING, ignore_errors=True)
        (self.path / _STAGING).mkdir(parents=True)
        return self

    def __contains__(self, record_id: object) -> bool:
        """Whether a record of this id has been written."""
        return record_id in self._ids

    def write(self, record: RegionImage) -> None:
        """Append one record, which should have passed `check_record`.

        Raises:
            CorpusError: the id was written before.
        """
        if record.id in self._ids:
            raise CorpusError(f"{self.path}: two records have the id {record.id!r}")
        if self._shard is None:
            self._start_shard()
        self._rows.append(record.to_row())
        self._row_bytes += len(record.image or b"")
        self._count(record)
        if len(self._rows) >= ROW_GROUP_ROWS or self._row_bytes >= ROW_GROUP_BYTES:
            self._flush()
        if self._shards[-1]["rows"] >= self._rows_per_shard:
            self._finish_shard()

    def _count(self, record: RegionImage) -> None:
        self._ids.add(record.id)
        self.images += 1
        self.regions += len(record.regions)
        self._kinds.update(region.kind for region in record.regions)
        self._sources[record.source] += 1
        self._splits[record.split] += 1
        self._shards[-1]["rows"] += 1
        self._shards[-1]["regions"] += len(record.regions)

    def _start_shard(self) -> None:
        name = f"part-{len(self._shards):05d}.parquet"
        self._shards.append({"name": name, "rows": 0, "regions": 0})
        self._shard = pq.ParquetWriter(self.path / _STAGING / name, schema_with_viewer_features(), **encoding())

    def _flush(self) -> None:
        if self._rows and self._shard is not None:
            self._shard.write_table(pa.Table.from_pylist(self._rows, schema=self._shard.schema))
        self._rows, self._row_bytes = [], 0

    def _finish_shard(self) -> None:
        if self._shard is None:
            return
        self._flush()
        self._shard.close()
        self._shard = None
        file = self.path / _STAGING / self._shards[-1]["name"]
        sync(file)
        self._shards[-1] |= {"bytes": file.stat().st_size, "sha256": sha256(file)}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        staging = self.path / _STAGING
        try:
            if kind is None:
                self._finish_shard()
                self._publish(staging)
        finally:
            if self._shard is not None:
                self._shard.close()
            shutil.rmtree(staging, ignore_errors=True)

    def _publish(self, staging: Path) -> None:
        if not self.images:
            raise CorpusError(f"{self.path}: no image was written, so there is no corpus")
        (staging / MANIFEST).write_text(json.dumps(self._manifest(), indent=1, ensure_ascii=False), encoding="utf-8")
        sync(staging / MANIFEST)
        # From here to the last line the folder has no manifest: a crash leaves no corpus rather than a mixed one.
        (self.path / MANIFEST).unlink(missing_ok=True)
        for old in self.path.glob(SHARDS):
            old.unlink()
        for name in [*(shard["name"] for shard in self._shards), MANIFEST]:
            os.replace(staging / name, self.path / name)
        sync(self.path)

    def _manifest(self) -> dict[str, Any]:
        return {
            "format": "granvit-corpus",
            "schema_version": SCHEMA_VERSION,
            "images": self.images,
            "regions": self.regions,
            "regions_by_kind": dict(self._kinds),
            "images_by_source": dict(self._sources),
            "images_by_split": dict(self._splits),
            "shards": self._shards,
            "meta": self.meta,
        }


class Corpus:
    """A corpus to read: `len`, `corpus[i]`, iteration in order, and quick scans without the pictures.

    Holds no open file, so it may be used from several threads and handed to other processes, where it opens by
    its path anew.

    Raises:
        CorpusError: there is no complete corpus at `path`, or one of another schema version; when a shard is
            first touched, that it is damaged or lacks a column.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self._shards: list[dict[str, Any]] = self.manifest["shards"]
        self._ends = list(accumulate(shard["rows"] for shard in self._shards))
        self._metadata = lru_cache(maxsize=256)(self._open_metadata)
        self._group = lru_cache(maxsize=16)(self._read_group)

    def __reduce__(self) -> tuple[type[Corpus], tuple[Path]]:
        return Corpus, (self.path,)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> RegionImage:
        i = operator.index(index)
        if not -len(self) <= i < len(self):
            raise IndexError(f"{self.path} has {len(self)} images, there is no image {i}")
        shard = bisect_right(self._ends, i % len(self))
        row = i % len(self) - (self._ends[shard - 1] if shard else 0)
        ends = group_ends(self._metadata(shard))
        group = bisect_right(ends, row)
        offset = row - (ends[group - 1] if group else 0)
        return RegionImage.from_row(self._group(shard, group).slice(offset, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[RegionImage]:
        for shard in range(len(self._shards)):
            for group in range(self._metadata(shard).num_row_groups):
                yield from map(RegionImage.from_row, self._read_group(shard, group).to_pylist())

    def records(self) -> Iterator[RegionImage]:
        """All records in order with `image` None: the picture bytes are not read from disk."""
        columns = [name for name in SCHEMA.names if name != "image"] + ["image.path"]
        for shard in range(len(self._shards)):
            for group in range(self._metadata(shard).num_row_groups):
                for row in self._read_group(shard, group, columns).to_pylist():
                    yield RegionImage.from_row({**row, "image": {"bytes": None, **row["image"]}})

    def _open_metadata(self, shard: int) -> pq.FileMetaData:
        file = self.path / self._shards[shard]["name"]
        try:
            metadata = pq.read_metadata(file)
        except (OSError, pa.ArrowException) as error:
            raise CorpusError(f"{file}: {error}") from error
        check_schema(file, metadata.schema.to_arrow_schema())
        if metadata.num_rows != self._shards[shard]["rows"]:
            raise CorpusError(f"{file}: has {metadata.num_rows} rows, {MANIFEST} says {self._shards[shard]['rows']}")
        return metadata

    def _read_group(self, shard: int, group: int, columns: list[str] | None = None) -> pa.Table:
        file = self.path / self._shards[shard]["name"]
        try:
            with pq.ParquetFile(file, metadata=self._metadata(shard)) as parquet:
                return parquet.read_row_group(group, columns=columns, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise CorpusError(f"{file}: row group {group}: {error}") from error
