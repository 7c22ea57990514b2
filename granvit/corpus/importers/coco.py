"""COCO's instance annotations, and the many data sets published in their format."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from granvit.corpus.importers.base import Box, as_box, as_polygon, as_text, importer, read_image
from granvit.corpus.layout import CorpusError
from granvit.corpus.quarantine import UNKNOWN_SIZE, Refused, Rejection
from granvit.regions import Region, RegionImage

_PREFIX = "instances_"
_IN_IMAGE_FOLDER = "_annotations.coco.json"


@importer("coco")
def read(
    src: Path, *, images: Path | None = None, captions: Path | None = None, source: str = "coco", licence: str = ""
) -> Iterator[RegionImage | Rejection]:
    """`src` is an instances JSON file, or the folder of a data set, of which all instances files are read.

    Layout: ``annotations/instances_val2017.json`` with its pictures in ``val2017/`` (or ``images/val2017/``,
    ``images/``), or ``_annotations.coco.json`` among its pictures; elsewhere with `images`. Captions, if any, from
    `captions` or ``captions_val2017.json`` beside the instances: of an image's captions the longest is kept.

    Boxes: x, y, width, height in pixels. The category's name becomes the text; ``iscrowd`` becomes ignore; an
    outline of one polygon is kept. Terms: COCO's annotations are CC BY 4.0, its photos under their Flickr licences.

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
    data = _load(file, ("images", "annotations", "categories"))
    part = file.stem.removeprefix(_PREFIX) if file.stem.startswith(_PREFIX) else ""
    root = images or _image_folder(file, part, data["images"])
    split = next((name for name in ("train", "val", "test") if part.startswith(name)), "")
    names = {category.get("id"): as_text(category.get("name")) for category in data["categories"]}
    caption_of = _captions(captions or file.with_name(f"captions_{part}.json"), required=captions is not None)
    by_image = defaultdict(list)
    for annotation in data["annotations"]:
        by_image[annotation.get("image_id")].append(annotation)
    for image in data["images"]:
        annotations = by_image.pop(image.get("id"), [])
        name = as_text(image.get("file_name"))
        uri = f"{root.resolve().name}/{name}"
        try:
            yield RegionImage(
                id=f"{source}/{uri}",
                image=read_image(root, name),
                width=image.get("width", UNKNOWN_SIZE[0]),
                height=image.get("height", UNKNOWN_SIZE[1]),
                regions=[_region(annotation, names) for annotation in annotations],
                uri=uri,
                source=source,
                licence=licence,
                caption=caption_of.get(image.get("id")),
                split=split,
            )
        except Refused as refused:
            yield Rejection(refused.reason, f"{source}/{uri}", uri, None, refused.detail)
    for unknown, annotations in by_image.items():
        for index, annotation in enumerate(annotations):
            detail = f"annotation {annotation.get('id')} names image {unknown!r}, which is not listed"
            yield Rejection("unknown-image", "", file.name, index, detail)


def _load(file: Path, lists: tuple[str, ...]) -> dict[str, Any]:
    try:
        data = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CorpusError(f"{file}: {error}") from error
    for name in lists:
        entries = data.get(name) if isinstance(data, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise CorpusError(f"{file}: not in COCO's format: {name!r} should be a list of objects")
    return data


def _image_folder(file: Path, part: str, images: list[dict[str, Any]]) -> Path:
    base = file.parent.parent
    candidates = [base / part, base / "images" / part, base / "images", file.parent] if part else [file.parent]
    names = [name for image in images[:50] if (name := as_text(image.get("file_name")))]
    for folder in candidates:
        if any((folder / name).is_file() for name in names):
            return folder
    raise CorpusError(f"{file}: found none of its pictures in {', '.join(map(str, candidates))}: name their folder")


def _captions(file: Path, required: bool) -> dict[Any, str]:
    """The longest caption by image id."""
    if not required and not file.exists():
        return {}
    longest: dict[Any, str] = {}
    for annotation in _load(file, ("annotations",))["annotations"]:
        image_id, caption = annotation.get("image_id"), as_text(annotation.get("caption"))
        longest[image_id] = max(longest.get(image_id, ""), caption, key=len)
    return longest


def _region(annotation: dict[str, Any], names: dict[Any, str]) -> Region:
    outline = annotation.get("segmentation")
    return Region(
        box=_corners(as_box(annotation.get("bbox"))),
        text=names.get(annotation.get("category_id"), ""),
        polygon=as_polygon(outline[0]) if isinstance(outline, list) and len(outline) == 1 else None,
        ignore=bool(annotation.get("iscrowd") or annotation.get("ignore")),
    )


def _corners(box: Box) -> Box:
    x, y, width, height = box
    return x, y, x + width, y + height
