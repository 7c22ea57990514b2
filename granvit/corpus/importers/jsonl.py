"""Images with regions as JSON lines: this project's plain exchange format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from granvit.corpus.check import Refused, Rejection, shown
from granvit.corpus.importers.base import (
    Found,
    as_box,
    as_caption,
    as_flag,
    as_number,
    as_polygon,
    as_size,
    as_split,
    as_text,
    importer,
    read_image,
    read_regions,
)
from granvit.corpus.importers.rows import json_lines
from granvit.corpus.layout import CorpusError
from granvit.regions import Region, RegionImage

ANNOTATIONS = "annotations.jsonl"
_REQUIRED = ("image", "width", "height", "regions")


@importer("jsonl", without_regions=True)
def read(src: Path, *, source: str = "", licence: str = "", encoding: str = "") -> Iterator[Found]:
    """`src` is a folder with annotations.jsonl, or such a file; image paths are relative to it.

    One JSON object per line: ``{"image", "width", "height", "regions": [...]}``, optional "source", "split",
    "licence", "caption". A region: ``{"bbox": [x1, y1, x2, y2], "caption" or "text"}``, optional "kind" ("object"
    or "text"; by default "text" where there is a "text"), "captions" (all that are right, kept as alternatives),
    "polygon", "ignore", "score", "box_by", "text_by". Other keys are not read. A size that is null, 0 or -1 is not
    known. A value of another type than its field's costs its region, or its picture, as "bad-field". Lines that are not
    UTF-8 are in `encoding`.

    Boxes: absolute pixels of the upright image, right and bottom edges exclusive. Terms: the pack's own; state
    them with `licence`.

    Raises:
        CorpusError: there is no such file.
    """
    file = src / ANNOTATIONS if src.is_dir() else src
    if not file.is_file():
        raise CorpusError(f"{file} is missing")
    for number, row in json_lines(file, encoding):
        count = 0
        try:
            if isinstance(row, Refused):
                count = row.regions
                raise row
            count = len(row["regions"]) if isinstance(row.get("regions"), list) else 0
            yield _record(row, file.parent, source, licence)
        except Refused as refused:
            where = f"{file.name}:{number}"
            yield Rejection(refused.reason, "", where, None, f"line {number}: {refused.detail}", count)


def _record(row: dict[str, Any], root: Path, source: str, licence: str) -> RegionImage:
    if missing := [name for name in _REQUIRED if name not in row]:
        raise Refused("missing-field", ", ".join(missing))
    for name, kind in {"image": str, "regions": list}.items():
        if not isinstance(row[name], kind):
            raise Refused("bad-field", f"{name} should be {kind.__name__}, got {shown(row[name])}")
    width, height = as_size(row["width"], row["height"])
    source = source or _name(row, "source") or root.resolve().name
    return RegionImage(
        id=f"{source}/{row['image']}",
        image=read_image(root, row["image"]),
        width=width,
        height=height,
        regions=read_regions(row["regions"], region_of),
        uri=row["image"],
        source=source,
        licence=licence or _name(row, "licence"),
        caption=as_caption(row.get("caption")),
        split=as_split(row.get("split")),
    )


def region_of(row: Any) -> Region:
    """The region of an entry of "regions"; where a number or text is missing or odd, one that `check_record` refuses.

    Raises:
        Refused: "bad-field" for another field of another type than it should be.
    """
    row = row if isinstance(row, dict) else {}
    captions = row.get("captions")
    if captions is not None and not isinstance(captions, list):
        raise Refused("bad-field", f"captions should be a list, got {shown(captions)}")
    return Region(
        box=as_box(row.get("bbox")),
        text=as_text(row.get("text")) or as_text(row.get("caption")),
        kind=row.get("kind", "text" if "text" in row else "object"),
        score=None if row.get("score") is None else as_number(row["score"]),
        box_by=_name(row, "box_by") or "human",
        text_by=_name(row, "text_by") or "human",
        alternatives=[as_text(c) for c in captions or []],
        polygon=as_polygon(row.get("polygon")),
        ignore=as_flag("ignore", row.get("ignore")),
    )


def _name(row: dict[str, Any], field: str) -> str:
    value = row.get(field)
    if value is not None and not isinstance(value, str):
        raise Refused("bad-field", f"{field} should be a string, got {shown(value)}")
    return value or ""
