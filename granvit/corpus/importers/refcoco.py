"""RefCOCO, RefCOCO+ and RefCOCOg: expressions that each refer to one object in a COCO photo."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from granvit.corpus.check import Refused, Rejection, shown
from granvit.corpus.importers.base import (
    Box,
    ambiguous_ids,
    as_box,
    as_id,
    as_sides,
    as_size,
    as_split,
    as_text,
    importer,
    read_image,
)
from granvit.corpus.importers.coco import folder_of, load_tables, some_entries
from granvit.corpus.importers.jsonl import SUFFIXES, read_rows
from granvit.corpus.layout import CorpusError
from granvit.regions import Region, RegionImage

_INSTANCES = "instances.json"
_FOLDERS = ("", "images", "train2014", "images/train2014", "coco/train2014", "images/mscoco/images/train2014")

# The name of a data set in the name of a file or folder, and the annotation's number in that of a photo.
_DATA_SET = re.compile(r"refcoco(?:\+|plus|g)?", re.IGNORECASE)
_ANNOTATION = re.compile(r"(?<=_\d{12})_\d+(?=\.jpg$)")


@importer("refcoco")
def read(
    src: Path, *, images: Path | None = None, instances: Path | None = None, source: str = "", licence: str = ""
) -> Iterator[RegionImage | Rejection]:
    """`src` is a table of expressions, or a folder with such (``.parquet``, ``.jsonl``, ``.jsonl.gz``, ``.json``).

    The original, ``refs(unc).p``, is a pickle, which is never loaded: a pickle can run anything. Read are its published
    conversions, recognised by the fields of a row:

    - one row an expression: ``{"img_path", "expression", "bbox", "dataset_name", "split", "width", "height"}``;
    - one row an object: ``{"file_name" or "image_path", "sentences": [{"sent"}], "bbox", "split"}``;
    - the same without "bbox", as in the pickle: ``{"ann_id", "image_id", "sentences", "split"}``, joined with COCO's
      instances, in `instances` or ``instances.json`` beside the table;
    - one row an object with its photo: ``{"image", "answer": [...], "bbox", "file_name"}``, of the split that the file
      is named after.

    All expressions for a box are kept: the first becomes the text, the others alternatives. Splits: testA and testB
    are "test". The published name stays in the source, as in "refcoco-testA", "refcoco+-val", "refcocog-train"; the
    data set's own is in the row, or in the name of the file or folder, unless `source` states one. RefCOCOg's "google"
    partition divides objects: a photo can be in its train and its val. The photos are COCO's ``train2014/``, in `src`
    or beside it, or `images`.

    Boxes: x1, y1, x2, y2 in pixels; with "answer", and in the instances, x, y, width, height. Terms: the expressions'
    authors state none; the boxes are COCO's, CC BY 4.0, the photos under their Flickr licences.

    Raises:
        CorpusError: no table, only a pickle, no instances where they are needed, or no photos.
    """
    photos: dict[tuple[str, str], _Photo] = {}
    for found in references(src, instances=instances):
        if isinstance(found, Rejection):
            yield found
        else:
            origin = "-".join(filter(None, (source or found.data_set, found.split)))
            photos.setdefault((origin, found.photo), _Photo(found)).add(found)
    root = images or photo_folder(src, [name for (_, name), photo in photos.items() if photo.data is None])
    for (origin, name), photo in photos.items():
        try:
            if photo.ambiguous:
                raise Refused("ambiguous-id", f"the rows of {name} state different sizes, or hold different pictures")
            yield RegionImage(
                id=f"{origin}/{name}",
                image=photo.data or read_image(root, name),
                width=photo.size[0],
                height=photo.size[1],
                regions=[Region(box, texts[0], alternatives=texts[1:]) for box, texts in photo.texts.items()],
                uri=name,
                source=origin,
                licence=licence,
                split="test" if photo.split.startswith("test") else as_split(photo.split),
            )
        except Refused as refused:
            yield Rejection(refused.reason, f"{origin}/{name}", name, None, refused.detail, len(photo.texts))


def references(src: Path, *, instances: Path | None = None) -> Iterator[Reference | Rejection]:
    """The rows of all tables in the layout of `read`, as they are: what was said once for all of a box stays together.

    Raises:
        CorpusError: as `read`.
    """
    tables = _tables(src)
    known = _Instances(instances or tables[0].with_name(_INSTANCES))
    for table in tables:
        for index, row in enumerate(read_rows(table)):
            try:
                yield _reference(row, table, known)
            except Refused as refused:
                yield Rejection(refused.reason, "", table.name, index, refused.detail)


def photo_folder(src: Path, names: list[str]) -> Path:
    """The folder of these photos: COCO's, in or beside that of the tables.

    Raises:
        CorpusError: no folder has them.
    """
    table = _tables(src)[0]
    base = table.parent
    beside = [at / name for at in (base, base.resolve().parent) for name in _FOLDERS]
    return folder_of(table, beside, some_entries(names)) if names else base


def _tables(src: Path) -> list[Path]:
    files = [src] if src.is_file() else sorted(src.iterdir())
    tables = [file for file in files if file.name.endswith(SUFFIXES) and file.name != _INSTANCES]
    if not tables and any(file.suffix == ".p" for file in files):
        raise CorpusError(f"{src}: refs(...).p is a pickle, which is never loaded; get a conversion to JSON or Parquet")
    if not tables:
        raise CorpusError(f"{src} holds no table: {', '.join(f'*{suffix}' for suffix in SUFFIXES)}")
    return tables


@dataclass(frozen=True)
class Reference:
    """An object that is referred to: `split` as it is published, `data` the photo where the row holds it.

    `data_set` is refcoco, refcoco+ or refcocog, `box` xyxy pixels.
    """

    data_set: str
    photo: str
    box: Box
    texts: list[str]
    split: str
    size: tuple[int, int]
    data: bytes | None


class _Photo:
    """What the rows say of one photo: its expressions by box."""

    def __init__(self, first: Reference) -> None:
        self.split, self.size, self.data = first.split, first.size, first.data
        self.texts: dict[Box, list[str]] = {}
        self.ambiguous = False

    def add(self, found: Reference) -> None:
        self.texts.setdefault(found.box, []).extend(found.texts or [""])
        self.ambiguous |= (found.size, found.data) != (self.size, self.data)


class _Instances:
    """COCO's instances, read when they are first asked for: most conversions state the boxes themselves."""

    def __init__(self, file: Path) -> None:
        self.file = file

    @cached_property
    def _tables(self) -> tuple[dict[Any, Any], dict[Any, Any]]:
        if not self.file.is_file():
            raise CorpusError(f"{self.file} is missing: these expressions name their boxes by COCO's annotation ids")
        tables = load_tables(self.file, ("images", "annotations"))
        rows = {name: [(as_id(row.get("id")), row) for row in tables[name]] for name in tables}
        self.ambiguous = {name: ambiguous_ids(pairs) for name, pairs in rows.items()}
        return dict(rows["annotations"]), dict(rows["images"])

    def find(self, key: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The annotation of that id, and its image's entry."""
        annotations, images = self._tables
        annotation = annotations.get(as_id(key), {})
        named = as_id(annotation.get("image_id"))
        if as_id(key) in self.ambiguous["annotations"] or named in self.ambiguous["images"]:
            raise Refused("ambiguous-id", f"{self.file.name} has several of ann_id {shown(key)}, or of its image's id")
        image = images.get(named)
        if image is None or as_id(key) is None or named is None:
            raise Refused("unknown-annotation", f"ann_id {shown(key)} has no box and photo in {self.file.name}")
        return annotation, image


def _reference(row: Any, table: Path, known: _Instances) -> Reference:
    if not isinstance(row, dict):
        raise row if isinstance(row, Refused) else Refused("not-json", f"an object is expected, got {shown(row)}")
    image = row
    split = _split_name(row.get("split"))
    if "answer" in row:
        box, texts = as_sides(row.get("bbox")), row["answer"]
        split = split or table.name.partition(".")[0].partition("-")[0]
    elif "expression" in row:
        box, texts = as_box(row.get("bbox")), [row["expression"]]
    elif isinstance(row.get("sentences"), list):
        texts = [said.get("sent") if isinstance(said, dict) else None for said in row["sentences"]]
        if "bbox" in row:
            box = as_box(row["bbox"])
        else:
            annotation, image = known.find(row.get("ann_id"))
            box = as_sides(annotation.get("bbox"))
    else:
        raise Refused("missing-field", "none of expression, sentences, answer")
    stored = row.get("image")
    data = stored.get("bytes") if isinstance(stored, dict) else None
    return Reference(
        data_set=_data_set(row, table),
        photo=_photo_name(image),
        box=box,
        texts=[as_text(text) for text in texts] if isinstance(texts, list) else [],
        split="val" if split == "validation" else split,
        size=as_size(image.get("width"), image.get("height")),
        data=data if isinstance(data, bytes) else None,
    )


def _split_name(value: Any) -> str:
    """The published name, "testA" as it is; of anything but a text nobody can tell whether it is held out."""
    if as_split(value) and not isinstance(value, str):
        raise Refused("bad-split", f"split should be a string, got {shown(value)}")
    return as_text(value)


def _photo_name(row: dict[str, Any]) -> str:
    """COCO_train2014_000000581857.jpg, also of a path to it, or where the number of an annotation is attached."""
    path = next((path for name in ("img_path", "image_path", "file_name") if (path := as_text(row.get(name)))), "")
    if not path:
        raise Refused("missing-field", "none of img_path, image_path, file_name")
    return _ANNOTATION.sub("", path.rpartition("/")[2])


def _data_set(row: dict[str, Any], table: Path) -> str:
    """refcoco, refcoco+ or refcocog, as the row or else the table's path has it."""
    named = _DATA_SET.findall("/".join((*table.resolve().parts[-3:], as_text(row.get("dataset_name")))))
    return named[-1].lower().replace("plus", "+") if named else "refcoco"
