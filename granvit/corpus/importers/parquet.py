"""Tables with a column of pictures, as `datasets` writes them and dataset hubs publish them.

The rows of untrusted Parquet files are each of bounded size: a few bytes of Parquet can state gigabytes.
Compression and dictionaries do that: the same long value, stored once, may be that of every row. So rows are decoded in
batches of as many as fit, and one that is too large is refused alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from granvit import image_limits
from granvit.corpus.check import UNKNOWN_SIZE, LeftOut, Refused, Rejection, shown
from granvit.corpus.importers.base import (
    MAX_FILE_BYTES,
    Found,
    as_box,
    as_id,
    as_sides,
    as_split,
    as_text,
    importer,
    read_image,
    read_regions,
)
from granvit.corpus.importers.conversations import (
    TURNS,
    beside,
    cauldron_turns,
    conversation_in,
    text_record,
)
from granvit.corpus.importers.image_folder import FileKind, listing
from granvit.corpus.layout import CorpusError
from granvit.errors import GranvitError
from granvit.files import open_regular
from granvit.links import LinkOutsideError
from granvit.regions import Conversation, Region, RegionImage

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
        _ = parquet.schema_arrow  # decoded here, where damage to it is reported
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
    where = f"row group {group} of {facts.num_rows} rows"
    try:
        chunks = [facts.column(index) for index in range(facts.num_columns)]
        wanted = [c for c in chunks if columns is None or c.path_in_schema.partition(".")[0] in columns]
    except _DAMAGE as error:
        raise Refused("damaged-parquet", f"{where}: {error}") from error
    stated = sum(c.total_uncompressed_size for c in wanted)
    if stated > max(_MAX_GROUP_BYTES, _MAX_RATIO * sum(c.total_compressed_size for c in wanted)):
        raise Refused("too-costly", f"{where}: {stated} bytes decompressed")
    # A row of the dictionary can be as large as the whole of it.
    repeated = sum(c.total_uncompressed_size for c in wanted if c.has_dictionary_page)
    rows = max(1, min(_BATCH, _MAX_BATCH_BYTES // max(1, repeated)))
    try:
        yield from parquet.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False)
    except MemoryError as error:
        raise Refused("too-costly", f"{where}: it does not fit into the memory") from error
    except _DAMAGE as error:
        raise Refused("damaged-parquet", f"{where}: {' '.join(str(error).split())}") from error


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


BoxFormat = Literal["xywh", "xyxy"]

_CAPTIONS = ("caption", "text")
_OBJECTS = "objects"
_IMAGES, _TEXTS = "images", "texts"
_BOXES = ("bbox", "bboxes", "box", "boxes")
_LABELS = ("category", "categories", "category_name", "label", "labels", "class", "name", "category_id", "class_id")


@importer("parquet", without_regions=True)
def read(
    src: Path,
    *,
    image_column: str = "image",
    box_format: BoxFormat = "xywh",
    source: str = "",
    licence: str = "",
    split: str = "",
) -> Iterator[Found]:
    """`src` is a folder with ``*.parquet`` at any depth, or one such file.

    The column `image_column`, or else "images", holds ``{"bytes", "path"}`` (the Image feature of `datasets`), the
    bytes alone, a path alone, or a list of one of these; a path is relative to the file. Optional columns: "caption",
    or else "text", of strings (of a list the longest is taken); "id"; conversations: "messages" or "conversations" as a
    list of turns (see the importer sharegpt), "texts" as the_cauldron's list of ``{"user", "assistant"}``, which are
    the rounds of one; a row without a picture is then a record of its conversation alone; and "objects", regions as
    detection sets have them: ``{"bbox": [...], "category": [...]}``, or a list of ``{"bbox", "category"}``. A category
    is a name, or a number of a ClassLabel, whose names `datasets` keeps in the file; a number without names is refused
    as "unknown-category". Other columns are counted and not read, as is a second column of captions or conversations
    where a row has both, and the caption of a row without a picture. Files named ``train-00000-of-00009.parquet``, or
    in a folder ``train``, are of that split, unless `split` names one.

    Boxes: x, y, width, height in pixels, as in COCO and in most sets of the hub; with `box_format` "xyxy", the two
    corners. A corpus of this project needs no import. Terms: the table's own; state them with `licence`.

    Raises:
        CorpusError: no such file, or another `box_format`.
    """
    if box_format not in get_args(BoxFormat):
        raise CorpusError(f"parquet: box_format is {' or '.join(get_args(BoxFormat))}, not {box_format!r}")
    names = [src.name] if src.is_file() else [name for name, kind in listing(src) if _is_table(name, kind)]
    if not names:
        raise CorpusError(f"{src} holds no *.parquet")
    root = src.parent if src.is_file() else src
    source = source or (src.stem if src.is_file() else src.resolve().name)
    for name in names:
        file = root / name
        try:
            columns, categories = _columns(file, image_column)
            pictures = image_column if image_column in columns else _IMAGES
        except Refused as refused:
            yield Rejection(refused.reason, f"{source}/{name}", name, None, refused.detail)
            continue
        yield from (LeftOut(f"column {column!r}", count, name) for column, count in columns.items() if count)
        read_columns = [column for column, count in columns.items() if not count]
        for index, row in enumerate(read_rows(file, read_columns)):
            uri = f"{name}:{index}"
            try:
                said = []
                if isinstance(row, Refused):
                    raise row
                said = _conversations(row, pictured=row[pictures] not in (None, []))
                if said and row[pictures] in (None, []) and not _entries(row.get(_OBJECTS)):
                    id = f"{source}/{as_text(row.get('id')) or uri}"
                    yield text_record(id, said[0], source, licence, split or _split(name))
                    yield LeftOut("captions of rows without a picture", len(_captions(row)), uri)
                    yield from _beside(row, uri)
                    continue
                captions = _captions(row)
                record = RegionImage(
                    id=f"{source}/{as_text(row.get('id')) or uri}",
                    image=_picture(row[pictures], file.parent),
                    width=UNKNOWN_SIZE[0],
                    height=UNKNOWN_SIZE[1],
                    regions=_regions(row.get(_OBJECTS), categories, box_format),
                    uri=uri,
                    source=source,
                    licence=licence,
                    caption=max(captions, key=len, default=None),
                    split=as_split(split) or _split(name),
                    conversations=said,
                )
            except Refused as refused:
                count = 0 if isinstance(row, Refused) else len(_entries(row.get(_OBJECTS)))
                many = len(said)
                yield Rejection(refused.reason, f"{source}/{uri}", uri, None, refused.detail, count, conversations=many)
                continue
            yield record
            yield LeftOut("further captions of a picture", max(0, len(captions) - 1), uri)
            yield from _beside(row, uri)


def _is_table(name: str, kind: FileKind) -> bool:
    return kind != "macos" and name.lower().endswith(".parquet")


def _split(name: str) -> str:
    path = Path(name)
    stated = [as_split(part) for part in (path.stem.partition("-")[0], path.parent.name)]
    return next((split for split in stated if split in ("train", "val", "test")), "")


def _columns(file: Path, image_column: str) -> tuple[dict[str, int], list[str]]:
    """The columns, each with how many rows of it go unread (0 for those that are read), and the categories' names.

    Raises:
        Refused: the file is damaged or has not the column of pictures.
    """
    with open_parquet(file) as parquet:
        schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
        pictures = image_column if image_column in schema.names else _IMAGES
        if pictures not in schema.names:
            raise Refused("missing-field", f"no column {image_column!r}; there are {', '.join(schema.names)}")
        used = (pictures, "id", *_CAPTIONS, *TURNS, _TEXTS, _OBJECTS)
        return {name: 0 if name in used else rows for name in schema.names}, _categories(schema.metadata or {})


def _categories(metadata: dict[bytes, bytes]) -> list[str]:
    """The names of the objects' categories, by number; none where the file has none."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"][_OBJECTS]
        return _class_names(_label_feature(features))
    except (KeyError, TypeError, ValueError, RecursionError):
        return []


