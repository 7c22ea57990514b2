"""Objects365, version 2: 2 M photos, 30 M boxes of 365 categories."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from granvit.corpus.importers.base import Found, as_text, importer
from granvit.corpus.importers.coco import Variant, holds_some, load_tables, probes, read_tables
from granvit.corpus.layout import CorpusError

_PREFIX = "zhiyuan_objv2_"


@importer("objects365")
def read(src: Path, *, images: Path | None = None, source: str = "objects365", licence: str = "") -> Iterator[Found]:
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
    for file in _files(src):
        tables = load_tables(file)
        split = next((name for name in ("train", "val") if file.stem == _PREFIX + name), "")
        root, depth = _place(file, split, images, tables["images"])

        def locate(image: dict[str, Any], depth: int = depth, split: str = split) -> tuple[str, str]:
            return _end(image, depth), f"{split}/{_end(image, 2)}".lstrip("/")

        yield from read_tables(tables, file, Variant(root, locate, _names), source, licence, split)


def _files(src: Path) -> list[Path]:
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
            if holds_some(folder, [_end(entry, depth) for entry in probes(entries)]):
                return folder, depth
    places = ", ".join(map(str, [images] if images else beside))
    raise CorpusError(f"{file}: found none of its pictures in {places}: name their folder")


def _end(image: dict[str, Any], depth: int) -> str:
    return "/".join(as_text(image.get("file_name")).split("/")[-depth:])


def _names(category: dict[str, Any]) -> list[str]:
    return [name.strip() for name in as_text(category.get("name")).split("/")]
