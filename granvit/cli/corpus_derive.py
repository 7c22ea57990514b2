"""`granvit corpus merge`, `split`, `sample`, `tile`, `curate` and `leakage`: corpora made of others."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from granvit.cli.corpus_common import fail, status_of, warn
from granvit.corpus import derive
from granvit.corpus.curate.curation import Curation, curate
from granvit.corpus.curate.filters import Preset, with_preset
from granvit.corpus.dedup.leakage import SIMILARITY, find_leaks, ids_beside, load_benchmarks, write_without
from granvit.corpus.derive import Tiling, tile
from granvit.corpus.layout import CURATION, CorpusError
from granvit.corpus.store import Corpus
from granvit.errors import GranvitError
from granvit.files import check_replaceable, locked
from granvit.regions import Kind


@dataclass
class Merge:
    """Write several corpora as one.

    Where only some of them name the images that they hold out, those without a split are named by the hash that held
    them out.

    Example: granvit corpus merge receipts photos all
    """

    paths: Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="CORPUS CORPUS [CORPUS ...] OUT")]
    """The corpora, then the corpus folder to write."""
    skip_known: bool = False
    """Leave out an image whose id an earlier one has; otherwise two of one id are an error. Held-out data first."""
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
        unnamed = [corpus for corpus in corpora if not derive.names_held_out(corpus)]
        moved = [str(corpus.path) for corpus in unnamed if corpus.manifest["images_by_split"].get("")]
        if moved and len(unnamed) < len(corpora):
            warn(f'no split named in {", ".join(moved)}: a tenth, by the hash of their ids, is now "val"')
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
        for name, share in (("val", self.val), ("test", self.test)):
            if share and not images.get(name):
                warn(f"--{name} {share} chose none of these images: give a larger share")
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
            images = derive.write_part(corpus, derive.records_at(corpus, places), self.out, made, self.overwrite)
        except CorpusError as error:
            return fail(str(error))
        print(f"{self.out}: {images} of {len(corpus)} images")
        return status_of(self.out, [corpus])


@dataclass
class Tile:
    """Write a corpus with its large images cut into tiles, for text and objects too small for an encoder's canvas.

    Example: granvit corpus tile receipts tiles --side 240 --kind text
    """

    corpus: Positional[Path]
    """The corpus folder."""
    out: Positional[Path]
    """The corpus folder to write."""
    side: int = 512
    """Side of a tile, in pixels of the image; an image that is no larger, or has no region, stays whole."""
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
        print(f"left out: {made.left_out()}")
        return status_of(self.out, [corpus])


SHOWN_LEAKS = 10


@dataclass
class Curate:
    """Write the part of a corpus that is worth training on, and an account of every drop, OUT/curation.json.

    The paper's filters for objects, others for text, no picture twice, no text repeated beyond measure.

    Example: granvit corpus curate corpus curated --caps web 100000 --filters.text-box.min-side 12
    """

    corpus: Positional[Path]
    """The corpus folder."""
    out: Positional[Path]
    """The corpus folder to write."""
    preset: Preset = "paper"
    """The limits of images and boxes. paper: for large photographs, and others for text. photos: pictures and boxes of
    the size that the usual data sets have. documents: pages, receipts and strips. Limits that are given besides stand,
    where they are not the paper's."""
    curation: Annotated[Curation, tyro.conf.arg(name="")] = field(default_factory=Curation)
    fingerprints: Path | None = None
    """A Parquet file that has the fingerprints of the corpus's images, or to keep them in for the next time."""
    workers: int = 0
    """Threads that decode pictures to look for copies; 0 for one per core."""
    overwrite: bool = False
    """Replace the corpus at OUT once the new one is complete."""

    def run(self) -> int:
        """Exit status: 0, or 1 when nothing is left or could be written."""
        curation = replace(self.curation, filters=with_preset(self.curation.filters, self.preset))
        try:
            corpus = Corpus(self.corpus)
            report = curate(
                corpus,
                self.out,
                curation,
                fingerprints=self.fingerprints,
                workers=self.workers,
                overwrite=self.overwrite,
                progress=sys.stderr.isatty(),
            )
        except CorpusError as error:
            return fail(str(error))
        print(f"{self.out}\n{report}\nsee {self.out / CURATION}")
        for loss in report.losses():
            warn(loss)
        return status_of(self.out, [corpus])


