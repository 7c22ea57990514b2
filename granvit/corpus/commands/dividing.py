"""``granvit corpus merge``, ``split`` and ``sample``: corpora made of others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from granvit.corpus import parts
from granvit.corpus.commands.common import fail
from granvit.corpus.layout import CorpusError
from granvit.corpus.store import Corpus


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
            images = parts.merge([Corpus(place) for place in places], out, self.skip_known, self.overwrite)
        except CorpusError as error:
            return fail(str(error))
        print(f"{out}: {images} images")
        return 0


@dataclass
class Split:
    """Write each split of a corpus as a corpus of its own: OUT/train, OUT/val, OUT/test.

    Example: granvit corpus split corpus parts --val 0.05
    """

    corpus: Positional[Path]
    """The corpus folder."""
    out: Positional[Path]
    """The folder to write them into."""
    val: float = 0.0
    """Share of the training images that becomes "val", chosen by a hash of their ids."""
    test: float = 0.0
    """Share of the training images that becomes "test"."""
    overwrite: bool = False
    """Replace corpora that are there once the new ones are complete."""

    def run(self) -> int:
        """Exit status: 0, or 1 when nothing could be written."""
        try:
            images = parts.split(Corpus(self.corpus), self.out, self.val, self.test, self.overwrite)
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
            places = parts.sample(corpus, self.count, self.seed, self.per_source)
            made = {"sample": {"count": self.count, "seed": self.seed, "per_source": self.per_source}}
            images = parts.write_part(corpus, parts.at(corpus, places), self.out, made, self.overwrite)
        except CorpusError as error:
            return fail(str(error))
        print(f"{self.out}: {images} of {len(corpus)} images")
        return 0
