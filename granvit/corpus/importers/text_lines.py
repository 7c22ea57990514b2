"""Text transcribed line by line: files of lines, outlines, and words that stand on one line.

`read_sroie`: receipts of ICDAR 2019 SROIE, and other scans published with lines of eight coordinates and a text.
`read_icdar`: words of the ICDAR Robust Reading challenges, focused (2013) and incidental scene text (2015).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from granvit import geometry
from granvit.corpus.check import UNKNOWN_SIZE, LeftOut, Refused, Rejection, UnreadConversation
from granvit.corpus.importers.base import NO_BOX, Box, Found, as_split, importer, read_image, read_text
from granvit.corpus.importers.image_folder import LEFT_OUT, chosen, listing, pictures
from granvit.corpus.layout import CorpusError
from granvit.links import walk
from granvit.questions import ask_short
from granvit.regions import Conversation, Region, RegionImage, Turn

# Two neighbours share a line where the lower one of the two overlaps the other by half its height ...
_SAME_LINE = 0.5
# ... and where no more than this many heights lie between them: beyond it there is another column.
_LARGEST_GAP = 2.0
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


@dataclass(frozen=True)
class Word:
    """A word and its box in pixels."""

    box: Box
    text: str


def read_lines(file: Path, encoding: str = "") -> list[str]:
    """The lines of a text file that hold something, see `read_text`.

    Raises:
        Refused: "bad-encoding", or it cannot be read.
    """
    # Not `splitlines`, which also cuts at characters that occur inside texts; the gate strips what is left of CRLF.
    return [line for line in read_text(file, encoding).split("\n") if line.strip()]


def count_lines(file: Path, encoding: str = "") -> int:
    """How many regions a file of one on each line states, where its picture is missing; none if it cannot be read."""
    try:
        return len(read_lines(file, encoding))
    except Refused:
        return 0


def numbers(parts: Sequence[str]) -> list[float]:
    """The parts as numbers, or an empty list where one is none."""
    try:
        return [float(part) for part in parts] if "_" not in "".join(parts) else []  # Python's 1_000 is no number here
    except ValueError:
        return []


def unquoted(text: str) -> str:
    """A text without the quotation marks that CSV writes around one that holds commas or such marks, these doubled."""
    quoted = _QUOTED.fullmatch(text.strip())
    return quoted[1].replace('""', '"') if quoted else text


def outlined(points: list[float], text: str, ignore: bool = False) -> Region:
    """A text region of an outline x, y, x, y, ... in pixels: its upright hull, and the outline where that is finer.

    `points` holds at least one pair.
    """
    box = geometry.hull(points)
    corners = {(x, y) for x in box[::2] for y in box[1::2]}
    upright = len(points) == 8 and corners == set(zip(points[::2], points[1::2], strict=True))
    return Region(box, text=text, kind="text", polygon=None if upright else points, ignore=ignore)


def unreadable(line: str) -> Region:
    """A line that is not in the format, as a region that the gate refuses and whose text tells which it was."""
    return Region(NO_BOX, text=line, kind="text")


def joined(words: Iterable[Word]) -> Iterator[Word]:
    """Words in reading order as the lines that they stand on: hull of the boxes, texts with a blank between."""
    line: list[Word] = []
    for word in words:
        if line and not _follows(line[-1].box, word.box):
            yield _line(line)
            line = []
        line.append(word)
    if line:
        yield _line(line)


def _follows(before: Box, after: Box) -> bool:
    height = min(before[3] - before[1], after[3] - after[1])
    overlap = min(before[3], after[3]) - max(before[1], after[1])
    gap = after[0] - before[2]
    return overlap >= _SAME_LINE * height and -height <= gap <= _LARGEST_GAP * height


def _line(words: list[Word]) -> Word:
    return Word(geometry.hull([word.box for word in words]), " ".join(word.text for word in words))


def _record(root: Path, uri: str, regions: list[Region], source: str, licence: str, split: str) -> RegionImage:
    """A picture `uri` below `root`, whose size no file states."""
    return RegionImage(
        id=f"{source}/{uri}",
        image=read_image(root, uri),
        width=UNKNOWN_SIZE[0],
        height=UNKNOWN_SIZE[1],
        regions=regions,
        uri=uri,
        source=source,
        licence=licence,
        split=as_split(split),
    )


_BOX_FILES = (".csv", ".txt")


@importer("sroie")
def read_sroie(
    src: Path, *, source: str = "sroie", licence: str = "", split: str = "", encoding: str = ""
) -> Iterator[Found]:
    """`src` is a folder with ``img/*.jpg`` and for each of them ``box/*.csv`` (or ``*.txt``) of the same name.

    Each line of a box file: ``x1,y1,x2,y2,x3,y3,x4,y4,text``; the text may itself hold commas, and be quoted as in CSV.
    The files are UTF-8, or in `encoding`; one that is neither is refused as "bad-encoding". `split` is the split that
    this folder is, for the layout does not say.

    Where there is a folder ``key/`` or ``entities/`` with ``*.json`` or ``*.txt`` of the same names, each an object
    ``{"company", "date", "address", "total"}``, every field that has a value becomes a conversation that asks for it
    in a short answer, as VQA tables' questions do; one that is no text is refused as "bad-field", other fields are
    counted.

    Boxes: the four corners in pixels, of which the upright hull is taken; corners that are no upright rectangle
    are kept as polygon. Texts are upper-case whatever is printed. Terms: SROIE is offered for research.

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
            record = _record(src, uri, [_sroie_region(line) for line in lines], source, licence, split)
            record.conversations, left_out = _fields(src, stem, encoding)
            yield record
            yield from (LeftOut(what, count, uri) for what, count in left_out.items())
        except Refused as refused:
            yield Rejection(refused.reason, f"{source}/{uri}", uri, None, refused.detail, count)
    for file in (file for files in files_of.values() for file in files):
        count = count_lines(file, encoding)
        yield Rejection("missing-image", "", f"box/{file.name}", None, f"no picture img/{file.stem}.*", count)


# What is asked for each field of a receipt.
_QUESTIONS = {
    "company": "Which company issued this receipt?",
    "date": "What is the date on this receipt?",
    "address": "What is the address on this receipt?",
    "total": "What is the total on this receipt?",
}


def _fields(src: Path, stem: str, encoding: str) -> tuple[list[Conversation], Counter[str]]:
    """The fields of a receipt as conversations, and what of them is not asked for; none where no file states any."""
    places = [src / folder / f"{stem}{ending}" for folder in ("key", "entities") for ending in (".json", ".txt")]
    files = [place for place in places if place.is_file()]
    left_out = Counter({"further files of a receipt's fields": max(0, len(files) - 1)})
    if not files:
        return [], left_out
    file = files[0]
    try:
        stated = json.loads(read_text(file, encoding))
        if not isinstance(stated, dict):
            raise Refused("bad-field", f"{file.name} is no object of fields")
    except (ValueError, RecursionError) as error:
        return [UnreadConversation(Refused("bad-field", f"{file.name}: {error}"))], left_out
    except Refused as refused:
        return [UnreadConversation(refused)], left_out
    left_out["fields that are not asked for"] = len(stated.keys() - _QUESTIONS.keys())
    conversations: list[Conversation] = []
    for field, question in _QUESTIONS.items():
        value = stated.get(field)
        if value is None or (isinstance(value, str) and not value.strip()):
            left_out["fields without a value"] += 1
        elif isinstance(value, str):
            conversations.append([Turn("user", ask_short(question)), Turn("assistant", value.strip())])
        else:
            conversations.append(UnreadConversation(Refused("bad-field", f"{field} of {file.name} is no text")))
    return conversations, left_out


def _sroie_region(line: str) -> Region:
    """The region of a line; one that is not in the format becomes a region that `check_record` refuses."""
    parts = line.split(",", 8)
    points = numbers(parts[:8])
    if len(points) != 8:
        return unreadable(line)
    return outlined(points, text=unquoted(parts[8]) if len(parts) == 9 else "")


_UNREADABLE = "###"


@importer("icdar")
def read_icdar(
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
            yield _record(root, uri, [_icdar_region(line) for line in lines], source, licence, split)
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


def _icdar_region(line: str) -> Region:
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
