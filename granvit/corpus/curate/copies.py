"""What is said of a file's copies, for the one that stays: data sets share pictures, each with its own words.

Photographs of COCO are in its own data with regions and in LLaVA's with conversations. Of a file that is there several
times one record stays, and takes over what the others say: regions where it has none, conversations, a caption if it
has none. Then it names all their sources and terms. Copies of another size or compression are not joined: their boxes
are of other pixels.
"""

from __future__ import annotations

import json
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import Self

import numpy as np
from tqdm import tqdm

from granvit import geometry
from granvit.corpus.curate.filters import COINCIDE, Filtered, Filters, apply_filters, nested_reasons
from granvit.corpus.curate.report import WITH_IMAGE
from granvit.corpus.store import Corpus
from granvit.regions import Conversation, Region, RegionImage

UNKNOWN_LICENCE = "unknown"
_IN_MEMORY = 64 << 20


@dataclass
class Share:
    """What one of the copies adds to the record that stays.

    Attributes:
        record: the copy, with the regions that passed the filters.
        regions: those it adds, each with its index before the filters.
        dropped: how many regions it does not add, by reason: "with-image" where the record has one of the same kind
            already, "same-box" and "nested-box" where it repeats the text of one.
        caption: whether its caption is the record's.
        conversations: those it adds.
        lost: captions that another one stands for.
    """

    record: RegionImage
    regions: list[tuple[int, Region]]
    dropped: Counter[str]
    caption: bool
    conversations: list[Conversation]
    lost: Counter[str]


class Copies:
    """What is said of copies, by the row of the file that stays; a context manager.

    A copy may be anywhere in the corpus, and to read one record is to read its row group. So all of them are read once,
    in their order, and kept in a file of their own, which is in memory while it is small.

    Args:
        corpus: what they are rows of.
        filters: what the regions of copies are held to, by themselves as those of any image.
        of: the rows of copies, by the row that stays.
        folder: where the file is while it is needed.
        progress: show a progress bar.
    """

    def __init__(
        self, corpus: Corpus, filters: Filters, of: Mapping[int, Sequence[int]], folder: Path, progress: bool = False
    ) -> None:
        self._nested, self._of = filters.nested, of
        rows = sorted(row for copies in of.values() for row in copies)
        self._places = {row: place for place, row in enumerate(rows)}
        self._file = SpooledTemporaryFile(_IN_MEMORY, dir=str(folder))
        self._ends = array("q", [0])
        records = (corpus.described(row) for row in tqdm(rows, "copies", disable=not (progress and rows)))
        for filtered in apply_filters(records, filters):
            packed = zlib.compress(_packed(filtered), 1)
            self._file.write(packed)
            self._ends.append(self._ends[-1] + len(packed))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __contains__(self, row: object) -> bool:
        """Whether a row is a copy's whose content is taken over."""
        return row in self._places

    def shares(self, row: int, stays: Filtered) -> list[Share]:
        """What makes up the record of a row that stays: its own share first, then one for each copy."""
        return list(_shares([stays, *map(self._filtered, self._of.get(row, ()))], self._nested))

    def _filtered(self, row: int) -> Filtered:
        start, end = self._ends[self._places[row] : self._places[row] + 2]
        self._file.seek(start)
        return _unpacked(zlib.decompress(self._file.read(end - start)))


def _packed(filtered: Filtered) -> bytes:
    return json.dumps([filtered.record.to_row(), filtered.places]).encode()


def _unpacked(packed: bytes) -> Filtered:
    row, places = json.loads(packed)
    return Filtered(RegionImage.from_row(row), places, None)  # a copy is an image that passed


def _shares(parts: Sequence[Filtered], nested: bool) -> Iterator[Share]:
    regions: list[Region] = []
    conversations: list[Conversation] = []
    caption: str | None = None
    for number, part in enumerate(parts):
        record = part.record
        placed = list(zip(part.places, record.regions, strict=True))
        # Its own regions are as the filters left them. A copy's word for a box that is there is another answer to the
        # same question: the record that stays is believed.
        reasons = _repeated(record.regions, regions, nested) if number else [None] * len(placed)
        new = [pair for pair, why in zip(placed, reasons, strict=True) if why is None]
        said = [talk for talk in record.conversations if not (number and talk in conversations)]
        takes = bool(record.caption) and not caption
        lost = Counter(captions=int(bool(record.caption) and not takes and record.caption != caption))
        yield Share(record, new, Counter(filter(None, reasons)), takes, said, lost)
        regions += [region for _, region in new]
        conversations += said
        caption = record.caption if takes else caption


def _repeated(regions: Sequence[Region], known: Sequence[Region], nested: bool) -> list[str | None]:
    """For each region of a copy why the record that stays does not take it over, or None."""
    reasons = [WITH_IMAGE if there else None for there in _there(regions, known)]
    if nested:
        new = [i for i, why in enumerate(reasons) if why is None]
        # As within one record, but that the record's own stay: so what is joined passes the filters again as it is.
        both = nested_reasons([*known, *(regions[i] for i in new)], settled=len(known))
        for i, why in zip(new, both[len(known) :], strict=True):
            reasons[i] = why
    return reasons


def _there(regions: Sequence[Region], known: Sequence[Region]) -> list[bool]:
    """Whether each region lies where a known one of its kind does.

    One that is ignored says nothing of what is there: a word for it is new.
    """
    if not regions or not known:
        return [False] * len(regions)
    same_mn = geometry.iou([region.box for region in regions], [region.box for region in known]) > COINCIDE
    kinds_m1 = np.array([[region.kind] for region in regions])
    ignored_m1 = np.array([[region.ignore] for region in regions])
    counts_mn = ignored_m1 | ~np.array([region.ignore for region in known])
    return list((same_mn & counts_mn & (kinds_m1 == np.array([region.kind for region in known]))).any(axis=1))


def joined(shares: Sequence[Share], regions: list[Region]) -> RegionImage:
    """The record that stays, with `regions` and what else its shares add, and with the names of those that do."""
    first = shares[0].record
    if len(shares) == 1:
        return first if len(regions) == len(first.regions) else replace(first, regions=regions)
    giving = [first, *(s.record for s in shares[1:] if s.regions or s.caption or s.conversations)]
    licences = [record.licence for record in giving]
    return replace(
        first,
        regions=regions,
        caption=next((share.record.caption for share in shares if share.caption), first.caption),
        conversations=[talk for share in shares for talk in share.conversations],
        source=_each_once((record.source for record in giving), "+"),
        # The terms of one are not those of another that states none.
        licence=_each_once((text or UNKNOWN_LICENCE for text in licences), "; ") if any(licences) else "",
    )


def _each_once(names: Iterable[str], between: str) -> str:
    """Names in one, which may have been made of several themselves."""
    different = list(dict.fromkeys(filter(None, names)))
    if len(different) == 1:
        return different[0]
    parts = [name.split(between) for name in different]
    # "c++" is a name, not one of three.
    each = (part for name, some in zip(different, parts, strict=True) for part in (some if all(some) else [name]))
    return between.join(dict.fromkeys(each))
