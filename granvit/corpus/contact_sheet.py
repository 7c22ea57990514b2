"""Some images of a corpus with their boxes and texts, as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from granvit.draw import colors_for, draw_boxes
from granvit.geometry import View
from granvit.images import ImageError, decode
from granvit.page import data_uri, write_page
from granvit.regions import Region, RegionImage

LONGEST_SIDE = 1_000


@dataclass
class Shown:
    """An image of the page; `picture` is the drawn picture as a data URI, or why there is none."""

    record: RegionImage
    picture: str
    problem: str
    rows: list[tuple[int, str, Region]]


def write_sheet(records: Iterable[RegionImage], path: Path, title: str) -> int:
    """Draw the records and write the page; returns how many there are. An unreadable picture is told, not drawn."""
    shown = [_show(record) for record in records]
    regions = sum(len(entry.record.regions) for entry in shown)
    summary = f"{len(shown)} images, {regions} regions. Frames in dashes are marked to be ignored."
    write_page(path, "sheet.html.j2", title=title, summary=summary, shown=shown)
    return len(shown)


def _show(record: RegionImage) -> Shown:
    colors = colors_for(len(record.regions))
    rows = [(n, color, region) for n, (color, region) in enumerate(zip(colors, record.regions, strict=True), start=1)]
    if record.image is None:
        return Shown(record, "", "the corpus has no file for this image", rows)
    try:
        picture = decode(record.image)
    except ImageError as error:
        return Shown(record, "", str(error), rows)
    full = picture.size
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    boxes = View((0, 0, *full), (0, 0), full, picture.size).to_canvas([region.box for region in record.regions])
    dashed = [region.ignore for region in record.regions]
    drawn = draw_boxes(picture, boxes, [str(n) for n, _, _ in rows], colors, dashed=dashed)
    return Shown(record, data_uri(drawn, quality=80), "", rows)
