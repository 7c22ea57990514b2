"""The rows of Parquet files that strangers made, each of bounded size: a few bytes of Parquet can state gigabytes.

Compression and dictionaries do that: the same long value, stored once, may be that of every row. So rows are decoded in
batches of as many as fit, and one that is too large is refused alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from granvit import image_limits
from granvit.corpus.check import Refused
from granvit.corpus.importers.base import MAX_FILE_BYTES
from granvit.errors import GranvitError
from granvit.files import open_regular
from granvit.links import LinkOutsideError

_BATCH = 64
_MAX_BATCH_BYTES = 512 << 20
# A cell with pictures; one of texts or boxes has at most `MAX_FILE_BYTES`.
MAX_ROW_BYTES = image_limits.MAX_BYTES
# Pictures do not compress, texts do by a tenth or a hundredth; a row group of zeros does by ten thousand.
_MAX_GROUP_BYTES, _MAX_RATIO = 1 << 30, 100

# ValueError: also a name that is no UTF-8.
_DAMAGE = (OSError, ValueError, LookupError, OverflowError, pa.ArrowException)


def open_parquet(file: Path) -> Any:
    """An open `pyarrow.parquet.ParquetFile`.

    Raises:
        Refused: "link-outside", "damaged-parquet".
    """
    try:
        open_regular(file).close()
        parquet = pq.ParquetFile(file, pre_buffer=False)
        _ = parquet.schema_arrow  # decoded here, where damage to it is told
    except LinkOutsideError as error:
        raise Refused("link-outside", str(error)) from error
    except (*_DAMAGE, GranvitError) as error:
        raise Refused("damaged-parquet", f"{file.name}: {' '.join(str(error).split())}") from error
    rows, size = parquet.metadata.num_rows, file.stat().st_size
    if rows > size:  # as many as a picture has bytes, at least: not a table of pictures, but of repeated nothing
        parquet.close()
        raise Refused("damaged-parquet", f"{file.name}: {rows} rows in {size} bytes")
    return parquet


def read_rows(file: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any] | Refused]:
    """The rows of a file, of all its columns or some; in place of each that cannot be read, why.

    A row can be too large or no UTF-8; a damaged row group costs its own rows. Of a file that cannot be opened stands
    one `Refused` alone.
    """
    try:
        parquet = open_parquet(file)
    except Refused as refused:
        yield refused
        return
    with parquet:
        for group in range(parquet.metadata.num_row_groups):
            left = parquet.metadata.row_group(group).num_rows
            try:
                for batch in batches(parquet, group, columns):
                    left -= batch.num_rows
                    yield from (row_of(batch, index) for index in range(batch.num_rows))
            except Refused as refused:
                yield from (refused for _ in range(min(left, parquet.metadata.num_rows)))


def batches(parquet: Any, group: int, columns: Sequence[str] | None) -> Iterator[Any]:
    """The rows of a row group as record batches of bounded size.

    Raises:
        Refused: "damaged-parquet" or "too-costly"; the rows given before it are sound.
    """
    facts = parquet.metadata.row_group(group)
    told = f"row group {group} of {facts.num_rows} rows"
    try:
        chunks = [facts.column(index) for index in range(facts.num_columns)]
        wanted = [c for c in chunks if columns is None or c.path_in_schema.partition(".")[0] in columns]
    except _DAMAGE as error:
        raise Refused("damaged-parquet", f"{told}: {error}") from error
    stated = sum(c.total_uncompressed_size for c in wanted)
    if stated > max(_MAX_GROUP_BYTES, _MAX_RATIO * sum(c.total_compressed_size for c in wanted)):
        raise Refused("too-costly", f"{told}: {stated} bytes decompressed")
    # A row of the dictionary can be as large as the whole of it.
    repeated = sum(c.total_uncompressed_size for c in wanted if c.has_dictionary_page)
    rows = max(1, min(_BATCH, _MAX_BATCH_BYTES // max(1, repeated)))
    try:
        yield from parquet.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False)
    except MemoryError as error:
        raise Refused("too-costly", f"{told}: it does not fit into the memory") from error
    except _DAMAGE as error:
        raise Refused("damaged-parquet", f"{told}: {' '.join(str(error).split())}") from error


def row_of(batch: Any, index: int) -> dict[str, Any] | Refused:
    """A row of a record batch as Python objects."""
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        limit = MAX_ROW_BYTES if _holds_bytes(column.type) else MAX_FILE_BYTES
        try:
            size = _size(column, index)
            if size > limit:
                return Refused("too-costly", f"column {name!r} has {size} bytes here, at most {limit} are read")
            row[name] = column[index].as_py()
        except UnicodeDecodeError as error:
            return Refused("bad-encoding", f"column {name!r} is not UTF-8: {error.reason}")
        except _DAMAGE as error:
            return Refused("bad-field", f"column {name!r}: {error}")
    return row


def _holds_bytes(kind: pa.DataType) -> bool:
    """Whether there may be a picture in a column."""
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return True
    if pa.types.is_dictionary(kind):
        return _holds_bytes(kind.value_type)
    return any(_holds_bytes(kind.field(i).type) for i in range(kind.num_fields))


def _size(column: Any, index: int) -> int:
    """The bytes of one cell; of a dictionary's, those of its value alone, for its slice has the whole dictionary."""
    if not pa.types.is_dictionary(column.type):
        return int(column.slice(index, 1).nbytes)
    at = column.indices[index].as_py()
    return 0 if at is None else int(column.dictionary.slice(at, 1).nbytes)
