"""

A region corpus on disk: Parquet shards that any Parquet reader opens, and a manifest that says they are whole.

    corpus/
      part-00000.parquet ...   one row per image, its file embedded, in the layout of `granvit.regions.SCHEMA`; and one
                               per record of conversations without an image
      manifest.json            counts, checksums
      quarantine.jsonl         what an import refused, if there was one
      curation.json            what a curation dropped, if there was one

A corpus is written beside its place and renamed into it: it is there as a whole, or what was there before still is.
Whoever reads a whole shard holds it to its checksum first, so that wrong bytes are never copied under a new one.

Checksums of corpora that are read here and there rather than from end to end, as training does.
"""

from __future__ import annotations

import json
import operator
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

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
)
from granvit.files import put_in_place, sha256, staged_folder, sync, write_text
from granvit.regions import ADDED_COLUMNS, SCHEMA, SCHEMA_VERSION, RegionImage, schema_with_viewer_features

__all__ = ["Corpus", "CorpusError", "CorpusWriter", "ShardCheck", "Subset"]

# Reading one image reads its row group: the size in bytes, not the number of rows, is what random access pays for. But
# a reader keeps the shards' metadata, which grows with the groups: 16 rows each took 190 MB more for 250,000 images.
ROW_GROUP_ROWS = 64
ROW_GROUP_BYTES = 4 << 20


class CorpusFiles:
    """Writes the files of a corpus into a folder that is there, shards first, the manifest when the block ends.

    Nobody is kept from reading or writing there meanwhile: for a corpus in its place there is `CorpusWriter`.

    Args:
        folder: where to write.
        rows_per_shard: images per Parquet file.
        meta: JSON-able facts for the manifest's "meta"; may be filled in until the block ends.

    Raises:
        CorpusError: on leaving the block, no image was written.
    """

    def __init__(self, folder: Path, rows_per_shard: int = 2_000, meta: dict[str, Any] | None = None) -> None:
        self.path = self.folder = folder
        self.meta = dict(meta or {})
        self.images = self.regions = self.conversations = 0
        self._kinds: Counter[str] = Counter()
        self._sources: Counter[str] = Counter()
        self._splits: Counter[str] = Counter()
        self._ids: set[str] = set()
        self._shards: list[dict[str, Any]] = []
        self._rows_per_shard = rows_per_shard
        self._rows: list[dict[str, Any]] = []
        self._row_bytes = 0
        self._shard: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
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
        self.conversations += len(record.conversations)
        self._kinds.update(region.kind for region in record.regions)
        self._sources[record.source] += 1
        self._splits[record.split] += 1
        self._shards[-1]["rows"] += 1
        self._shards[-1]["regions"] += len(record.regions)

    def _start_shard(self) -> None:
        name = f"part-{len(self._shards):05d}.parquet"
        self._shards.append({"name": name, "rows": 0, "regions": 0})
        self._shard = pq.ParquetWriter(self.folder / name, schema_with_viewer_features(), **encoding())

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
        file = self.folder / self._shards[-1]["name"]
        sync(file)
        self._shards[-1] |= {"bytes": file.stat().st_size, "sha256": sha256(file)}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish_shard()
                if not self.images:
                    raise CorpusError(f"{self.path}: no image was written, so there is no corpus")
                write_text(self.folder / MANIFEST, json.dumps(self._manifest(), indent=1, ensure_ascii=False))
        finally:
            if self._shard is not None:
                self._shard.close()

    def _manifest(self) -> dict[str, Any]:
        return {
            "format": "granvit-corpus",
            "schema_version": SCHEMA_VERSION,
            "images": self.images,
            "regions": self.regions,
            "conversations": self.conversations,
            "regions_by_kind": dict(self._kinds),
            "images_by_source": dict(self._sources),
            "images_by_split": dict(self._splits),
            "shards": self._shards,
            "meta": self.meta,
        }


