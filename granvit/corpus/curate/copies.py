"""What is said of a file's copies, for the one that stays: data sets share pictures, each with its own words.

Photographs of COCO are in its own data with regions and in LLaVA's with conversations. Of a file that is there several
times one record stays, and takes over what the others say: regions where it has none, conversations, a caption if it
has none. Then it names all their sources and terms. Copies of another size or compression are not joined: their boxes
are of other pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from granvit import geometry
from granvit.corpus.curate.filters import COINCIDE, Filtered, Filters, apply_filters
from granvit.corpus.store import Corpus
from granvit.regions import Conversation, Region, RegionImage


@dataclass
class Share:
    """What one of the copies adds to the record that stays.

    Attributes:
        record: the copy, with the regions that passed the filters.
        regions: those it adds, each with its index before the filters.
        doubled: how many regions lie where the record has one of the same kind already.
        caption: whether its caption is the record's.
        conversations: those it adds.
        lost: captions that another one stands for.
    """

    record: RegionImage
    regions: list[tuple[int, Region]]
    doubled: int
    caption: bool
    conversations: list[Conversation]
    lost: Counter[str]


class Copies:
    """The rows of copies by that of the file that stays, read again when they are needed.

    Args:
        corpus: what they are rows of.
        filters: what the regions of copies are held to, by themselves as those of any image.
        of: the rows of copies, by the row that stays.
    """

    def __init__(self, corpus: Corpus, filters: Filters, of: Mapping[int, Sequence[int]]) -> None:
        self._corpus, self._filters, self._of = corpus, filters, of
        self.rows = {row for rows in of.values() for row in rows}

    def shares(self, row: int, stays: Filtered) -> list[Share]:
        """What makes up the record of a row that stays: its own share first, then one for each copy."""
        copies = (self._corpus.described(copy) for copy in self._of.get(row, ()))
        return list(_shares([stays, *apply_filters(copies, self._filters)]))


def _shares(parts: Sequence[Filtered]) -> Iterator[Share]:
    regions: list[Region] = []
    conversations: list[Conversation] = []
    caption: str | None = None
    for number, part in enumerate(parts):
        record = part.record
        placed = list(zip(part.places, record.regions, strict=True))
        # Its own regions are as the filters left them. A copy's word for a box that is there is another answer to the
        # same question: the record that stays is believed.
        there = _there(record.regions, regions) if number else [False] * len(placed)
        new = [pair for pair, known in zip(placed, there, strict=True) if not known]
        said = [talk for talk in record.conversations if not (number and talk in conversations)]
        takes = bool(record.caption) and not caption
        lost = Counter(captions=int(bool(record.caption) and not takes and record.caption != caption))
        yield Share(record, new, len(placed) - len(new), takes, said, lost)
        regions += [region for _, region in new]
        conversations += said
        caption = record.caption if takes else caption


def _there(regions: Sequence[Region], known: Sequence[Region]) -> list[bool]:
    """Whether each region lies where a known one of its kind does."""
    if not regions or not known:
        return [False] * len(regions)
    same_mn = geometry.iou([region.box for region in regions], [region.box for region in known]) > COINCIDE
    kinds_m1 = np.array([[region.kind] for region in regions])
    return list((same_mn & (kinds_m1 == np.array([region.kind for region in known]))).any(axis=1))


def joined(shares: Sequence[Share], regions: list[Region]) -> RegionImage:
    """The record that stays, with `regions` and what else its shares add, and with the names of those that do."""
    first = shares[0].record
    if len(shares) == 1:
        return first if len(regions) == len(first.regions) else replace(first, regions=regions)
    giving = [first, *(s.record for s in shares[1:] if s.regions or s.caption or s.conversations)]
    return replace(
        first,
        regions=regions,
        caption=next((share.record.caption for share in shares if share.caption), first.caption),
        conversations=[talk for share in shares for talk in share.conversations],
        source="+".join(dict.fromkeys(record.source for record in giving if record.source)),
        licence="; ".join(dict.fromkeys(record.licence for record in giving if record.licence)),
    )