def _label_feature(feature: Any) -> Any:
    """Of the features of the objects that of the labels which `_entries` reads: others may be class labels too."""
    if isinstance(feature, dict) and (name := next((name for name in _LABELS if name in feature), None)):
        return feature[name]
    inner = list(feature.values()) if isinstance(feature, dict) else feature if isinstance(feature, list) else []
    return next((found for part in inner if (found := _label_feature(part)) is not None), None)


def _class_names(feature: Any) -> list[str]:
    """The names of the class label within a feature of `datasets`, whose versions nest it in several ways."""
    inner = list(feature.values()) if isinstance(feature, dict) else feature if isinstance(feature, list) else []
    if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
        return [as_text(name) for name in feature["names"]]
    return next((names for part in inner if (names := _class_names(part))), [])


def _picture(value: Any, folder: Path) -> bytes:
    if isinstance(value, list):
        if len(value) > 1:
            raise Refused("several-images", f"{len(value)} pictures in one row, a record has one")
        value = value[0] if value else None
    data = value.get("bytes") if isinstance(value, dict) else value
    path = value.get("path") if isinstance(value, dict) else value
    if isinstance(data, bytes) and data:
        return data
    if isinstance(path, str) and path:
        return read_image(folder, path)
    raise Refused("missing-image", f"neither bytes nor a path, but {type(value).__name__}")


