"""`granvit corpus stats`, `head`, `show`, `audit` and `export`: what is in a corpus, and what others read."""

from __future__ import annotations

import json
import sys
import textwrap
import webbrowser
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tqdm import tqdm
from tyro.conf import Positional

from granvit.cli.corpus_common import fail
from granvit.corpus.annotate.base import AnnotateError
from granvit.corpus.annotate.caption import CaptionConfig
from granvit.corpus.annotate.detect import DetectConfig
from granvit.corpus.annotate.ocr import OcrConfig
from granvit.corpus.derive import sample
from granvit.corpus.exporters import export_corpus
from granvit.corpus.layout import CorpusError
from granvit.corpus.stats import KindStatistics, SourceStatistics, Statistics
from granvit.corpus.store import Corpus
from granvit.files import locked
from granvit.geometry import Frame
from granvit.loading.devices import pick_device

if TYPE_CHECKING:
    from granvit.corpus.audit.agreement import Check


SHOWN_CHARACTERS = 100


@dataclass
class Stats:
    """Count what is in a corpus, source by source: images, regions, sizes, texts, languages. Reads no picture."""

    corpus: Positional[Path]
    """The corpus folder."""
    json: bool = False
    """Print everything there is, histograms included, as JSON."""

    def run(self) -> int:
        """Exit status: 0, or 1 when there is no such corpus."""
        try:
            corpus = Corpus(self.corpus)
            bar = tqdm(corpus.records(), total=len(corpus), unit=" images", disable=not sys.stderr.isatty())
            sources = Statistics.of(bar)
        except CorpusError as error:
            return fail(str(error))
        if self.json:
            print(json.dumps({name: found.to_json() for name, found in sources.items()}, ensure_ascii=False))
            return 0
        print(f"{self.corpus}: {len(corpus)} images, {corpus.manifest['regions']} regions")
        for name, found in sorted(sources.items()):
            print("\n".join(_lines(name, found)))
        return 0


def _lines(name: str, source: SourceStatistics) -> list[str]:
    splits = _shares(source.splits, source.images, "no split")
    lines = [
        f"\n{name or '(no source)'}: {source.images} images ({splits}), {source.empty} without regions, "
        f"{source.captioned} with a caption",
        f"  image    short side {_spread(source.short_side.to_json())} px",
    ]
    if source.conversations:
        alone = f", {source.without_picture} images are conversations alone" if source.without_picture else ""
        lines.append(
            f"  talk     {source.conversations} conversations of {_spread(source.turns.to_json())} turns, "
            f"{_spread(source.conversation_words.to_json())} words{alone}"
        )
    for kind, found in sorted(source.kinds.items()):
        lines += _kind_lines(kind, found)
    return lines


def _kind_lines(kind: str, found: KindStatistics) -> list[str]:
    counted = found.regions - found.ignored
    texts, words = found.texts.to_json(), found.vocabulary.to_json()
    common = ", ".join(f"{_short(text)!r} {count}" for text, count in texts["top"][:3])
    lines = [
        f"  {kind:<8} {found.regions} regions, {found.ignored} to be ignored; by {', '.join(found.box_by) or 'nobody'}",
        f"           box side {_spread(found.box_side.to_json())} px, width / height "
        f"{_spread(found.box_aspect.to_json(), 2)}",
        f"           {_spread(found.characters.to_json())} characters, {_at_least(texts)} texts, "
        f"{_at_least(words)} words; most frequent: {common or 'none'}",
        f"           script {_shares(found.scripts, counted)}; language {_shares(found.languages, counted)}",
    ]
    if found.scores.total:
        lines.append(f"           score {_spread(found.scores.to_json(), 2)}")
    return lines


def _spread(histogram: dict[str, Any], digits: int = 0) -> str:
    if not histogram["count"]:
        return "-"
    low, middle, high = (f"{histogram[name]:.{digits}f}" for name in ("p5", "median", "p95"))
    return f"{middle} ({low} to {high})"


def _at_least(frequent: dict[str, Any]) -> str:
    return f"{'' if frequent['exact'] else 'at least '}{frequent['distinct']} different"


