"""What a recipe is: a typed, printable, executable description of one experiment."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from granvit.corpus.synthetic.scenes import OBJECTS
from granvit.corpus.synthetic.wordings import Style
from granvit.errors import GranvitError
from granvit.files import write_text
from granvit.loading.run_folder import BASE, CHECKPOINT, DATA, RECIPE, REPORT
from granvit.model.settings import Settings
from granvit.ranges import OF_RECIPES, check_ranges
from granvit.train.config import SELDOM
from granvit.train.identity import ELSEWHERE, FREE, NEWER
from granvit.train.stages.config import StageConfig

# Parts that go by a name of their own, in place of a folder or a name on the hub -> the module whose `build_model` and
# `earlier_folders` know them. Packages that bring such parts enter them when they are imported.
NAMED_PARTS: dict[str, str] = {}
# In place of a part's name: the recipe goes on from a trained model alone, `--init`.
FROM_INIT = "init"


# What else a run's folder holds beside those of its stages.
_OF_RUNS = (CHECKPOINT, BASE, DATA, RECIPE, REPORT)


def cpu_precision() -> Literal["bf16", "fp32"]:
    """What the from-scratch models train in on this machine's CPU.

    bfloat16 is twice as fast where the processor multiplies it itself, several times slower where it does not. Told
    from Linux's own list, not by torch, which takes seconds to import; anywhere else it is float32.
    """
    try:
        return "bf16" if " avx512_bf16 " in Path("/proc/cpuinfo").read_text() else "fp32"
    except OSError:
        return "fp32"


@dataclass
class EmbeddedCorpus:
    """The embedded corpus that a recipe trains on where no other is named.

    Attributes:
        train: pictures to train on.
        val: pictures held out.
        size: the pictures' side in pixels.
        documents: the share of documents, in [0, 1].
        objects: the fewest and the most objects of a scene.
        prints: the share of rendered text among all pictures, see `granvit.corpus.synthetic.rendered_text`.
        seed: of what is drawn.
        style: how scenes are spoken of, see `granvit.corpus.synthetic.wordings`.
    """

    train: int = 6000
    val: int = 200
    size: int = 160
    documents: float = 0.15
    objects: tuple[int, int] = OBJECTS
    prints: float = 0.0
    seed: int = 1
    style: Style = field(default="plain", metadata={NEWER: True})


@dataclass
class Recipe:
    """An experiment from parts to checkpoint.

    Attributes:
        name: how it is called on the command line and in tables.
        encoder: a directory, a hub name, or a part that goes by a name of its own: "nano" is shipped, "nano-untrained"
            starts from nothing.
        language: the same of the language model.
        seed: of fresh weights.
        canvas: side of the square input in pixels; the encoder's own where None.
        settings: coordinates and geometry of the checkpoint.
        stages: what is trained, in order.
        corpus: the embedded corpus, used where no other is named.
        text_tile: side in pixels of the tiles in which the demo evaluates images with text; whole images if None.
    """

    name: str = field(metadata=FREE | SELDOM)
    encoder: str
    language: str
    settings: Settings
    stages: list[StageConfig] = field(metadata=ELSEWHERE)
    corpus: EmbeddedCorpus = field(default_factory=EmbeddedCorpus, metadata=ELSEWHERE | SELDOM)  # see data.json
    seed: int = 0
    text_tile: int | None = field(default=None, metadata=FREE | SELDOM)
    canvas: int | None = None

    def __post_init__(self) -> None:
        check_ranges(self, OF_RECIPES)
        folders = [stage.folder for stage in self.stages]
        for folder in folders:
            if folder in _OF_RUNS or not re.fullmatch(r"\w[\w.-]*", folder):
                raise GranvitError(f"recipe {self.name!r}: no stage can be called {folder!r}, which names its folder")
        if len(set(folders)) != len(folders):
            raise GranvitError(f"recipe {self.name!r}: two stages are called the same ({', '.join(folders)})")

    def resolved(self, images: int, processes: int, text_only: int = 0) -> Recipe:
        """The recipe with every stage's steps and micro-batches as numbers (`StageConfig.resolved`)."""
        return replace(self, stages=[stage.resolved(images, processes, text_only) for stage in self.stages])

    def save(self, path: Path, processes: int, init: Path | str | None = None, weights: str | None = None) -> None:
        """The resolved recipe as JSON, beside the run it made: also on how many processes it runs, and what it went
        on from in place of its parts, with what tells its `weights` from others."""
        facts = {**self.facts(), "processes": processes, "init": None if init is None else str(init)}
        facts |= {} if weights is None else {"init_weights": weights}
        write_text(path, json.dumps(facts, indent=2) + "\n")

    def pretrained_parts(self) -> list[str]:
        """Of encoder and language model those that are weights of others: neither shipped with granvit nor fresh."""
        return [part for part in (self.encoder, self.language) if part not in (*NAMED_PARTS, FROM_INIT)]

    def facts(self) -> dict[str, Any]:
        """The resolved recipe as plain data, each stage with its kind."""
        return {**asdict(self), "stages": [stage.facts() for stage in self.stages]}
