"""What a corpus folder looks like on disk: file names, manifest, Parquet options. Reader and writer share it."""

from __future__ import annotations

import io
import os
import re
import stat
from collections import Counter
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from granvit.errors import GranvitError
from granvit.files import checked_field, read_json
from granvit.regions import ADDED_COLUMNS, READ_VERSIONS, SCHEMA, UNWANTED, schema_with_viewer_features

MANIFEST = "manifest.json"
QUARANTINE = "quarantine.jsonl"
CURATION = "curation.json"
SHARDS = "part-*.parquet"
_SHARD = re.compile(r"part-[\w.-]*\.parquet")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class CorpusError(GranvitError):
    """A corpus that cannot be read or written; the message names the file and what is wrong with it."""


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the corpus folder `path`, read as untrusted: every field is checked.

    Raises:
        CorpusError: it is missing, damaged, of another schema version, counts no image, or names a shard that is no
            regular file in this folder.
    """
    file = path / MANIFEST
    if not path.is_dir():
        raise CorpusError(f"{path} is not a folder; a corpus is one, with a {MANIFEST}")
    if not file.exists():
        raise CorpusError(f"{file} is missing: this is no corpus, or its import did not finish")
    manifest: dict[str, Any] = read_json(file, CorpusError)
    if (version := _field(manifest, "schema_version", int, file)) not in READ_VERSIONS:
        known = " and ".join(map(str, READ_VERSIONS))
        raise CorpusError(f"{file}: schema_version is {version!r}, this version reads {known}")
    shards = _field(manifest, "shards", list, file)
    names = [_checked_shard(shard, file, f"shards[{number}].") for number, shard in enumerate(shards)]
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        raise CorpusError(f"{file}: damaged: the shard {twice} is listed twice")
    for name in ("images", "regions"):
        _field(manifest, name, int, file)
    _field({"conversations": 0, **manifest}, "conversations", int, file)  # version 1 had none
    for name in ("images_by_source", "images_by_split", "regions_by_kind"):
        counts = _field(manifest, name, dict, file)
        for key in counts:
            if UNWANTED.search(key):
                raise CorpusError(f"{file}: damaged: {name} holds the name {key!r}")
            _field(counts, key, int, file, f"{name}.")
    _field(manifest, "meta", dict, file)
    if not any(row["rows"] for row in shards):
        raise CorpusError(f"{file}: the corpus is empty")
    for shard in names:
        _check_place(path, shard)
    return manifest


def _field(row: Any, name: str, kind: type, file: Path, inside: str = "") -> Any:
    return checked_field(row, name, kind, file, inside, CorpusError)


def _checked_shard(shard: Any, file: Path, inside: str) -> str:
    """The name of a shard, whose row of the manifest has all that it should have."""
    for name in ("rows", "regions", "bytes"):
        _field(shard, name, int, file, inside)
    if not _SHA256.fullmatch(_field(shard, "sha256", str, file, inside)):
        raise CorpusError(f"{file}: damaged: {inside}sha256 is {shard['sha256'][:80]!r}, not 64 hexadecimal digits")
    name = str(_field(shard, "name", str, file, inside))
    if not _SHARD.fullmatch(name):
        raise CorpusError(f"{file}: damaged: {inside}name is {name[:80]!r}, it should be like part-00000.parquet")
    return name


def _check_place(folder: Path, name: str) -> None:
    """Whether a shard that is there is a file of this folder. A missing one is reported when it is read."""
    file = folder / name
    try:
        mode = file.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        if not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder)):
            raise CorpusError(f"{file}: is a link that leads out of the corpus; put the file itself there")
        mode = file.stat().st_mode if file.exists() else stat.S_IFREG
    if not stat.S_ISREG(mode):
        raise CorpusError(f"{file}: is not a regular file")


def check_schema(file: Path, schema: pa.Schema) -> None:
    """Whether a shard's columns are those of `SCHEMA`, or of an earlier version; further columns do no harm.

    Raises:
        CorpusError: naming the file and the column.
    """
    version = (schema.metadata or {}).get(b"granvit_schema", b"").decode(errors="replace")
    if version not in map(str, READ_VERSIONS):
        known = " and ".join(repr(str(read)) for read in READ_VERSIONS)
        raise CorpusError(f"{file}: granvit_schema is {version!r}, this version reads {known}")
    absent = ADDED_COLUMNS if version == "1" else frozenset()
    missing = [name for name in SCHEMA.names if name not in schema.names and name not in absent]
    if missing:
        raise CorpusError(f"{file}: the column(s) {', '.join(missing)} are missing")
    for expected in SCHEMA:
        if expected.name in absent:
            continue
        found = schema.field(expected.name).type
        if found != expected.type:
            raise CorpusError(f"{file}: column {expected.name!r} is {found}, it should be {expected.type}")


def group_ends(metadata: pq.FileMetaData) -> list[int]:
    """For each row group, the number of rows up to its end."""
    return list(accumulate(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)))


@lru_cache(maxsize=1)
def encoding() -> dict[str, Any]:
    """Parquet options: compressed pictures are stored as they are, all else is packed tightly."""
    empty = io.BytesIO()
    pq.write_table(schema_with_viewer_features().empty_table(), empty)
    columns = pq.read_metadata(empty).schema
    packed = [columns.column(i).path for i in range(len(columns)) if columns.column(i).path != "image.bytes"]
    return {
        "compression": {**dict.fromkeys(packed, "zstd"), "image.bytes": "none"},
        "use_dictionary": packed,
        "write_statistics": packed,
    }
