"""Images with regions as JSON lines: this project's plain exchange format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from granvit.corpus.importers.base import (
    as_box,
    as_number,
    as_polygon,
    as_split,
    as_text,
    importer,
    parse_object,
    read_image,
)
from granvit.corpus.layout import CorpusError
from granvit.corpus.quarantine import Refused, Rejection
from granvit.regions import Region, RegionImage

ANNOTATIONS = "annotations.jsonl"
_REQUIRED = ("image", "width", "height", "regions")


@importer("jsonl", without_regions=True)
def read(src: Path, *, source: str = "", licence: str = "") -> Iterator[RegionImage | Rejection]:
    """`src` is a folder with annotations.jsonl, or such a file; image paths are relative to it.

    One JSON object per line: ``{"image", "width", "height", "regions": [...]}``, optional "source", "split",
    "licence", "caption". A region: ``{"bbox": [x1, y1, x2, y2], "caption" or "text"}``, optional "kind" ("object"
    or "text"; by default "text" where there is a "text"), "captions" (all that are right, kept as alternatives),
    "polygon", "ignore", "score", "box_by", "text_by". Other keys are not read.

    Boxes: absolute pixels of the upright image, right and bottom edges exclusive. Terms: the pack's own; state
    them with `licence`.

    Raises:
        CorpusError: there is no such file.
    """
    file = src / ANNOTATIONS if src.is_dir() else src
    if not file.is_file():
        raise CorpusError(f"{file} is missing")
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield _record(_parse(line), file.parent, source, licence)
                except Refused as refused:
                    where = f"{file.name}:{number}"
                    yield Rejection(refused.reason, "", where, None, f"line {number}: {refused.detail}")


def _parse(line: bytes) -> dict[str, Any]:
    row = parse_object(line)
    if missing := [name for name in _REQUIRED if name not in row]:
        raise Refused("missing-field", ", ".join(missing))
    expected = {"image": str, "width": int, "height": int, "regions": list}
    for name, kind in expected.items():
        if not isinstance(row[name], kind):
            raise Refused("bad-field", f"{name} should be {kind.__name__}, got {row[name]!r:.100}")
    return row


def _record(row: dict[str, Any], root: Path, source: str, licence: str) -> RegionImage:
    source = source or as_text(row.get("source")) or root.resolve().name
    return RegionImage(
        id=f"{source}/{row['image']}",
        image=read_image(root, row["image"]),
        width=row["width"],
        height=row["height"],
        regions=[region_of(region) for region in row["regions"]],
        uri=row["image"],
        source=source,
        licence=licence or as_text(row.get("licence")),
        caption=as_text(row.get("caption")) or None,
        split=as_split(row.get("split")),
    )


def region_of(row: Any) -> Region:
    """The region of an entry of "regions"; where something is missing or odd, one that `check_record` refuses."""
    row = row if isinstance(row, dict) else {}
    captions = row.get("captions")
    return Region(
        box=as_box(row.get("bbox")),
        text=as_text(row.get("text")) or as_text(row.get("caption")),
        kind=row.get("kind", "text" if "text" in row else "object"),
        score=None if row.get("score") is None else as_number(row["score"]),
        box_by=as_text(row.get("box_by")) or "human",
        text_by=as_text(row.get("text_by")) or "human",
        alternatives=[as_text(c) for c in captions] if isinstance(captions, list) else [],
        polygon=as_polygon(row.get("polygon")),
        ignore=bool(row.get("ignore")),
    )
