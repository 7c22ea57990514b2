"""Tables with a column of pictures, as `datasets` writes them and dataset hubs publish them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from granvit.corpus.importers.base import as_split, as_text, importer, read_image
from granvit.corpus.layout import CorpusError
from granvit.corpus.quarantine import UNKNOWN_SIZE, Refused, Rejection
from granvit.regions import RegionImage

_BATCH = 64
_CAPTIONS = ("caption", "text")


@importer("parquet", without_regions=True)
def read(
    src: Path, *, image_column: str = "image", source: str = "", licence: str = "", split: str = ""
) -> Iterator[RegionImage | Rejection]:
    """`src` is a folder with ``*.parquet`` at any depth, or one such file.

    The column `image_column` holds ``{"bytes", "path"}`` (the Image feature of `datasets`) or the bytes alone; where
    only the path is given it is relative to the file. Optional columns: "caption", or else "text", of strings (of a
    list the longest is taken), and "id". Files named ``train-00000-of-00009.parquet`` are of that split, unless
    `split` names one.

    There are no regions, hence no boxes: a corpus of this project needs no import. Terms: the table's own; state them
    with `licence`.

    Raises:
        CorpusError: no such file.
    """
    files = [src] if src.is_file() else sorted(src.rglob("*.parquet"))
    if not files:
        raise CorpusError(f"{src} holds no *.parquet")
    root = src.parent if src.is_file() else src
    source = source or (src.stem if src.is_file() else src.resolve().name)
    for file in files:
        part = as_split(split) or _split(file)
        for index, row in enumerate(_rows(file, image_column)):
            uri = f"{file.relative_to(root).as_posix()}:{index}"
            try:
                if isinstance(row, Refused):
                    raise row
                yield RegionImage(
                    id=f"{source}/{as_text(row.get('id')) or uri}",
                    image=_picture(row[image_column], file.parent),
                    width=UNKNOWN_SIZE[0],
                    height=UNKNOWN_SIZE[1],
                    regions=[],
                    uri=uri,
                    source=source,
                    licence=licence,
                    caption=_caption(row),
                    split=part,
                )
            except Refused as refused:
                yield Rejection(refused.reason, f"{source}/{uri}", uri, None, refused.detail)


def _split(file: Path) -> str:
    name = as_split(file.stem.partition("-")[0])
    return name if name in ("train", "val", "test") else ""


def _rows(file: Path, image_column: str) -> Iterator[dict[str, Any] | Refused]:
    """The rows; as the last one, why there are no further ones where the file is damaged."""
    try:
        with pq.ParquetFile(file) as parquet:
            present = parquet.schema_arrow.names
            if image_column not in present:
                yield Refused("missing-field", f"no column {image_column!r}; there are {', '.join(present)}")
                return
            columns = [name for name in (image_column, "id", *_CAPTIONS) if name in present]
            for batch in parquet.iter_batches(_BATCH, columns=columns, use_threads=False):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        yield Refused("damaged-parquet", f"{file.name}: {error}")


def _picture(value: Any, folder: Path) -> bytes:
    data = value.get("bytes") if isinstance(value, dict) else value
    path = value.get("path") if isinstance(value, dict) else None
    if isinstance(data, bytes):
        return data
    if isinstance(path, str):
        return read_image(folder, path)
    raise Refused("missing-image", f"neither bytes nor a path, but {type(value).__name__}")


def _caption(row: dict[str, Any]) -> str | None:
    value = next((row[name] for name in _CAPTIONS if row.get(name)), None)
    texts = value if isinstance(value, list) else [value]
    return max(map(as_text, texts), key=len, default="") or None
