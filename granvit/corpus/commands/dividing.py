"""``granvit corpus merge``, ``split``, ``sample`` and ``tile``: corpora made of others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from granvit.corpus import derive
from granvit.corpus.commands.common import fail, status_of
from granvit.corpus.derive import Tiling, tile
from granvit.corpus.layout import CorpusError
from granvit.corpus.store import Corpus
from granvit.regions import Kind


@dataclass
class Merge:
    """Write several corpora as one.

    Example: granvit corpus merge receipts photos all
    """

    paths: Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="CORPUS CORPUS [CORPUS ...] OUT")]
    """The corpora, then the corpus folder to write."""
    skip_known: bool = False
    """Leave out an image whose id an earlier one has; otherwise two of one id are an error."""
    overwrite: bool = False
    """Replace the corpus at OUT once the new one is complete."""

    def run(self) -> int:
        """Exit status: 0, or 1 when nothing could be merged."""
        if len(self.paths) < 3:
            return fail("give at least two corpora and OUT, the corpus folder to write")
        *places, out = self.paths
        try:
            corpora = [Corpus(place) for place in places]
            images = derive.merge(corpora, out, self.skip_known, self.overwrite)
        except CorpusError as error:
            return fail(str(error))
        print(f"{out}: {images} images")
        return status_of(out, corpora)


@dataclass
class Split:
    """Write each split of a corpus as a corpus of its own: OUT/train, OUT/val, OUT/test.

    Example: granvit corpus split corpus parts --val 0.05
    """

    corpus: Positional[Path]
    """The corpus folder."""
    out: Positional[Path]
    """The folder to write, which holds nothing else: all of them are there, or none."""
    val: float = 0.0
    """Share of the training images that becomes "val", chosen by a hash of their ids."""
    test: float = 0.0
    """Share of the training images that becomes "test"."""
    overwrite: bool = False
    """Replace corpora that are there once the new ones are complete."""

    def run(self) -> int:
        """Exit status: 0, or 1 when nothing could be written."""
        try:
            images = derive.split(Corpus(self.corpus), self.out, self.val, self.test, self.overwrite)
        except CorpusError as error:
            return fail(str(error))
        for name, count in images.items():
            print(f"{self.out / name}: {count} images")
        return 0


@dataclass
class Sample:
    """Write a reproducible sample of a corpus.

    Example: granvit corpus sample corpus small --count 1000 --seed 1
    """

    corpus: Positional[Path]
    """The corpus folder."""
    out: Positional[Path]
    """The corpus folder to write."""
    count: int = 100
    """How many images, chosen by a hash; a smaller sample is part of a larger one."""
    seed: int = 0
    """Another seed, another sample."""
    per_source: bool = False
    """So many of each source."""
    overwrite: bool = False
    """Replace the corpus at OUT once the new one is complete."""

    def run(self) -> int:
        """Exit status: 0, or 1 when nothing could be written."""
        try:
            corpus = Corpus(self.corpus)
            places = derive.sample(corpus, self.count, self.seed, self.per_source)
            made = {"sample": {"count": self.count, "seed": self.seed, "per_source": self.per_source}}
            images = derive.write_part(corpus, derive.at(corpus, places), self.out, made, self.overwrite)
        except CorpusError as error:
            return fail(str(error))
        print(f"{self.out}: {images} of {len(corpus)} images")
        return status_of(self.out, [corpus])


@dataclass
class Tile:
    """Write a corpus with its large images cut into tiles, for print and objects too small for an encoder's canvas.

    Example: granvit corpus tile receipts tiles --side 240 --kind text
    """

    corpus: Positional[Path]
    """The corpus folder."""
    out: Positional[Path]
    """The corpus folder to write."""
    side: int = 512
    """Side of a tile, in pixels of the image; an image that is no larger stays whole."""
    overlap: float = 0.25
    """Share of its side that a tile has in common, at least, with the next one: what one cuts, the other shows."""
    kind: Kind | None = None
    """Cut only images with regions of this kind; by default all."""
    overwrite: bool = False
    """Replace the corpus at OUT once the new one is complete."""

    def run(self) -> int:
        """Exit status: 0, or 1 when nothing could be written."""
        try:
            tiling = Tiling(self.side, self.overlap, self.kind)
            corpus = Corpus(self.corpus)
            made = tile(corpus, self.out, tiling, self.overwrite)
        except (CorpusError, ValueError) as error:
            return fail(str(error))
        print(f"{self.out}: {made.tiles} tiles, {made.whole} images whole")
        print(f"left out: {made.empty} tiles without a region, {made.lost} regions that no tile shows whole")
        return status_of(self.out, [corpus])
