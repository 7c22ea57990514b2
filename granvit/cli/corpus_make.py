"""`granvit corpus import`, `annotate`, `draw` and `verify`: how a corpus comes about."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional

from granvit.cli.corpus_common import fail, warn
from granvit.corpus.annotate.base import AnnotateError
from granvit.corpus.annotate.caption import CaptionConfig
from granvit.corpus.annotate.detect import DetectConfig, KeepConfig
from granvit.corpus.annotate.ocr import OcrConfig
from granvit.corpus.annotate.plan import How, Plan
from granvit.corpus.check import verify
from granvit.corpus.importers import IMPORTERS, import_corpus
from granvit.corpus.importers.documents import Level
from granvit.corpus.importers.parquet import BoxFormat
from granvit.corpus.importers.run import Group
from granvit.corpus.layout import MANIFEST, QUARANTINE, CorpusError
from granvit.corpus.synthetic.synthesize import synthesize
from granvit.corpus.synthetic.wordings import Style
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
    summaries = {name: (inspect.getdoc(reader) or "").splitlines()[0] for name, reader in sorted(IMPORTERS.items())}
    lines = [f"{name}: {line.replace('`src`', 'SRC').replace('`', '')}" for name, line in summaries.items()]
    return "\n".join(["The layout.", *lines])


def _of_some(option: str, said: str) -> str:
    """The help of an option behind the names of the layouts that take it, or all but some."""
    takers = {name for name, reader in IMPORTERS.items() if option in inspect.signature(reader).parameters}
    others = IMPORTERS.keys() - takers
    named = f"all but {', '.join(sorted(others))}" if len(others) < len(takers) else ", ".join(sorted(takers))
    return f"{named}: {said}"


_SPLIT = _of_some("split", "the split that SRC is, where the data does not say.")
_IMAGES = _of_some("images", "the folder of the pictures, where they are not beside the annotations.")
_ENCODING = _of_some(
    "encoding", "what the text files are written in, where it is not UTF-8: gb18030, cp1251, shift_jis, latin-1."
)


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
    split: Annotated[Literal["train", "val", "test"] | None, tyro.conf.arg(help=_SPLIT)] = None
    images: Annotated[Path | None, tyro.conf.arg(help=_IMAGES)] = None
    encoding: Annotated[str | None, tyro.conf.arg(help=_ENCODING)] = None
    captions: Path | None = None
    """coco: a captions JSON file, where it is not beside the instances."""
    instances: Path | None = None
    """refcoco: COCO's instances JSON, where the table states no boxes and it is not beside the table."""
    objects: bool = False
    """visual_genome: the named objects too, not only the phrases."""
    frame: Frame | None = None
    """llava: any boxes are relative to the image, or to the canvas, the picture padded to a square."""
    coordinates: str | None = None
    """llava: how boxes are written: decimal (the default), int1000, loc, loc:BINS or cell:BINS."""
    level: Level | None = None
    """funsd: what becomes a region: an entry, a line (the default) or a word."""
    image_column: str | None = None
    """parquet: the column of the pictures, where it is not "image" or "images"."""
    box_format: BoxFormat | None = None
    """parquet: how boxes are written: xywh (x, y, width, height, the default) or xyxy (two corners)."""
    short_answers: bool = False
    """jsonl: the questions of "qa" are asked for a single word or phrase, as benchmarks of such answers ask."""
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
        if self.val_fraction and not summary.splits["val"]:
            warn(f"--val-fraction {self.val_fraction} chose none of these images: give a larger share")
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
    """Draw the embedded corpus: scenes, documents and rendered text with exact boxes and texts."""

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
    """Share of all pictures that is rendered text in their place: words and numbers in many fonts, a box per letter."""
    split: Literal["train", "val", "test"] = "train"
    """The split that the pictures belong to."""
    style: Style = "plain"
    """How scenes are spoken of: plain, one sentence for each object; natural, as people do; natural-wordings and
    natural-combinations, in words, and about colors of shapes, that natural keeps for them."""

    def run(self) -> int:
        """Exit status: 0, or 1 when OUT holds something else."""
        try:
            corpus = synthesize(
                *(self.out, self.count, self.seed, self.size, self.documents, self.split),
                prints=self.prints,
                style=self.style,
            )
        except CorpusError as error:
            return fail(str(error))
        print(f"{self.out}: {len(corpus)} pictures, {corpus.manifest['regions']} regions")
        return 0


