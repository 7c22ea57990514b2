"""What the layouts of transcribed text share: files of lines, outlines, and words that stand on one line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from granvit import geometry
from granvit.corpus.check import Refused
from granvit.corpus.importers.base import NO_BOX, Box, read_text
from granvit.regions import Region

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
