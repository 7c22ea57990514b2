"""Receipts of ICDAR 2019 SROIE, and other scans published with lines of eight coordinates and a text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from granvit.corpus.importers.base import as_split, importer, read_image
from granvit.corpus.importers.textlines import numbers, outlined, read_lines, unreadable
from granvit.corpus.layout import CorpusError
from granvit.corpus.quarantine import UNKNOWN_SIZE, Refused, Rejection
from granvit.regions import Region, RegionImage

_BOX_FILES = (".csv", ".txt")


@importer("sroie")
def read(src: Path, *, source: str = "sroie", licence: str = "", split: str = "") -> Iterator[RegionImage | Rejection]:
    """`src` is a folder with ``img/*.jpg`` and for each of them ``box/*.csv`` (or ``*.txt``) of the same name.

    Each line of a box file: ``x1,y1,x2,y2,x3,y3,x4,y4,text``; the text may itself hold commas. The files are
    UTF-8 or Latin-1. `split` is the split that this folder is, for the layout does not say.

    Boxes: the four corners in pixels, of which the upright hull is taken; corners that are no upright rectangle
    are kept as polygon. Texts are upper-case whatever the print. Terms: SROIE is offered for research.

    Raises:
        CorpusError: `src` lacks one of the two folders.
    """
    for name in ("img", "box"):
        if not (src / name).is_dir():
            raise CorpusError(f"{src} lacks the folder {name}/; the layout is img/*.jpg and box/*.csv")
    box_files = {p.stem: p for p in sorted((src / "box").iterdir()) if p.suffix.lower() in _BOX_FILES}
    for picture in sorted((src / "img").iterdir()):
        uri = f"img/{picture.name}"
        try:
            if picture.stem not in box_files:
                raise Refused("missing-annotation", f"no file box/{picture.stem}.csv or .txt")
            yield RegionImage(
                id=f"{source}/{uri}",
                image=read_image(src, uri),
                width=UNKNOWN_SIZE[0],
                height=UNKNOWN_SIZE[1],
                regions=[_region(line) for line in read_lines(box_files.pop(picture.stem))],
                uri=uri,
                source=source,
                licence=licence,
                split=as_split(split),
            )
        except Refused as refused:
            yield Rejection(refused.reason, f"{source}/{uri}", uri, None, refused.detail)
    for file in box_files.values():
        yield Rejection("missing-image", "", f"box/{file.name}", None, f"no picture img/{file.stem}.*")


def _region(line: str) -> Region:
    """The region of a line; one that is not in the format becomes a region that `check_record` refuses."""
    parts = line.split(",", 8)
    points = numbers(parts[:8])
    if len(points) != 8:
        return unreadable(line)
    return outlined(points, text=parts[8] if len(parts) == 9 else "")
