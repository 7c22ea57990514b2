"""Receipts of ICDAR 2019 SROIE, and other scans published with lines of eight coordinates and a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from granvit.corpus.check import UNKNOWN_SIZE, LeftOut, Refused, Rejection
from granvit.corpus.importers.base import Found, as_split, importer, read_image
from granvit.corpus.importers.pictures import LEFT_OUT, chosen, listing
from granvit.corpus.importers.textlines import count_lines, numbers, outlined, read_lines, unquoted, unreadable
from granvit.corpus.layout import CorpusError
from granvit.regions import Region, RegionImage

_BOX_FILES = (".csv", ".txt")


@importer("sroie")
def read(
    src: Path, *, source: str = "sroie", licence: str = "", split: str = "", encoding: str = ""
) -> Iterator[Found]:
    """`src` is a folder with ``img/*.jpg`` and for each of them ``box/*.csv`` (or ``*.txt``) of the same name.

    Each line of a box file: ``x1,y1,x2,y2,x3,y3,x4,y4,text``; the text may itself hold commas, and be quoted as in CSV.
    The files are UTF-8, or in `encoding`; one that is neither is refused as "bad-encoding". `split` is the split that
    this folder is, for the layout does not say.

    Boxes: the four corners in pixels, of which the upright hull is taken; corners that are no upright rectangle
    are kept as polygon. Texts are upper-case whatever the print. Terms: SROIE is offered for research.

    Raises:
        CorpusError: `src` lacks one of the two folders.
    """
    for name in ("img", "box"):
        if not (src / name).is_dir():
            raise CorpusError(f"{src} lacks the folder {name}/; the layout is img/*.jpg and box/*.csv")
    boxes, others = chosen(src / "box", _BOX_FILES)
    yield from others
    files_of: dict[str, list[Path]] = {}
    for file in boxes:
        files_of.setdefault(file.stem, []).append(file)
    listed = list(listing(src / "img"))
    pictures = Counter(Path(name).stem for name, kind in listed if kind not in LEFT_OUT)
    for name, kind in listed:
        uri, stem, count = f"img/{name}", Path(name).stem, 0
        if kind in LEFT_OUT:
            yield LeftOut(LEFT_OUT[kind], 1, uri)
            continue
        try:
            files = files_of.pop(stem, [])
            if pictures[stem] > 1 or len(files) > 1:
                # Whose the lines are is not known: they go with the first one.
                count = sum(count_lines(file, encoding) for file in files)
                raise Refused("ambiguous-id", f"several pictures or box files have the name {stem}")
            if not files:
                raise Refused("missing-annotation", f"no file box/{stem}.csv or .txt")
            lines = read_lines(files[0], encoding)
            count = len(lines)
            yield RegionImage(
                id=f"{source}/{uri}",
                image=read_image(src, uri),
                width=UNKNOWN_SIZE[0],
                height=UNKNOWN_SIZE[1],
                regions=[_region(line) for line in lines],
                uri=uri,
                source=source,
                licence=licence,
                split=as_split(split),
            )
        except Refused as refused:
            yield Rejection(refused.reason, f"{source}/{uri}", uri, None, refused.detail, count)
    for file in (file for files in files_of.values() for file in files):
        count = count_lines(file, encoding)
        yield Rejection("missing-image", "", f"box/{file.name}", None, f"no picture img/{file.stem}.*", count)


def _region(line: str) -> Region:
    """The region of a line; one that is not in the format becomes a region that `check_record` refuses."""
    parts = line.split(",", 8)
    points = numbers(parts[:8])
    if len(points) != 8:
        return unreadable(line)
    return outlined(points, text=unquoted(parts[8]) if len(parts) == 9 else "")
