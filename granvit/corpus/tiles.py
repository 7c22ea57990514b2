"""Large images cut into tiles, whose small print and tiny objects a small canvas can show."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from granvit.corpus.layout import CorpusError
from granvit.corpus.quarantine import MIN_BOX_SIDE
from granvit.corpus.select import named_split
from granvit.corpus.store import Corpus, CorpusWriter
from granvit.errors import GranvitError
from granvit.geometry import View, sizes
from granvit.images import MIN_SIDE, ImageError, decode
from granvit.regions import LEAST_VISIBLE, Kind, Region, RegionImage


@dataclass(frozen=True)
class Tiling:
    """How images are cut.

    Attributes:
        side: of a tile, in pixels of the image. An image that is no larger, both ways, stays whole.
        overlap: share of its side in [0, 1) that a tile has in common, at least, with the next one.
        kind: only images with regions of this kind are cut; None cuts all.

    Raises:
        ValueError: a value out of its range.
    """

    side: int
    overlap: float = 0.25
    kind: Kind | None = None

    def __post_init__(self) -> None:
        if self.side < MIN_SIDE:
            raise GranvitError(f"a tile of {self.side} pixels is no image; the least is {MIN_SIDE}")
        if not 0 <= self.overlap < 1:
            raise GranvitError(f"tiles overlap by a share of at least 0 and less than 1, got {self.overlap}")

    def windows(self, width: int, height: int) -> list[tuple[int, int, int, int]]:
        """The tiles of an image, xyxy in whole pixels, row by row; evenly spaced, they cover all of it."""
        columns, rows = self._starts(width), self._starts(height)
        return [(x, y, min(x + self.side, width), min(y + self.side, height)) for y in rows for x in columns]

    def _starts(self, length: int) -> list[int]:
        rest = max(length - self.side, 0)
        count = int(np.ceil(rest / max(self.side * (1 - self.overlap), 1))) + 1
        return [round(at) for at in np.linspace(0, rest, count).tolist()]


@dataclass
class Tiled:
    """What a tiling wrote: tiles, and images that stayed whole; what it left out: tiles, and regions no tile shows."""

    tiles: int = 0
    whole: int = 0
    empty: int = 0
    lost: int = 0


def tile(corpus: Corpus, out: str | Path, tiling: Tiling, overwrite: bool = False, progress: bool = True) -> Tiled:
    """Write a corpus's images as tiles; returns what became of them.

    All tiles of an image go into one split: where the corpus names none to hold out, its hash decides. Tiles without
    a usable region are left out, as are captions, which tell of the whole image.

    Raises:
        CorpusError: an image cannot be decoded, no tile has a usable region, or `out` is in use.
    """
    split = named_split(corpus)
    made = Tiled()
    meta = {"tiles": vars(tiling), "of": str(corpus.path), "before": corpus.manifest["meta"]}
    with CorpusWriter(out, meta=meta, overwrite=overwrite) as writer:
        for record in tqdm(corpus, desc="tile", unit=" images", disable=not progress):
            for part in cut(replace(record, split=split(record)), tiling, made):
                writer.write(part)
    return made


def cut(record: RegionImage, tiling: Tiling, made: Tiled) -> Iterator[RegionImage]:
    """The tiles of a record, or the record itself where it need not be cut; counted in `made`.

    Raises:
        CorpusError: the record has no image, or one that cannot be decoded.
    """
    kinds = {region.kind for region in record.regions}
    if max(record.width, record.height) <= tiling.side or (tiling.kind is not None and tiling.kind not in kinds):
        made.whole += 1
        yield record
        return
    try:
        picture = decode(record.image or b"")
    except ImageError as error:
        raise CorpusError(f"{record.id}: {error}") from error
    shown: set[int] = set()
    for window in tiling.windows(*picture.size):
        regions = _regions(record, window)
        usable = [index for index, region in regions.items() if not region.ignore]
        shown.update(usable)
        if not usable:
            made.empty += 1
            continue
        made.tiles += 1
        part = picture.crop(window)
        file = io.BytesIO()
        part.save(file, "PNG")
        yield replace(
            record,
            id=f"{record.id}@{window[0]},{window[1]}",
            image=file.getvalue(),
            width=part.width,
            height=part.height,
            caption=None,
            regions=list(regions.values()),
        )
    made.lost += sum(not region.ignore and index not in shown for index, region in enumerate(record.regions))


def _regions(record: RegionImage, window: tuple[int, int, int, int]) -> dict[int, Region]:
    """The regions that a window shows, by their index, in its own pixels. What it cuts too much of is to be ignored."""
    view = View.window(window, max(window[2] - window[0], window[3] - window[1]))
    boxes = [region.box for region in record.regions]
    shares, parts = view.visible(boxes), view.clip(boxes)
    left, top = window[:2]
    found = {}
    for index in np.flatnonzero((sizes(parts) >= MIN_BOX_SIDE).all(1)).tolist():
        region, share = record.regions[index], shares[index]
        x1, y1, x2, y2 = (parts[index] - [left, top, left, top]).tolist()
        outline = region.polygon if share > 1 - 1e-9 else None
        found[index] = replace(
            region,
            box=(x1, y1, x2, y2),
            polygon=None if outline is None else (np.reshape(outline, (-1, 2)) - [left, top]).ravel().tolist(),
            ignore=region.ignore or share < LEAST_VISIBLE[region.kind],
        )
    return found
