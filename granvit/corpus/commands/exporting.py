"""``granvit corpus export``: a corpus in the layouts of other trainers."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from granvit.corpus.commands.common import fail
from granvit.corpus.exporters import export_corpus
from granvit.corpus.layout import CorpusError
from granvit.geometry import Frame


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
    """llava: how boxes are written: decimal (the default), int1000, loc or loc:BINS."""
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