class CorpusWriter(CorpusFiles):
    """Writes a corpus; it is at `path` as a whole when the `with` block ends, or not at all.

    Everything is written into a folder beside `path`, which then takes its place: `folder`, where whoever writes may
    put what else belongs to the corpus. One process at a time.

    Args:
        path: the corpus folder; made if absent.
        rows_per_shard, meta: see `CorpusFiles`.
        overwrite: replace the corpus at `path`; it stays readable until the new one is complete.

    Raises:
        CorpusError: `path` holds other files and `overwrite` is off; on leaving the block, no image was written.
        BusyError: another process writes there.
    """

    def __init__(
        self, path: str | Path, rows_per_shard: int = 2_000, meta: dict[str, Any] | None = None, overwrite: bool = False
    ) -> None:
        super().__init__(Path(path), rows_per_shard, meta)
        self.path = Path(path)
        self._check = partial(refuse_foreign_files, overwrite=overwrite)
        self._staged = ExitStack()

    def __enter__(self) -> Self:
        self.folder = self._staged.enter_context(staged_folder(self.path, self._check))
        self._staged.push(super().__exit__)  # the files are finished before the folder takes its place
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._staged.__exit__(kind, error, trace)

    def keep(self, name: str) -> Path:
        """Save a file from `folder`, where there will be no corpus; where it is to be read.

        That is the corpus folder, or beside it where an earlier corpus is there, to whose files it must not come.
        """
        to = self.path / name
        if (self.path / MANIFEST).exists():
            to = self.path.with_name(f"{self.path.name}.{name}")
        put_in_place(self.folder / name, to)
        return to


