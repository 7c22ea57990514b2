"""COCO's instance annotations, and the many data sets published in their format."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from granvit.corpus.importers.base import as_id, as_polygon, as_sides, as_text, importer, read_image, read_json
from granvit.corpus.layout import CorpusError
from granvit.corpus.quarantine import UNKNOWN_SIZE, Refused, Rejection
from granvit.regions import Region, RegionImage

_Entry = TypeVar("_Entry")

_PREFIX = "instances_"
_IN_IMAGE_FOLDER = "_annotations.coco.json"

# So many pictures, evenly spread, are looked for to find out their folder: of a large set often only a part is here.
_PROBES = 1000


@importer("coco")
def read(
    src: Path, *, images: Path | None = None, captions: Path | None = None, source: str = "coco", licence: str = ""
) -> Iterator[RegionImage | Rejection]:
    """`src` is an instances JSON file, or the folder of a data set, of which all instances files are read.

    Layout: ``annotations/instances_val2017.json`` with its pictures in ``val2017/`` (or ``images/val2017/``,
    ``images/``), or ``_annotations.coco.json`` among its pictures; elsewhere with `images`. Captions, if any, from
    `captions` or ``captions_val2017.json`` beside the instances: of an image's captions the longest is kept.

    Boxes: x, y, width, height in pixels. The category's name becomes the text, unless there is a transcription,
    ``"attributes": {"text"}``, as annotation tools write it; ``iscrowd`` becomes ignore; an outline of one polygon is
    kept. Terms: COCO's annotations are CC BY 4.0, its photos under their Flickr licences.

    Raises:
        CorpusError: no instances file, one that is not in the format, or no pictures.
    """
    for file in _instance_files(src):
        yield from _read_file(file, images, captions, source, licence)


def _instance_files(src: Path) -> list[Path]:
    if src.is_file():
        return [src]
    files = sorted(src.glob(f"annotations/{_PREFIX}*.json")) or sorted(src.glob(_IN_IMAGE_FOLDER))
    if not files:
        raise CorpusError(f"{src} holds neither annotations/{_PREFIX}*.json nor {_IN_IMAGE_FOLDER}")
    return files


def _read_file(
    file: Path, images: Path | None, captions: Path | None, source: str, licence: str
) -> Iterator[RegionImage | Rejection]:
    tables = load_tables(file)
    part = file.stem.removeprefix(_PREFIX) if file.stem.startswith(_PREFIX) else ""
    base = file.parent.parent
    beside = [base / part, base / "images" / part, base / "images", file.parent] if part else [file.parent]
    root = images or folder_of(file, beside, [as_text(i.get("file_name")) for i in probes(tables["images"])])
    split = next((name for name in ("train", "val", "test") if part.startswith(name)), "")
    caption_of = _captions(captions or file.with_name(f"captions_{part}.json"), required=captions is not None)

    def locate(image: dict[str, Any]) -> tuple[str, str]:
        name = as_text(image.get("file_name"))
        return name, f"{root.resolve().name}/{name}"

    yield from read_tables(tables, file, Variant(root, locate), source, licence, split, caption_of)


@dataclass(frozen=True)
class Variant:
    """What a data set in COCO's format does in its own way.

    Attributes:
        root: the folder that pictures are read from.
        locate: of an entry of "images", the picture's path below `root`, and its uri.
        names: of an entry of "categories", its names, the best one first.
    """

    root: Path
    locate: Callable[[dict[str, Any]], tuple[str, str]]
    names: Callable[[dict[str, Any]], list[str]] = lambda category: [as_text(category.get("name"))]


def read_tables(
    tables: dict[str, Any],
    file: Path,
    variant: Variant,
    source: str,
    licence: str,
    split: str,
    caption_of: dict[Any, str] | None = None,
) -> Iterator[RegionImage | Rejection]:
    """The records of the tables of `file`, joined by their ids; `caption_of` holds captions by image id.

    Raises:
        CorpusError: a category's id is neither number nor string.
    """
    names = _names(tables["categories"], file, variant)
    by_image = defaultdict(list)
    for annotation in tables["annotations"]:
        by_image[as_id(annotation.get("image_id"))].append(annotation)
    for image in tables["images"]:
        key = as_id(image.get("id"))
        path, uri = variant.locate(image)
        listed = [] if key is None else by_image.pop(key, [])
        try:
            if key is None:
                raise Refused("bad-field", f"an image's id is a number or a string, got {image.get('id')!r:.100}")
            yield RegionImage(
                id=f"{source}/{uri}",
                image=read_image(variant.root, path),
                width=image.get("width", UNKNOWN_SIZE[0]),
                height=image.get("height", UNKNOWN_SIZE[1]),
                regions=[_region(annotation, names) for annotation in listed],
                uri=uri,
                source=source,
                licence=licence,
                caption=(caption_of or {}).get(key),
                split=split,
            )
        except Refused as refused:
            yield Rejection(refused.reason, f"{source}/{uri}", uri, None, refused.detail)
    for orphans in by_image.values():
        for index, annotation in enumerate(orphans):
            unknown = repr(annotation.get("image_id"))[:100]
            detail = f"annotation {annotation.get('id')} names image {unknown}, which is not listed"
            yield Rejection("unknown-image", "", file.name, index, detail)


def _names(categories: list[dict[str, Any]], file: Path, variant: Variant) -> dict[Any, list[str]]:
    for category in categories:
        if as_id(category.get("id")) is None:
            raise CorpusError(f"{file}: a category's id is a number or a string, got {category.get('id')!r:.100}")
    return {as_id(category["id"]): variant.names(category) for category in categories}


def load_tables(file: Path, names: tuple[str, ...] = ("images", "annotations", "categories")) -> dict[str, Any]:
    """The object in a JSON file, whose entries of these `names` are lists of objects.

    Raises:
        CorpusError: it is not.
    """
    data = read_json(file)
    for name in names:
        entries = data.get(name) if isinstance(data, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise CorpusError(f"{file}: not in COCO's format: {name!r} should be a list of objects")
    return data


def probes(entries: list[_Entry]) -> list[_Entry]:
    """Some of the entries, enough to find out where their pictures are."""
    return entries[:: len(entries) // _PROBES + 1]


def holds_some(folder: Path, names: list[str]) -> bool:
    """Whether one of the pictures of these names is below a folder."""
    return any(os.path.isfile(folder / name) for name in names if name)


def folder_of(file: Path, candidates: list[Path], names: list[str]) -> Path:
    """The first folder that holds some of the pictures that `file` names.

    Raises:
        CorpusError: none does.
    """
    for folder in candidates:
        if holds_some(folder, names):
            return folder
    raise CorpusError(f"{file}: found none of its pictures in {', '.join(map(str, candidates))}: name their folder")


def _captions(file: Path, required: bool) -> dict[Any, str]:
    """The longest caption by image id."""
    if not required and not file.exists():
        return {}
    longest: dict[Any, str] = {}
    for annotation in load_tables(file, ("annotations",))["annotations"]:
        image_id, caption = as_id(annotation.get("image_id")), as_text(annotation.get("caption"))
        longest[image_id] = max(longest.get(image_id, ""), caption, key=len)
    return longest


def _region(annotation: dict[str, Any], names: dict[Any, list[str]]) -> Region:
    outline = annotation.get("segmentation")
    attributes = annotation.get("attributes")
    text, *others = names.get(as_id(annotation.get("category_id")), [""])
    is_text = False
    if isinstance(attributes, dict) and "text" in attributes:
        text, others, is_text = as_text(attributes["text"]), [], True
    return Region(
        box=as_sides(annotation.get("bbox")),
        text=text,
        kind="text" if is_text else "object",
        alternatives=others,
        polygon=as_polygon(outline[0]) if isinstance(outline, list) and len(outline) == 1 else None,
        ignore=bool(annotation.get("iscrowd") or annotation.get("ignore")),
    )
