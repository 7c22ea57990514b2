"""Words of the ICDAR Robust Reading challenges: focused scene text (2013) and incidental scene text (2015)."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from granvit.corpus.check import UNKNOWN_SIZE, Refused, Rejection
from granvit.corpus.importers.base import Found, as_split, importer, read_image
from granvit.corpus.importers.pictures import pictures
from granvit.corpus.importers.textlines import count_lines, numbers, outlined, read_lines, unreadable
from granvit.corpus.layout import CorpusError
from granvit.links import walk
from granvit.regions import Region, RegionImage

_UNREADABLE = "###"


@importer("icdar")
def read(
    src: Path,
    *,
    images: Path | None = None,
    source: str = "icdar",
    licence: str = "",
    split: str = "",
    encoding: str = "",
) -> Iterator[Found]:
    """`src` is a folder with, at any depth, ``gt_img_1.txt`` for each picture ``img_1.jpg``.

    So ``ch4_training_images/`` and ``ch4_training_localization_transcription_gt/`` side by side in `src`, or one
    folder of both; the pictures may be elsewhere, in `images`. A folder holds one split, which `split` names: the
    pictures of training and test have the same names.

    Each line is a word. 2015: ``x1,y1,x2,y2,x3,y3,x4,y4,text``, UTF-8 with a byte-order mark; the text may hold
    commas, and ``###`` is a word that nobody could read, kept as ignore. 2013: ``left, top, right, bottom, "text"``,
    in its training part with blanks for commas. Files that are not UTF-8 are in `encoding`.

    Boxes: pixels. Four corners, clockwise from the text's own top left, are kept as polygon with their upright hull
    as box. Terms: registered users of the Robust Reading portal, research only.

    Raises:
        CorpusError: no such file, or two pictures or two files of the same name.
    """
    truths = _by_stem(src, (name for name in walk(src) if fnmatch(name.rpartition("/")[2], "gt_*.txt")))
    if not truths:
        raise CorpusError(f"{src} holds no gt_*.txt; the layout is gt_img_1.txt for each picture img_1.jpg")
    root = images or src
    for stem, uri in _by_stem(root, pictures(root)).items():
        count = 0
        try:
            if f"gt_{stem}" not in truths:
                raise Refused("missing-annotation", f"no file gt_{stem}.txt")
            lines = read_lines(src / truths.pop(f"gt_{stem}"), encoding)
            count = len(lines)
            yield RegionImage(
                id=f"{source}/{uri}",
                image=read_image(root, uri),
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
    for stem, uri in truths.items():
        count = count_lines(src / uri, encoding)
        yield Rejection("missing-image", "", uri, None, f"no picture {stem.removeprefix('gt_')}.*", count)


def _by_stem(root: Path, uris: Iterator[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for uri in uris:
        stem = Path(uri).stem
        if stem in found:
            raise CorpusError(f"{root}: {found[stem]} and {uri} have the same name: import one split at a time")
        found[stem] = uri
    return found


def _region(line: str) -> Region:
    quoted = _rectangle(line)
    if quoted is not None:
        return quoted
    parts = line.split(",", 8)
    points = numbers(parts[:8])
    if len(points) != 8 or len(parts) != 9:
        return unreadable(line)
    text = parts[8].strip()
    return outlined(points, text=text, ignore=text == _UNREADABLE)


def _rectangle(line: str) -> Region | None:
    """The word of a line of 2013, None where it is none: four numbers and a text in quotation marks."""
    head, mark, rest = line.strip().partition('"')
    box = numbers(head.replace(",", " ").split())
    if not mark or len(box) != 4 or not rest.endswith('"'):
        return None
    left, top, right, bottom = box
    return Region((left, top, right, bottom), text=rest[:-1], kind="text", ignore=rest[:-1] == _UNREADABLE)