def refuse_foreign_files(path: Path, overwrite: bool) -> None:
    """Whether a corpus may be written at `path`.

    Raises:
        CorpusError: it is a file, or a folder that holds more than a corpus of which `overwrite` says it may go.
    """
    if path.exists() and not path.is_dir():
        raise CorpusError(f"{path} is a file; a corpus is a folder")
    present = {p.name for p in path.iterdir()} if path.exists() else set()
    # An import that could write nothing leaves its quarantine; older versions left a hidden folder when killed.
    ours = {QUARANTINE, ".partial"}
    if overwrite:
        ours |= {MANIFEST, CURATION} | {p.name for p in path.glob(SHARDS)}
    if present - ours:
        hint = "choose another folder" if overwrite else "choose another folder or overwrite it"
        raise CorpusError(f"{path} is not empty (it holds {min(present - ours)}): {hint}")


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
        self._intact: set[int] = set()
        self._metadata = lru_cache(maxsize=256)(self._open_metadata)
        self._group = lru_cache(maxsize=16)(self._read_group)
        self._described = lru_cache(maxsize=16)(self._read_described)
        self._columns = lru_cache(maxsize=256)(self._known_columns)

    def __reduce__(self) -> tuple[type[Corpus], tuple[Path]]:
        return Corpus, (self.path,)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> RegionImage:
        shard, group, offset = self._place(index)
        return next(self._records(shard, group, self._group(shard, group).slice(offset, 1)))

    def described(self, index: int) -> RegionImage:
        """Record `index` as `records` has it, with `image` None: its picture is not read."""
        shard, group, offset = self._place(index)
        return next(self._records(shard, group, self._described(shard, group).slice(offset, 1)))

    def _place(self, index: int) -> tuple[int, int, int]:
        """The shard of a record, the row group in it, and the row in that."""
        i = operator.index(index)
        if not -len(self) <= i < len(self):
            raise IndexError(f"{self.path} has {len(self)} images, there is no image {i}")
        shard = self.shard_of(i % len(self))
        row = i % len(self) - (self._ends[shard - 1] if shard else 0)
        ends = group_ends(self._metadata(shard))
        group = bisect_right(ends, row)
        return shard, group, row - (ends[group - 1] if group else 0)

    def __iter__(self) -> Iterator[RegionImage]:
        for shard in range(len(self._shards)):
            self.check_shard(shard)
            for group in range(self._metadata(shard).num_row_groups):
                yield from self._records(shard, group, self._read_group(shard, group))

    def records(self, check: bool = True) -> Iterator[RegionImage]:
        """All records in order with `image` None: no picture is decoded, or even read but for its checksum.

        Args:
            check: hold each shard to its checksum first, which reads all of it once in this process.
        """
        for shard in range(len(self._shards)):
            if check:
                self.check_shard(shard)
            for group in range(self._metadata(shard).num_row_groups):
                yield from self._records(shard, group, self._read_described(shard, group))

    def without_image(self) -> set[int]:
        """Which records are conversations about no image; of the files one column is read, and only if need be."""
        if not self.manifest.get("conversations"):
            return set()
        groups = ((n, g) for n in range(self.shards) for g in range(self._metadata(n).num_row_groups))
        widths = (width for n, g in groups for width in self._read_group(n, g, ["width"])["width"].to_pylist())
        return {index for index, width in enumerate(widths) if width == 0}  # which no image may be

    def sampled(self, step: int) -> Iterator[tuple[int, RegionImage]]:
        """The records of every `step`-th row group with their places, as `records` without checksums gives them."""
        place = groups = 0
        for shard in range(len(self._shards)):
            columns = [name for name in self._columns(shard) if name != "image"] + ["image.path"]
            metadata = self._metadata(shard)
            for group in range(metadata.num_row_groups):
                if groups % step == 0:
                    yield from enumerate(self._records(shard, group, self._read_group(shard, group, columns)), place)
                place += metadata.row_group(group).num_rows
                groups += 1

    @property
    def shards(self) -> int:
        """How many files hold the records."""
        return len(self._shards)

    def shard_of(self, index: int) -> int:
        """The shard that holds record `index`."""
        return bisect_right(self._ends, index)

    def check_shard(self, shard: int) -> None:
        """Hold a shard to its checksum, once.

        Raises:
            CorpusError: the file is not what was written.
        """
        if shard in self._intact:
            return
        self._metadata(shard)  # what the file lacks tells more than that it was altered
        file, stated = self.path / self._shards[shard]["name"], self._shards[shard]
        try:
            size = file.stat().st_size
            if size != stated["bytes"]:
                raise CorpusError(f"{file}: has {size} bytes, {MANIFEST} says {stated['bytes']}: the file was altered")
            if sha256(file) != stated["sha256"]:
                raise CorpusError(f"{file}: the checksum differs from {MANIFEST}: the file was altered")
        except OSError as error:
            raise CorpusError(f"{file}: {error.strerror}") from error
        self._intact.add(shard)

    def _records(self, shard: int, group: int, table: pa.Table) -> Iterator[RegionImage]:
        """The records of (a part of) a row group."""
        try:
            for row in table.to_pylist():
                # Where pictures are left out, so is their column but for the path.
                yield RegionImage.from_row({**row, "image": {"bytes": None, **(row["image"] or {"path": ""})}})
        except ValueError as error:  # of which is text that is no UTF-8
            raise CorpusError(f"{self.path / self._shards[shard]['name']}: row group {group}: {error}") from error

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

    def _known_columns(self, shard: int) -> list[str]:
        """The columns of a shard that a record is made of; earlier versions have fewer."""
        absent = ADDED_COLUMNS if self._metadata(shard).metadata[b"granvit_schema"] == b"1" else frozenset()
        return [name for name in SCHEMA.names if name not in absent]

    def _read_described(self, shard: int, group: int) -> pa.Table:
        """A row group without the pictures."""
        columns = [name for name in self._columns(shard) if name != "image"] + ["image.path"]
        return self._read_group(shard, group, columns)

    def _read_group(self, shard: int, group: int, columns: list[str] | None = None) -> pa.Table:
        file = self.path / self._shards[shard]["name"]
        try:
            with pq.ParquetFile(file, metadata=self._metadata(shard)) as parquet:
                return parquet.read_row_group(group, columns=columns or self._columns(shard), use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise CorpusError(f"{file}: row group {group}: {error}") from error


class Subset:
    """Some records of a corpus, in the corpus's order; random access, picklable like the corpus itself."""

    def __init__(self, corpus: Corpus, indices: list[int]):
        self.corpus, self.indices = corpus, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> RegionImage:
        return self.corpus[self.indices[index]]

    def __iter__(self) -> Iterator[RegionImage]:
        for i in self.indices:
            self.corpus.check_shard(self.corpus.shard_of(i))
            yield self.corpus[i]


T = TypeVar("T")
R = TypeVar("R")


class ShardCheck:
    """Holds every shard of some corpora to its checksum, once, in the background. Use as a context manager.

    Of several processes each checks its share, so that all of them together read the corpora once. The thread that
    reads and hashes lets others run meanwhile.

    Args:
        sources: what is read: corpora, parts of them, or what has no files and so no checksums.
        rank, ranks: which share is this process's.
    """

    def __init__(self, sources: Iterable[object], rank: int = 0, ranks: int = 1) -> None:
        found = (source.corpus if isinstance(source, Subset) else source for source in sources)
        corpora = {id(corpus): corpus for corpus in found if isinstance(corpus, Corpus)}
        shards = [(corpus, shard) for corpus in corpora.values() for shard in range(corpus.shards)]
        self._shards = shards[rank::ranks]
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checksums")
        self._checked: Future[None] | None = None

    def __enter__(self) -> Self:
        self._checked = self._pool.submit(self._check)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._pool.shutdown()

    def _check(self) -> None:
        for corpus, shard in self._shards:
            if self._stopped.is_set():
                return
            corpus.check_shard(shard)

    def before(self, work: Callable[[T], R]) -> Callable[[T], R]:
        """`work`, which is not done any more once a damaged shard was found: it raises `CorpusError` instead."""

        def checked(argument: T) -> R:
            if self._checked is not None and self._checked.done():
                self._checked.result()
            return work(argument)

        return checked

    def finish(self) -> None:
        """Wait until all is checked.

        Raises:
            CorpusError: a shard is not what was written.
        """
        assert self._checked is not None, "ShardCheck is used as a context manager"
        self._checked.result()
