"""What the demo makes of a corpus of one's own: what is trained on how often, and what is held out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from granvit.corpus.select import Subset, train_and_held_out
from granvit.corpus.store import Corpus
from granvit.corpus.tiles import Tiled, Tiling, cut
from granvit.regions import RegionImage
from granvit.train.feed import Records

T = TypeVar("T")

# How much oftener an image with text is seen than one without: it shows a small part of itself at a time.
_TEXT_WEIGHT = 3.0


def own_sources(corpus: Path | str) -> list[tuple[Records, float]]:
    """The training images of a corpus with their weights: those without text, and those with.

    Raises:
        CorpusError: the corpus has nothing to train on, or nothing held out.
    """
    train, _ = train_and_held_out(Corpus(corpus))
    without, having = by_text(train)
    return [(part, weight) for part, weight in ((without, 1.0), (having, _TEXT_WEIGHT)) if len(part)]


def own_held_out(corpus: Path | str, tile: int | None, limit: int) -> list[RegionImage]:
    """At most `limit` held-out images, evenly from those without text and from the tiles of those with text.

    A scan on a canvas of 160 pixels has letters of one pixel; in a tile of `tile` pixels they are as they were scanned
    or larger. None leaves all images whole.

    Raises:
        CorpusError: the corpus has nothing to train on, or nothing held out, or an image cannot be decoded.
    """
    _, held_out = train_and_held_out(Corpus(corpus))
    without, having = by_text(held_out)
    printed = [having[index] for index in evenly(range(len(having)), limit)]
    if tile is not None:
        printed = [part for record in printed for part in cut(record, Tiling(tile, kind="text"), Tiled())]
    share = limit // 2 if printed and len(without) else limit
    return [*(without[index] for index in evenly(range(len(without)), share)), *evenly(printed, share)]


def by_text(part: Subset) -> tuple[Subset, Subset]:
    """The records without a text region, and those with one."""
    having = {
        index
        for index, record in enumerate(part.corpus.records())
        if any(region.kind == "text" for region in record.regions)
    }
    return (
        Subset(part.corpus, [index for index in part.indices if index not in having]),
        Subset(part.corpus, [index for index in part.indices if index in having]),
    )


def evenly(things: Sequence[T], limit: int) -> Iterator[T]:
    """At most so many of them, evenly spaced: a corpus's sources follow each other."""
    count = min(limit, len(things))
    return (things[index * len(things) // count] for index in range(count))
