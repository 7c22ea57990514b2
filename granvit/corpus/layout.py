"""What a corpus folder looks like on disk: file names, manifest, Parquet options. Reader and writer share it."""

from __future__ import annotations

import hashlib
import io
import json
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from granvit.errors import GranvitError
from granvit.regions import SCHEMA, SCHEMA_VERSION, schema_with_viewer_features

MANIFEST = "manifest.json"
QUARANTINE = "quarantine.jsonl"
CURATION = "curation.json"
SHARDS = "part-*.parquet"


class CorpusError(GranvitError):
    """A corpus that cannot be read or written; the message names the file and what is wrong with it."""


def sha256(file: Path) -> str:
    """The checksum of a file, as hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the corpus folder `path`.

    Raises:
        CorpusError: it is missing, damaged, of another schema version, or counts no image.
    """
    file = path / MANIFEST
    if not path.is_dir():
        raise CorpusError(f"{path} is not a folder; a corpus is one, with a {MANIFEST}")
    if not file.exists():
        raise CorpusError(f"{file} is missing: this is no corpus, or its import did not finish")
    try:
        manifest = json.loads(file.read_bytes())
        version = manifest["schema_version"]
        if version != SCHEMA_VERSION:
            raise CorpusError(f"{file}: schema_version is {version!r}, this version reads {SCHEMA_VERSION}")
        rows = sum(shard["rows"] for shard in manifest["shards"] if shard["name"])
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CorpusError(f"{file}: damaged: {error!r}") from error
    if not rows:
        raise CorpusError(f"{file}: the corpus is empty")
    return manifest


def check_schema(file: Path, schema: pa.Schema) -> None:
    """Whether a shard's columns are those of `SCHEMA`; further columns do no harm.

    Raises:
        CorpusError: naming the file and the column.
    """
    version = (schema.metadata or {}).get(b"granvit_schema", b"").decode(errors="replace")
    if version != str(SCHEMA_VERSION):
        raise CorpusError(f"{file}: granvit_schema is {version!r}, this version reads {str(SCHEMA_VERSION)!r}")
    missing = [name for name in SCHEMA.names if name not in schema.names]
    if missing:
        raise CorpusError(f"{file}: the column(s) {', '.join(missing)} are missing")
    for expected in SCHEMA:
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