def _shares(counts: dict[str, int], total: int, unnamed: str = "") -> str:
    top = sorted(counts.items(), key=lambda item: -item[1])[:4]
    return ", ".join(f"{name or unnamed} {count / max(total, 1):.0%}" for name, count in top) or "none"


def _short(text: str) -> str:
    return textwrap.shorten(text, SHOWN_CHARACTERS, placeholder=" ...")


@dataclass
class Head:
    """Print the first records of a corpus. Reads no picture."""

    corpus: Positional[Path]
    """The corpus folder."""
    count: int = 5
    """How many images."""
    regions: int = 5
    """How many regions of each, and how many conversations."""

    def run(self) -> int:
        """Exit status: 0, or 1 when there is no such corpus."""
        try:
            for record in islice(Corpus(self.corpus).records(check=False), self.count):
                size = "no picture" if record.text_only else f"{record.width}x{record.height}"
                about = [size, record.source, record.split, record.licence]
                print(f"{record.id}  {'  '.join(filter(None, about))}")
                if record.caption:
                    print(f"  {_short(record.caption)}")
                for region in record.regions[: self.regions]:
                    box = ", ".join(f"{v:.0f}" for v in region.box)
                    score = "" if region.score is None else f" {region.score:.2f}"
                    text = _short(region.text) or "(no text)"
                    print(f"  {region.kind} [{box}]{score}{' ignored' if region.ignore else ''}  {text}")
                if len(record.regions) > self.regions:
                    print(f"  ... {len(record.regions) - self.regions} more regions")
                for said in record.conversations[: self.regions]:
                    print("\n".join(f"  {turn.role + ':':<10} {_short(turn.text)}" for turn in said))
                if len(record.conversations) > self.regions:
                    print(f"  ... {len(record.conversations) - self.regions} more conversations")
        except CorpusError as error:
            return fail(str(error))
        return 0


@dataclass
class Show:
    """Draw some images with their boxes into one HTML page.

    Example: granvit corpus show corpus --count 50 --open
    """

    corpus: Positional[Path]
    """The corpus folder."""
    out: Path = Path("show.html")
    """The page to write; it needs nothing else."""
    count: int = 24
    """How many images, chosen by a hash."""
    seed: int = 0
    """Another seed, other images."""
    per_source: bool = False
    """So many of each source."""
    open: bool = False
    """Open the page in the browser."""

    def run(self) -> int:
        """Exit status: 0, or 1 when there is nothing to show."""
        from granvit.corpus.audit.sheet import write_sheet

        if self.out.suffix.lower() not in (".html", ".htm"):
            return fail(f"--out {self.out}: a page is written, so the name must end in .html")
        try:
            corpus = Corpus(self.corpus)
            chosen = sample(corpus, self.count, self.seed, self.per_source)
            shown = write_sheet(
                (corpus[place] for place in chosen),
                self.out,
                f"{self.corpus.resolve().name}: {len(chosen)} of {len(corpus)} images",
            )
        except CorpusError as error:
            return fail(str(error))
        print(f"{self.out}: {shown} images")
        if self.open:
            webbrowser.open(self.out.resolve().as_uri())
        return 0


