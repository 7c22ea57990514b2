"""Contact sheets: images with their regions, of an audit also with what is right or wrong with each of them.

An audit's images are chosen by a hash, so that anyone can choose them again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from granvit.corpus.audit.agreement import SAME_CAPTION, Opinion
from granvit.corpus.audit.human import KINDS, compare
from granvit.draw import colors_for, draw_boxes
from granvit.geometry import View
from granvit.images import ImageError, decode
from granvit.page import data_uri, write_page
from granvit.regions import Region, RegionImage
from granvit.sampling import lowest_by_hash
from granvit.texts import exact_match, rouge_l_each


def sample(images: Iterable[tuple[int, str, str]], count: int, seed: int) -> list[int]:
    """The positions of up to `count` images, spread evenly over the sources.

    Within a source, those whose hash with the seed is smallest: the choice depends neither on the order of the corpus
    nor on the machine, and an image added to the corpus changes it by one image at most.

    Args:
        images: (position, source, id) of each candidate.
    """
    lowest = lowest_by_hash(((position, source, f"{seed}/{id}") for position, source, id in images), count)
    queues = [queue for _, queue in sorted(lowest.items())]
    turns = [queue[turn] for turn in range(count) for queue in queues if turn < len(queue)]
    return turns[:count]


LONGEST_SIDE = 900


class Reason(NamedTuple):
    """Why a box is shown: its name in the page, its colour there, and whether it is a problem."""

    label: str
    color: str
    problem: bool


# In the order in which a person wants to see them; a box takes the colour of its first reason.
REASONS = {
    "false": Reason("false: no human box there", "#b91c1c", True),
    "missed": Reason("missed: a human box, not found", "#d97706", True),
    "text-differs": Reason("box right, text differs", "#7c3aed", True),
    "captioner-differs": Reason("second captioner disagrees", "#db2777", True),
    "reread-differs": Reason("read differently from its crop", "#db2777", True),
    "detector-differs": Reason("second detector doesn't see it", "#db2777", True),
    "detector-only": Reason("only the second detector sees it", "#0891b2", True),
    "matched": Reason("matched: box and text right", "#059669", False),
    "agreed": Reason("another model agrees", "#4d7c0f", False),
    "excused": Reason("in a region people ignored", "#6b7280", False),
    "ignored": Reason("marked to be ignored", "#6b7280", False),
    "unjudged": Reason("not judged", "#2563eb", False),
}


@dataclass
class Mark:
    """A box of the sheet.

    Attributes:
        box: xyxy pixels of the image.
        text: what the corpus says; of a missed region, what people wrote.
        reasons: keys of `REASONS`, the most important first.
        notes: what people, or another annotator, say instead.
    """

    box: tuple[float, float, float, float]
    text: str
    kind: str
    reasons: list[str]
    score: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def color(self) -> str:
        return REASONS[self.reasons[0]].color

    @property
    def problem(self) -> bool:
        """Whether it is a problem."""
        return any(REASONS[reason].problem for reason in self.reasons)

    @property
    def dashed(self) -> bool:
        """Whether the box is not one of the corpus."""
        return self.reasons[0] in ("missed", "detector-only")


@dataclass
class Card:
    """An image of the sheet; `src` is the picture as a data URI, "" where the corpus has no file for it."""

    id: str
    source: str
    width: int
    height: int
    src: str
    marks: list[Mark]

    @property
    def counts(self) -> dict[str, int]:
        """How many marks have each reason."""
        found = Counter(reason for mark in self.marks for reason in mark.reasons)
        return {reason: found[reason] for reason in REASONS if found[reason]}


def make_card(
    record: RegionImage,
    picture: Image.Image | None,
    human: RegionImage | None,
    kinds: Sequence[str],
    opinions: dict[str, Opinion],
) -> Card:
    """One image of the sheet.

    Args:
        human: the human regions of the same image, if there are any.
        kinds: the kinds of region that people annotated in this source; others are not judged.
        opinions: the checks' answers by their names.
    """
    marks = {i: Mark(r.box, r.text, r.kind, [], r.score) for i, r in enumerate(record.regions)}
    others: list[Mark] = []
    for kind in KINDS:
        if human is not None and kind in kinds:
            others += _compare_with_human(record, human, kind, marks)
    for name, opinion in opinions.items():
        for index in opinion.agrees:
            marks[index].reasons.append("agreed")
        for index, said in opinion.differs.items():
            marks[index].reasons.append(f"{name}-differs")
            marks[index].notes.append(f"{name}: {said or '(nothing)'}")
        others += [Mark(r.box, r.text, r.kind, [f"{name}-only"], r.score) for r in opinion.more]
    for index, region in enumerate(record.regions):
        if not marks[index].reasons:
            marks[index].reasons = ["ignored" if region.ignore else "unjudged"]
    shown = [*marks.values(), *others]
    order = list(REASONS)
    for mark in shown:
        mark.reasons = sorted(set(mark.reasons), key=order.index)
    shown.sort(key=lambda mark: order.index(mark.reasons[0]))
    return Card(record.id, record.source, record.width, record.height, _embedded(picture), shown)


def _compare_with_human(record: RegionImage, human: RegionImage, kind: str, marks: dict[int, Mark]) -> list[Mark]:
    """Compare the regions of one kind with the human ones; returns marks for those that only people have."""
    compared = compare(record, human, kind)
    positions = [i for i, r in enumerate(record.regions) if r.kind == kind and not r.ignore]
    for i, j, overlap in compared.matching.pairs:
        mark, true = marks[positions[i]], compared.true[j]
        mark.reasons.append("matched" if _same_text(mark.text, true) else "text-differs")
        mark.notes.append(f"IoU {overlap:.2f}" + ("" if mark.reasons[-1] == "matched" else f", people: {true.text}"))
    for i in compared.matching.false:
        marks[positions[i]].reasons.append("false")
    for i in compared.matching.ignored:
        marks[positions[i]].reasons.append("excused")
    missed = [compared.true[j] for j in compared.matching.missed]
    return [Mark(r.box, r.text, r.kind, ["missed"]) for r in missed]


def _same_text(text: str, true: Region) -> bool:
    """Transcriptions: equal but for letter case and white space. Captions: they share words, see `SAME_CAPTION`."""
    wordings = [true.text, *true.alternatives]
    if true.kind == "object":
        return rouge_l_each([text], [wordings])[0] >= SAME_CAPTION
    return exact_match([text], [wordings]) == 1


def _embedded(picture: Image.Image | None) -> str:
    if picture is None:
        return ""
    small = picture.copy()
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return data_uri(small, quality=75)


SHOWN_SIDE = 1_000


@dataclass
class Shown:
    """An image of the page; `picture` is the drawn picture as a data URI, or why there is none."""

    record: RegionImage
    picture: str
    problem: str
    rows: list[tuple[int, str, Region]]


def write_sheet(records: Iterable[RegionImage], path: Path, title: str) -> int:
    """Draw the records and write the page; returns how many there are. An unreadable picture is reported, not drawn."""
    shown = [_show(record) for record in records]
    regions = sum(len(entry.record.regions) for entry in shown)
    said = sum(len(entry.record.conversations) for entry in shown)
    talk = f", {said} conversations" if said else ""
    summary = f"{len(shown)} images, {regions} regions{talk}. Frames in dashes are marked to be ignored."
    write_page(path, "sheet.html.j2", title=title, summary=summary, shown=shown)
    return len(shown)


def _show(record: RegionImage) -> Shown:
    colors = colors_for(len(record.regions))
    rows = [(n, color, region) for n, (color, region) in enumerate(zip(colors, record.regions, strict=True), start=1)]
    if record.image is None:
        why = "a conversation alone" if record.text_only else "the corpus has no file for this image"
        return Shown(record, "", why, rows)
    try:
        picture = decode(record.image)
    except ImageError as error:
        return Shown(record, "", str(error), rows)
    full = picture.size
    picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    boxes = View((0, 0, *full), (0, 0), full, picture.size).to_canvas([region.box for region in record.regions])
    dashed = [region.ignore for region in record.regions]
    drawn = draw_boxes(picture, boxes, [str(n) for n, _, _ in rows], colors, dashed=dashed)
    return Shown(record, data_uri(drawn, quality=80), "", rows)
