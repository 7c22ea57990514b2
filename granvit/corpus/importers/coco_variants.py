"""Data sets in COCO's format that say otherwise where their pictures lie, and what they are called.

LVIS: 1,203 categories with a long tail, on COCO's 2017 photos. Objects365, version 2: 2 M photos, 30 M boxes of 365
categories.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from granvit.corpus.check import LeftOut
from granvit.corpus.importers.base import Found, as_text, importer
from granvit.corpus.importers.coco import Variant, folder_of, holds_some, load_tables, read_tables, some_entries
from granvit.corpus.layout import CorpusError

_FILES = ("lvis_v*_train.json", "lvis_v*_val.json")


@importer("lvis")
def read_lvis(src: Path, *, images: Path | None = None, source: str = "lvis", licence: str = "") -> Iterator[Found]:
    """`src` is the folder with ``lvis_v1_train.json`` and ``lvis_v1_val.json``, or that of ``annotations/``, or a file.

    COCO's instances format, but an image has no file name: ``coco_url`` ends in its folder and name,
    ``train2017/000000391895.jpg``. The pictures are COCO's folders ``train2017/`` and ``val2017/`` beside the files or
    one level up, or below `images`. The validation file names pictures of ``train2017/`` too.

    A category's name, ``bat_(animal)``, becomes the text with blanks for underscores, its ``synonyms`` alternatives.
    ``neg_category_ids``, which are certain to be absent, and ``not_exhaustive_category_ids``, of which not every
    instance is outlined, say nothing of a region and are left out: what has no box here may still be in the picture.

    Boxes: x, y, width, height in pixels; an outline of one polygon is kept. Terms: annotations CC BY 4.0, COCO's photos
    under their Flickr licences.

    Raises:
        CorpusError: no such file, one that is not in the format, or no pictures.
    """
    for file in _lvis_files(src):
        tables = load_tables(file)
        beside = [base / name for base in (file.parent, file.parent.parent) for name in ("", "images")]
        root = images or folder_of(file, beside, [_path(image) for image in some_entries(tables["images"])])
        split = next((name for name in ("train", "val") if name in file.stem), "")
        yield from read_tables(tables, file, Variant(root, _locate, _lvis_names), source, licence, split)
        for what in ("neg_category_ids", "not_exhaustive_category_ids"):
            stated = [image[what] for image in tables["images"] if isinstance(image.get(what), list)]
            yield LeftOut(f"category in {what}", sum(map(len, stated)), file.name)


def _lvis_files(src: Path) -> list[Path]:
    if src.is_file():
        return [src]
    files = [file for name in _FILES for file in sorted([*src.glob(name), *src.glob(f"annotations/{name}")])]
    if not files:
        raise CorpusError(f"{src} holds neither {' nor '.join(_FILES)}")
    return files


def _locate(image: dict[str, Any]) -> tuple[str, str]:
    return _path(image), _path(image)


def _path(image: dict[str, Any]) -> str:
    """train2017/000000391895.jpg; the file name alone, which only version 0.5 has, does not tell the folder."""
    return "/".join(as_text(image.get("coco_url")).split("/")[-2:]) or as_text(image.get("file_name"))


def _lvis_names(category: dict[str, Any]) -> list[str]:
    synonyms = category.get("synonyms")
    names = [category.get("name"), *(synonyms if isinstance(synonyms, list) else [])]
    return [as_text(name).replace("_", " ") for name in names]


_PREFIX = "zhiyuan_objv2_"


@importer("objects365")
def read_objects365(
    src: Path, *, images: Path | None = None, source: str = "objects365", licence: str = ""
) -> Iterator[Found]:
    """`src` is a folder that holds ``zhiyuan_objv2_train.json`` or ``..._val.json`` at any depth, or one such file.

    COCO's instances format. A file name, ``images/v1/patch8/objects365_v1_00420917.jpg``, tells the patch, one of the
    archives that the pictures come in; where these were unpacked is found out: ``train/patch8/``,
    ``train/images/v1/patch8/`` or ``images/train/``, beside the file or one level up, or below `images`. A category's
    name with a slash, "Handbag/Satchel", becomes a text and its alternative; ``iscrowd`` becomes ignore.

    Boxes: x, y, width, height in pixels. Terms: annotations CC BY 4.0; the pictures, from Flickr, are under their
    owners' licences, for research.

    Raises:
        CorpusError: no such file, one that is not in the format, or no pictures.
    """
    for file in _objects365_files(src):
        tables = load_tables(file)
        split = next((name for name in ("train", "val") if file.stem == _PREFIX + name), "")
        root, depth = _place(file, split, images, tables["images"])

        def locate(image: dict[str, Any], depth: int = depth, split: str = split) -> tuple[str, str]:
            return _end(image, depth), f"{split}/{_end(image, 2)}".lstrip("/")

        yield from read_tables(tables, file, Variant(root, locate, _objects365_names), source, licence, split)


def _objects365_files(src: Path) -> list[Path]:
    files = [src] if src.is_file() else sorted(src.rglob(f"{_PREFIX}*.json"))
    if not files:
        raise CorpusError(f"{src} holds no {_PREFIX}*.json")
    return files


def _place(file: Path, split: str, images: Path | None, entries: list[dict[str, Any]]) -> tuple[Path, int]:
    """The folder of the pictures, and how many of the last parts of a file name are below it."""
    base = file.parent
    beside = [root / name for root in (base, base.parent) for name in (split, f"images/{split}", "")]
    for folder in [images] if images else beside:
        for depth in (4, 2, 1):
            if holds_some(folder, [_end(entry, depth) for entry in some_entries(entries)]):
                return folder, depth
    places = ", ".join(map(str, [images] if images else beside))
    raise CorpusError(f"{file}: found none of its pictures in {places}: name their folder")


def _end(image: dict[str, Any], depth: int) -> str:
    return "/".join(as_text(image.get("file_name")).split("/")[-depth:])


def _objects365_names(category: dict[str, Any]) -> list[str]:
    return [name.strip() for name in as_text(category.get("name")).split("/")]
