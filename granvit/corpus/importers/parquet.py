"""Tables with a column of pictures, as `datasets` writes them and dataset hubs publish them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from granvit.corpus.check import UNKNOWN_SIZE, LeftOut, Refused, Rejection
from granvit.corpus.importers.base import (
    Found,
    as_box,
    as_sides,
    as_split,
    as_text,
    importer,
    read_image,
    read_regions,
)
from granvit.corpus.importers.parquet_rows import open_parquet, read_rows
from granvit.corpus.importers.pictures import Kind, listing
from granvit.corpus.layout import CorpusError
from granvit.regions import Region, RegionImage

BoxFormat = Literal["xywh", "xyxy"]

_CAPTIONS = ("caption", "text")
_OBJECTS = "objects"
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

    The column `image_column` holds ``{"bytes", "path"}`` (the Image feature of `datasets`), the bytes alone, a path
    alone, or a list of one of these; a path is relative to the file. Optional columns: "caption", or else "text", of
    strings (of a list the longest is taken); "id"; and "objects", regions as detection sets have them: ``{"bbox":
    [...], "category": [...]}``, or a list of ``{"bbox", "category"}``. A category is a name, or a number of a
    ClassLabel, whose names `datasets` keeps in the file; a number without names is refused as "unknown-category". Other
    columns are counted and not read. Files named ``train-00000-of-00009.parquet``, or in a folder ``train``, are of
    that split, unless `split` names one.

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
        except Refused as refused:
            yield Rejection(refused.reason, f"{source}/{name}", name, None, refused.detail)
            continue
        yield from (LeftOut(f"column {column!r}", count, name) for column, count in columns.items() if count)
        read_columns = [column for column, count in columns.items() if not count]
        for index, row in enumerate(read_rows(file, read_columns)):
            uri = f"{name}:{index}"
            try:
                if isinstance(row, Refused):
                    raise row
                captions = _captions(row)
                record = RegionImage(
                    id=f"{source}/{as_text(row.get('id')) or uri}",
                    image=_picture(row[image_column], file.parent),
                    width=UNKNOWN_SIZE[0],
                    height=UNKNOWN_SIZE[1],
                    regions=_regions(row.get(_OBJECTS), categories, box_format),
                    uri=uri,
                    source=source,
                    licence=licence,
                    caption=max(captions, key=len, default=None),
                    split=as_split(split) or _split(name),
                )
            except Refused as refused:
                count = 0 if isinstance(row, Refused) else len(_entries(row.get(_OBJECTS)))
                yield Rejection(refused.reason, f"{source}/{uri}", uri, None, refused.detail, count)
                continue
            yield record
            yield LeftOut("further captions of a picture", max(0, len(captions) - 1), uri)


def _is_table(name: str, kind: Kind) -> bool:
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
        if image_column not in schema.names:
            raise Refused("missing-field", f"no column {image_column!r}; there are {', '.join(schema.names)}")
        used = (image_column, "id", *_CAPTIONS, _OBJECTS)
        return {name: 0 if name in used else rows for name in schema.names}, _categories(schema.metadata or {})


def _categories(metadata: dict[bytes, bytes]) -> list[str]:
    """The names of the objects' categories, by number; none where the file has none."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"][_OBJECTS]
        return _class_names(features)
    except (KeyError, TypeError, ValueError, RecursionError):
        return []


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
        if isinstance(label, int) and not isinstance(label, bool):
            if not 0 <= label < len(categories):
                raise Refused("unknown-category", f"number {label} of {len(categories)} names in the file")
            label = categories[label]
        return Region(as_sides(written) if box_format == "xywh" else as_box(written), as_text(label))

    return read_regions(_entries(objects), region)
