"""Which image of one corpus is which image of another."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from granvit.corpus.layout import CorpusError
from granvit.corpus.store import Corpus
from granvit.regions import RegionImage


@dataclass
class Join:
    """Which image of the human corpus is which image of the audited one.

    Attributes:
        human: the human record (without picture) for each joined id of the audited corpus.
        by_id, by_content: how many were joined by their id, and by the sha256 of their file.
        only_here: images of the audited corpus that have no human partner.
        absent: human images that the audited corpus lacks, and `absent_regions`, their regions by kind.
        other_size: images of equal id but other pixel sizes; their boxes can't be compared.
    """

    human: dict[str, RegionImage] = field(default_factory=dict)
    by_id: int = 0
    by_content: int = 0
    only_here: int = 0
    absent: int = 0
    absent_regions: Counter[str] = field(default_factory=Counter)
    other_size: int = 0


def join(corpus: Corpus, human: Corpus) -> Join:
    """Join two corpora of the same images, by id, else by the sha256 of the image file.

    Pictures are read only where ids don't match. The human corpus's regions are held in memory.

    Raises:
        CorpusError: they have no image in common.
    """
    joined = Join()
    waiting = {record.id: record for record in human.records()}
    strangers: dict[str, tuple[int, int]] = {}
    for record in corpus.records():
        size = (record.width, record.height)
        if (partner := waiting.pop(record.id, None)) is None:
            strangers[record.id] = size
        elif (partner.width, partner.height) != size:
            joined.other_size += 1
        else:
            joined.human[record.id] = partner
    joined.by_id = len(joined.human)
    if waiting and strangers:
        ids = {digest: id for id, digest in _digests(human, waiting)}
        for id, digest in _digests(corpus, strangers):
            if digest in ids:
                joined.human[id] = waiting.pop(ids.pop(digest))
    joined.by_content = len(joined.human) - joined.by_id
    joined.only_here = len(strangers) - joined.by_content
    joined.absent = len(waiting)
    joined.absent_regions.update(r.kind for record in waiting.values() for r in record.regions if not r.ignore)
    if not joined.human:
        raise CorpusError(
            f"{human.path}: no image of {corpus.path} is in it, neither by id nor by the sha256 of its file"
        )
    return joined


def _digests(corpus: Corpus, wanted: Iterable[str]) -> Iterable[tuple[str, bytes]]:
    """The ids and sha256 of the wanted images, as far as their files are embedded."""
    ids = set(wanted)
    return (
        (record.id, hashlib.sha256(record.image).digest())
        for record in corpus
        if record.id in ids and record.image is not None
    )
