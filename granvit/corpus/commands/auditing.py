"""``granvit corpus audit``: how good the annotations are."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional

from granvit.corpus.annotate.base import AnnotateError
from granvit.corpus.annotate.caption import CaptionConfig
from granvit.corpus.annotate.detect import DetectConfig
from granvit.corpus.annotate.ocr import OcrConfig
from granvit.corpus.commands.common import fail
from granvit.corpus.layout import CorpusError
from granvit.devices import pick_device
from granvit.files import locked

if TYPE_CHECKING:
    from granvit.corpus.audit.agreement import Check


@dataclass
class Audit:
    """Judge a corpus's annotations: statistics, agreement with people and other models, and pictures to look at.

    Writes OUT/index.html, one page that needs no network, and OUT/audit.json, its numbers.

    Example: granvit corpus audit corpus audits/receipts --against human --reread
    """

    corpus: Annotated[Positional[Path], tyro.conf.arg(metavar="CORPUS")]
    """The corpus folder."""
    out: Annotated[Positional[Path], tyro.conf.arg(metavar="OUT")]
    """The folder to write the page and its numbers into."""
    against: Path | None = None
    """A corpus of the same images with regions that people made, joined by id or by the sha256 of the image file."""
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