@dataclass
class Leakage:
    """Look for benchmark images in a corpus: by name, by checksum, and by image similarity.

    A benchmark is a corpus, a folder of pictures, Parquet or tars with pictures, or lists of names or COCO image ids
    (.txt, .jsonl, .json, also .gz). Copies are found resized, recompressed, mirrored, and cropped by a tenth.

    Example: granvit corpus leakage corpus --against refcoco_ids textvqa/val --out clean
    """

    corpus: Positional[Path]
    """The corpus folder."""
    against: tuple[Path, ...]
    """The benchmarks."""
    out: Path | None = None
    """Write the corpus without the images that were found to this folder."""
    report: Path = Path("leakage.json")
    """The file to write the findings to; the ids alone go to the same name with .txt."""
    similarity: float = SIMILARITY
    """From which agreement, at most 1, a picture counts as a copy. Receipts in one layout reach 0.9."""
    fingerprints: Path | None = None
    """A Parquet file that has the fingerprints of the corpus's images, or to keep them in for the next benchmark."""
    workers: int = 0
    """Threads that decode pictures; 0 for one per core."""
    overwrite: bool = False
    """Replace the corpus at OUT once the new one is complete."""

    def run(self) -> int:
        """Exit status: 0 whatever was found, or 1 when nothing could be compared or written."""
        try:
            check_replaceable("--report", self.report, "leaks")
            if (ids := ids_beside(self.report)).exists() and not self.report.exists():
                return fail(f"--report {self.report}: the ids go to {ids}, which is there; name another file")
            corpus = Corpus(self.corpus)
            benchmarks = load_benchmarks(self.against, self.workers)
            for name, reason in benchmarks.problems[:SHOWN_LEAKS]:
                print(f"not compared: {name}: {reason}", file=sys.stderr)
            if len(benchmarks.problems) > SHOWN_LEAKS:
                print(f"not compared: ... {len(benchmarks.problems) - SHOWN_LEAKS} more", file=sys.stderr)
            listed = sum(benchmark.listed + benchmark.by_name_alone for benchmark in benchmarks.benchmarks)
            for benchmark in benchmarks.benchmarks:
                if alone := benchmark.by_name_alone:
                    print(
                        f"{benchmark.place}: {alone} images have no picture, so they go by name alone", file=sys.stderr
                    )
            with locked(self.report):
                report = find_leaks(
                    corpus,
                    benchmarks,
                    similarity=self.similarity,
                    fingerprints=self.fingerprints,
                    workers=self.workers,
                    progress=sys.stderr.isatty(),
                )
                ids = report.write(self.report)
            kept = write_without(corpus, report.ids, self.out, self.overwrite) if self.out else 0
        except GranvitError as error:
            return fail(str(error))
        known = f"{len(benchmarks.names)} pictures" + (f", {listed} names" if listed else "")
        if nameless := len(benchmarks.problems):
            known += f"; {nameless} benchmark images were not compared"
        print(f"{report.images} images compared with {known}: {len(report.ids)} are benchmark images")
        for leak in report.leaks[:SHOWN_LEAKS]:
            score = "" if leak.similarity is None else f" {leak.similarity:.2f}"
            print(f"  {leak.how}{score}{' mirrored' if leak.mirrored else ''}  {leak.id}  =  {leak.benchmark}")
        if len(report.leaks) > SHOWN_LEAKS:
            print(f"  ... {len(report.leaks) - SHOWN_LEAKS} more")
        for reason, count in (+report.unseen).items():
            print(f"  {count} not compared by picture: {reason}")
        print(f"see {self.report} and {ids}")
        if self.out:
            print(f"{self.out}: {kept} images without them")
            return status_of(self.out, [corpus])
        return 0