@dataclass
class Annotate:
    """Make a region corpus of images: text is read, objects are found and captioned.

    SRC is a folder of pictures, Parquet files or WebDataset tars, such a file, a data set saved by the `datasets`
    library, or a corpus. Interrupted, however abruptly, the same command goes on where it was. The corpus is the same
    for any number of workers and interruptions.

    Examples:
        granvit corpus annotate scans corpus --how ocr
        granvit corpus annotate photos corpus --how detect --detect.model ustc-community/dfine-large-obj365
            --caption.model Qwen/Qwen2.5-VL-7B-Instruct --caption.endpoint http://localhost:8000/v1
    """

    src: Annotated[Positional[Path], tyro.conf.arg(metavar="SRC")]
    """Where the images are."""
    out: Annotated[Positional[Path], tyro.conf.arg(metavar="OUT")]
    """The corpus folder to write."""
    how: How = "ocr"
    """ocr: read text. detect: find objects, then caption them. keep: caption the boxes of the corpus at SRC. auto:
    ocr for images that show enough text, detect for the others (keep, where no detector is named)."""
    ocr: OcrConfig = field(default_factory=OcrConfig)
    """Reading text."""
    detect: DetectConfig = field(default_factory=lambda: DetectConfig(model=""))
    """Finding objects."""
    caption: CaptionConfig = field(default_factory=lambda: CaptionConfig(model=""))
    """Captioning; without a model, objects keep the names of their classes."""
    text_coverage: float = Plan.text_coverage
    """auto: an image that is covered with text to this share is a text image."""
    batch: int = Plan.batch
    """Images handed to an annotator at once."""
    shard_images: int | None = None
    """Images per output file; by default up to 256, fewer for small inputs."""
    image_seconds: float = Plan.image_seconds
    """An image that takes longer is given up."""
    workers: int | None = None
    """How many work side by side; by default one per core, or per GPU where there are GPUs."""
    ray: str = ""
    """Work on a Ray cluster: its address, or "local" to start one here. SRC and OUT must be shared by its nodes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the models go."""
    source: str = ""
    """The data set's name, the first part of every id; by default that of SRC. A corpus by default keeps its own."""
    licence: str = ""
    """The terms of the images, recorded with each."""
    follow_links: bool = False
    """Read what links lead to outside of SRC, too; otherwise it is refused as "link-outside"."""

    def run(self) -> int:
        """Exit status: 0, or 1 when nothing could be done, or nothing was found of what was asked for."""
        from granvit.corpus.annotate.pipeline import annotate

        try:
            summary = annotate(
                self.src,
                self.out,
                self.plan(),
                workers=self.workers,
                ray=self.ray,
                device=self.device,
                name=self.source,
                licence=self.licence,
                follow_links=self.follow_links,
                progress=True,
            )
        except (AnnotateError, CorpusError) as error:
            return fail(str(error))
        except KeyboardInterrupt:
            return fail("interrupted; the same command goes on from here")
        print(f"{self.out}\n{summary}")
        if summary.counts.reasons:
            print(f"see {self.out / QUARANTINE}")
        undetected = summary.counts.kinds["natural"]
        if self.how == "auto" and not self.detect.model and undetected and not (self.src / MANIFEST).exists():
            warn(f"{undetected} images are no text images and got no boxes: no detector is named (--detect.model)")
        if missing := summary.missing:
            return fail(f"{self.out}: {missing}")
        return 0

    def _detector(self) -> DetectConfig | KeepConfig | None:
        if self.detect.model:
            return self.detect
        return KeepConfig() if self.how == "keep" else None

    def plan(self) -> Plan:
        """The plan that these flags describe; an annotator without a model is none."""
        return Plan(
            self.how,
            self.ocr if self.how in ("ocr", "auto") else None,
            self._detector(),
            self.caption if self.caption.model else None,
            self.text_coverage,
            self.batch,
            self.shard_images,
            self.image_seconds,
        )
