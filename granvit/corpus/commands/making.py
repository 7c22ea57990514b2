"""``granvit corpus import``, ``verify`` and ``draw``: how a corpus comes about."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional

from granvit.corpus.check import verify
from granvit.corpus.commands.common import fail
from granvit.corpus.importers import IMPORTERS, import_corpus
from granvit.corpus.importers.documents import Level
from granvit.corpus.importers.parquet import BoxFormat
from granvit.corpus.importers.run import Group
from granvit.corpus.layout import QUARANTINE, CorpusError
from granvit.corpus.synthetic.synthesize import synthesize
from granvit.geometry import Frame

SHOWN_PROBLEMS = 20

if TYPE_CHECKING:
    Name = str
else:
    Name = tyro.extras.literal_type_from_choices(sorted(IMPORTERS))

# The fields of `Import` that say how to import; all others are handed on to the importer.
_OWN = {"name", "paths", "val_fraction", "group", "overwrite", "follow_links"}


def _layouts() -> str:
    """One line for every importer, the first one of its docstring: what SRC is."""
    told = {name: (inspect.getdoc(reader) or "").splitlines()[0] for name, reader in sorted(IMPORTERS.items())}
    lines = [f"{name}: {line.replace('`src`', 'SRC').replace('`', '')}" for name, line in told.items()]
    return "\n".join(["The layout.", *lines])


@dataclass
class Import:
    """Make a corpus from images and regions in a public layout.

    Example: granvit corpus import jsonl packs/receipts packs/photos corpus --val-fraction 0.1
    """

    name: Annotated[Positional[Name], tyro.conf.arg(help=_layouts())]
    paths: Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="SRC [SRC ...] OUT")]
    """One or several places in that layout, then the corpus folder to write."""
    val_fraction: float = 0.0
    """Share of the training images that becomes split "val", chosen by a hash; 0 keeps the source's splits."""
    group: Group = "id"
    """What is hashed: each image's id, or the first line of text, which keeps receipts of one company together."""
    overwrite: bool = False
    """Replace the corpus at OUT once the new one is complete."""
    source: str | None = None
    """The data set's name, where the layout's own is not right."""
    licence: str | None = None
    """The terms of the data, recorded with every image."""
    split: Literal["train", "val", "test"] | None = None
    """The split that SRC is, where the layout does not say."""
    images: Path | None = None
    """The folder of the pictures, where the layout has annotations apart from them and they are not beside them."""
    encoding: str | None = None
    """What the text files are written in, where it is not UTF-8: gb18030, cp1251, shift_jis, latin-1."""
    captions: Path | None = None
    """coco: a captions JSON file, where it is not beside the instances."""
    instances: Path | None = None
    """refcoco: COCO's instances JSON, where the table states no boxes and it is not beside the table."""
    objects: bool = False
    """visual_genome: the named objects too, not only the phrases."""
    frame: Frame | None = None
    """llava, needed: boxes are relative to the image, or to the canvas, the picture padded to a square."""
    coordinates: str | None = None
    """llava: how boxes are written: decimal (the default), int1000, loc or loc:BINS."""
    level: Level | None = None
    """funsd: what becomes a region: an entry, a line (the default) or a word."""
    image_column: str | None = None
    """parquet: the column of the pictures, where it is not "image"."""
    box_format: BoxFormat | None = None
    """parquet: how boxes are written: xywh (x, y, width, height, the default) or xyxy (two corners)."""
    follow_links: bool = False
    """Read what links lead to outside of SRC, too; otherwise it is refused as "link-outside"."""

    def run(self) -> int:
        """Exit status: 0, or 1 when of some SRC nothing could be used: no image, or none of its regions."""
        if len(self.paths) < 2:
            return fail("give SRC and OUT: the place of the data and the corpus folder to write")
        *places, out = self.paths
        options = {f.name: value for f in fields(self) if f.name not in _OWN and (value := getattr(self, f.name))}
        try:
            summary = import_corpus(
                self.name,
                places,
                out,
                val_fraction=self.val_fraction,
                group=self.group,
                overwrite=self.overwrite,
                follow_links=self.follow_links,
                progress=sys.stderr.isatty(),
                **options,
            )
        except CorpusError as error:
            return fail(str(error))
        print(f"{out}\n{summary}")
        if summary.reasons:
            print(f"see {out / QUARANTINE}")
        return 0


@dataclass
class Verify:
    """Read a whole corpus and report whatever is wrong with it: checksums, counts, images, boxes, ids."""

    corpus: Positional[Path]
    """The corpus folder."""

    def run(self) -> int:
        """Exit status: 0, or 1 when there are problems."""
        problems = verify(self.corpus)
        for problem in problems[:SHOWN_PROBLEMS]:
            print(problem)
        if len(problems) > SHOWN_PROBLEMS:
            print(f"... and {len(problems) - SHOWN_PROBLEMS} more")
        print(f"{self.corpus}: {len(problems)} problem(s)" if problems else f"{self.corpus}: in order")
        return 1 if problems else 0


@dataclass
class Draw:
    """Draw the embedded corpus: scenes, documents and print with exact boxes and texts."""

    out: Positional[Path]
    """The corpus folder to write; one that is already there with the same settings is kept."""
    count: int = 6000
    """How many pictures."""
    seed: int = 1
    """The same seed gives the same pictures."""
    size: int = 160
    """Side of a picture, pixels."""
    documents: float = 0.15
    """Share of documents; the rest are scenes."""
    prints: float = 0.0
    """Share of all pictures that is print in their place: words and numbers in many fonts, a box per letter."""
    split: Literal["train", "val", "test"] = "train"
    """The split that the pictures belong to."""

    def run(self) -> int:
        """Exit status: 0, or 1 when OUT holds something else."""
        try:
            corpus = synthesize(
                self.out, self.count, self.seed, self.size, self.documents, self.split, prints=self.prints
            )
        except CorpusError as error:
            return fail(str(error))
        print(f"{self.out}: {len(corpus)} pictures, {corpus.manifest['regions']} regions")
        return 0