def _conversations(row: dict[str, Any], pictured: bool) -> list[Conversation]:
    """The conversation of a row, if it has one: in its place one that the gate refuses where it cannot be read."""
    stated = [name for name in (_TEXTS, *TURNS) if row.get(name) is not None]
    first = next((name for name in stated if row[name] != []), stated[0] if stated else None)
    if first is None:
        return []
    return [cauldron_turns(row[_TEXTS], pictured) if first == _TEXTS else conversation_in(row, pictured)]


def _beside(row: dict[str, Any], uri: str) -> Iterator[LeftOut]:
    """The columns of a row that say what another one says that is read."""
    yield from beside(row, _CAPTIONS, uri)
    yield from beside(row, (_TEXTS, *TURNS), uri)


def _captions(row: dict[str, Any]) -> list[str]:
    value = next((row[name] for name in _CAPTIONS if row.get(name)), None)
    texts = value if isinstance(value, list) else [value]
    return [text for text in map(as_text, texts) if text]


def _entries(objects: Any) -> list[tuple[Any, Any]]:
    """Box and category of each object, of a list of both or of lists of each.

    Raises nothing: what is missing is None, and so is what one of two lists of unequal length has not.
    """
    if isinstance(objects, dict):
        boxes, labels = (next((objects[n] for n in names if n in objects), None) for names in (_BOXES, _LABELS))
        boxes, labels = (value if isinstance(value, list) else [] for value in (boxes, labels))
        count = max(len(boxes), len(labels))
        return [
            (values[0], values[1])
            for values in zip(*(v + [None] * (count - len(v)) for v in (boxes, labels)), strict=True)
        ]
    rows = [row if isinstance(row, dict) else {} for row in objects] if isinstance(objects, list) else []
    return [
        (next((row[n] for n in _BOXES if n in row), None), next((row[n] for n in _LABELS if n in row), None))
        for row in rows
    ]


def _regions(objects: Any, categories: list[str], box_format: BoxFormat) -> list[Region]:
    def region(entry: tuple[Any, Any]) -> Region:
        written, label = entry
        # pandas makes floats of numbers with gaps, and NaN of the gaps, which are then no category.
        if isinstance(label, int | float) and (number := as_id(label)) is not None:
            if not (isinstance(number, int) and 0 <= number < len(categories)):
                raise Refused("unknown-category", f"number {shown(label)} of {len(categories)} names in the file")
            label = categories[number]
        return Region(as_sides(written) if box_format == "xywh" else as_box(written), as_text(label))

    return read_regions(_entries(objects), region)