@dataclass
class Audit:
    """Audit a corpus's annotations: statistics, agreement with human ones and other models, and pictures to look at.

    Writes OUT/index.html, one page that needs no network, and OUT/audit.json, its numbers.

    Example: granvit corpus audit corpus audits/receipts --against human --reread
    """

    corpus: Annotated[Positional[Path], tyro.conf.arg(metavar="CORPUS")]
    """The corpus folder."""
    out: Annotated[Positional[Path], tyro.conf.arg(metavar="OUT")]
    """The folder to write the page and its numbers into."""
    against: Path | None = None
    """A corpus of the same images with human annotations, joined by id or by the sha256 of the image file."""
    sample: int = 48
    """How many images are shown and, where asked for, given to other models."""
    seed: int = 0
    """Of the sample and the intervals: the same seed gives the same pictures."""
    duplicates: bool = True
    """Count pictures that are there more than once. Every picture is decoded for it."""
    fingerprints: Path | None = None
    """A file for what the search for duplicates knows of the pictures: used where it exists, else written."""
    reread: bool = False
    """Read each text of the sample again from its crop, by PP-OCR."""
    detect: DetectConfig = field(default_factory=lambda: DetectConfig(model=""))
    """A second detector to look for the sample's objects; none without a model."""
    caption: CaptionConfig = field(default_factory=lambda: CaptionConfig(model="", whole_image=False))
    """A second captioner of the sample's objects; none without a model."""
    device: str = "cpu"
    """Where models run, like cuda:0."""

    def run(self) -> int:
        """Exit status: 0, or 1 when there was nothing to audit."""
        from granvit.corpus.audit.run import PAGE, audit, check_out, write_audit
        from granvit.corpus.store import Corpus

        if self.sample < 0:
            return fail(f"--sample must be 0 or more, got {self.sample}")
        try:
            check_out(self.out)
            corpus, against = Corpus(self.corpus), Corpus(self.against) if self.against else None
            # Not in the system's folder, where nobody would find what a killed audit leaves.
            passing = self.out / ".fingerprints.parquet"
            with locked(self.out):
                try:
                    result = audit(
                        corpus,
                        against,
                        self.sample,
                        self.seed,
                        self._checks(),
                        self.duplicates,
                        self.fingerprints or passing,
                        progress=sys.stderr.isatty(),
                    )
                finally:
                    passing.unlink(missing_ok=True)
                write_audit(result, self.out)
        except (CorpusError, AnnotateError) as error:
            return fail(str(error))
        print(result.summary())
        print(f"see {self.out / PAGE}")
        return 0

    def _checks(self) -> list[Check]:
        """The other models, loaded; none unless asked for."""
        from granvit.corpus.audit.agreement import Recaption, Redetect, Reread

        checks: list[Check] = []
        wanted = self.reread or self.detect.model or self.caption.model
        device = pick_device(self.device) if wanted else ""
        if self.reread:
            # Whatever it reads in the crop is wanted, however unsure: what the corpus says is judged, not this.
            ocr = OcrConfig(box_score=0.3, text_score=0.0)
            checks.append(Reread(ocr.build(device), ocr.name))
        if self.detect.model:
            checks.append(Redetect(self.detect.build(device), self.detect.name))
        if self.caption.model:
            checks.append(Recaption(self.caption.build(device), self.caption.name))
        return checks


@dataclass
class Export:
    """Write a corpus in a layout that other trainers read.

    Layouts: coco: instances and captions JSON with a folder of pictures per split. webdataset: tar shards of pictures
    and JSON. llava: conversations of the three questions. Pictures are written upright, so that boxes lie right in
    readers that know nothing of EXIF.

    Example: granvit corpus export llava corpus out --frame canvas --coordinates int1000
    """

    name: Positional[Literal["coco", "webdataset", "llava"]]
    """The layout."""
    corpus: Positional[Path]
    """The corpus folder."""
    out: Positional[Path]
    """The folder to write; it is there as a whole, or not at all."""
    overwrite: bool = False
    """Replace the export at OUT once the new one is complete."""
    coordinates: str | None = None
    """llava: how boxes are written: decimal (the default), int1000, loc, loc:BINS or cell:BINS."""
    frame: Frame | None = None
    """llava: boxes relative to the image (the default), or to the canvas, the picture padded to a square."""
    questions_per_conversation: int | None = None
    """llava: at most so many questions in one conversation; 10 by default."""
    samples_per_shard: int | None = None
    """webdataset: images per tar; 1000 by default."""

    def run(self) -> int:
        """Exit status: 0, or 1 when nothing could be exported."""
        optional = ("coordinates", "frame", "questions_per_conversation", "samples_per_shard")
        options = {name: getattr(self, name) for name in optional if getattr(self, name) is not None}
        try:
            summary = export_corpus(
                self.name, self.corpus, self.out, overwrite=self.overwrite, progress=sys.stderr.isatty(), **options
            )
        except CorpusError as error:
            return fail(str(error))
        print(f"{self.out}\n{summary}")
        return 0
