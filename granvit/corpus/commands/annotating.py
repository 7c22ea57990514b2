"""``granvit corpus annotate``: images in, a region corpus out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from granvit.corpus.annotate.base import AnnotateError
from granvit.corpus.annotate.caption import CaptionConfig
from granvit.corpus.annotate.detect import DetectConfig, KeepConfig
from granvit.corpus.annotate.ocr import OcrConfig
from granvit.corpus.annotate.plan import How, Plan
from granvit.corpus.commands.common import fail, warn
from granvit.corpus.layout import MANIFEST, QUARANTINE, CorpusError


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
    """The data set's name, the first part of every id; by default that of SRC."""
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
