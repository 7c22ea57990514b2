"""What the demo makes of a corpus of one's own: what is trained on how often, and what is held out."""

from __future__ import annotations

from pathlib import Path

from granvit.corpus.derive import Tiled, Tiling, cut, train_and_held_out
from granvit.corpus.store import Corpus, Subset
from granvit.regions import RegionImage
from granvit.sampling import evenly
from granvit.train.feed import Records

# How much oftener an image with text is seen than one without: it shows a small part of itself at a time.
_TEXT_WEIGHT = 3.0


def own_corpora(
    corpus: Path | str, tile: int | None, limit: int
) -> tuple[list[tuple[Records, float]], list[RegionImage]]:
    """What to train on, and at most `limit` held-out images, evenly from those without text and those with text.

    The training images come in two parts with their weights, those without text and those with. A scan on a canvas of
    160 pixels has letters of one pixel, so held-out images with text are cut into tiles of `tile` pixels, where letters
    are as they were scanned or larger; None leaves them whole.

    Raises:
        CorpusError: the corpus has nothing to train on, or nothing held out, or an image cannot be decoded.
    """
    whole = Corpus(corpus)
    train, held_out = train_and_held_out(whole)
    printed = {
        i for i, r in enumerate(whole.records(check=False)) if any(region.kind == "text" for region in r.regions)
    }
    parts = zip(_by(printed, train), (1.0, _TEXT_WEIGHT), strict=True)
    photos, scans = _by(printed, held_out)
    tiles = [scans[index] for index in evenly(range(len(scans)), limit)]
    if tile is not None:
        tiles = [part for record in tiles for part in cut(record, Tiling(tile, kind="text"), Tiled())]
    share = limit // 2 if tiles and len(photos) else limit
    shown = [*(photos[index] for index in evenly(range(len(photos)), share)), *evenly(tiles, share)]
    return [(part, weight) for part, weight in parts if len(part)], shown


def _by(printed: set[int], part: Subset) -> tuple[Subset, Subset]:
    """The records of a part that are not among `printed`, and those that are."""
    without, having = ([i for i in part.indices if (i in printed) is wanted] for wanted in (False, True))
    return Subset(part.corpus, without), Subset(part.corpus, having)
