"""COCO's instances and captions, which nearly every detector's trainer reads."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from granvit import geometry
from granvit.corpus.exporters.base import ExportSummary, JsonRows, exporter, part_of, save_picture, write_object
from granvit.regions import Region, RegionImage

_TEXT = "text"
_NAMELESS = "ignored"


@dataclass
class _Part:
    """What belongs into the files of one split."""

    images: JsonRows
    annotations: JsonRows
    captions: JsonRows


@exporter("coco", keeps=("score", "polygon", "licence"))
def write(records: Iterable[RegionImage], out: Path) -> ExportSummary:
    """``annotations/instances_train.json``, ``annotations/captions_train.json`` and ``train/00000001.jpg``.

    One part per split, "all" for images without one. Categories are the objects' texts, each different one a
    category, numbered as they come; all parts have the same. Regions of text are of the category "text", with
    ``"attributes": {"text": ...}``. Ignored regions have ``iscrowd`` 1. Scores are kept as "score", a polygon as
    "segmentation"; an image's "name" is its id in the corpus. Conversations, other texts of a region, and who made
    box and text have no place there, and are counted. The importer coco reads it back.

    Boxes: x, y, width, height in pixels, from 0, unrounded; "area" is that of the box.
    """
    summary = ExportSummary()
    parts: dict[str, _Part] = {}
    categories: dict[str, int] = {}
    licences: dict[str, int] = {}
    with ExitStack() as open_files:
        for record in records:
            name = part_of(record)
            if name not in parts:
                parts[name] = _Part(*(open_files.enter_context(JsonRows(out)) for _ in range(3)))
            part = parts[name]
            summary.images += 1
            if record.conversations:
                summary.skipped["conversations"] += len(record.conversations)
            part.images.add(
                {
                    "id": summary.images,
                    "file_name": save_picture(record, out / name, summary.images),
                    "width": record.width,
                    "height": record.height,
                    "license": licences.setdefault(record.licence, len(licences) + 1),
                    "name": record.id,
                }
            )
            if record.caption:
                number = part.captions.count + 1
                part.captions.add({"id": number, "image_id": summary.images, "caption": record.caption})
            for region in record.regions:
                summary.regions += 1
                part.annotations.add(_annotation(region, summary.regions, summary.images, categories))
        _write_files(out, parts, categories, licences)
    return summary


def _write_files(out: Path, parts: dict[str, _Part], categories: dict[str, int], licences: dict[str, int]) -> None:
    head = {
        "info": {"description": "exported by granvit"},
        "licenses": [{"id": number, "name": name, "url": ""} for name, number in licences.items()],
    }
    listed = [
        {"id": number, "name": name, "supercategory": _TEXT if name == _TEXT else "object"}
        for name, number in categories.items()
    ]
    for name, part in parts.items():
        instances = {**head, "images": part.images, "annotations": part.annotations, "categories": listed}
        write_object(out / f"annotations/instances_{name}.json", instances)
        if part.captions.count:
            captions = {**head, "images": part.images, "annotations": part.captions}
            write_object(out / f"annotations/captions_{name}.json", captions)


def _annotation(region: Region, number: int, image: int, categories: dict[str, int]) -> dict[str, Any]:
    is_text = region.kind == "text"
    category = _TEXT if is_text else region.text or _NAMELESS
    width, height = geometry.sizes(region.box)[0].tolist()
    annotation = {
        "id": number,
        "image_id": image,
        "category_id": categories.setdefault(category, len(categories) + 1),
        "bbox": [*region.box[:2], width, height],
        "area": width * height,
        "iscrowd": int(region.ignore),
        "segmentation": [region.polygon] if region.polygon else [],
    }
    if is_text:
        annotation["attributes"] = {"text": region.text}
    if region.score is not None:
        annotation["score"] = region.score
    return annotation
