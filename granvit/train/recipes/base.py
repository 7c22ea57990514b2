"""What a recipe is: a typed, printable, executable description of one experiment."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from granvit.corpus.synthetic import OBJECTS
from granvit.errors import GranvitError
from granvit.files import write_text
from granvit.model.settings import Settings
from granvit.train.config import LoopConfig
from granvit.train.sampling import SampleConfig

if TYPE_CHECKING:  # the program's help shows every recipe, and does not need the seconds that torch takes
    from granvit.model.region_model import RegionModel
    from granvit.train.stages import AnsweringStage

# What `Recipe.encoder` and `Recipe.language` call without being a directory or a hub name.
OWN_PARTS = ("nano", "nano-reader", "nano-untrained", "tiny-untrained")

Kind = Literal["encoder", "warmup", "stage1", "stage2", "finetune"]


def cpu_precision() -> Literal["bf16", "fp32"]:
    """What the from-scratch models train in on this machine's CPU.

    bfloat16 is twice as fast where the processor multiplies it itself, several times slower where it does not. Told
    from Linux's own list, not by torch, for the reason above; anywhere else it is float32.
    """
    try:
        return "bf16" if " avx512_bf16 " in Path("/proc/cpuinfo").read_text() else "fp32"
    except OSError:
        return "fp32"


@dataclass
class StageRecipe:
    """One stage: what it asks, how it is trained, and the weights of its losses.

    Attributes:
        kind: "encoder" and "warmup" (for the presets' own parts), "stage1" (pretraining), "stage2" (adaptation) or
            "finetune".
        name: the stage's folder and its name in tables; the kind where empty.
        smoothing: spread of a location token's target over its neighbours, in bins (0: the paper's plain loss).
        distill_weight, alpha: stage 1's self-distillation (paper: 1 and 0.9).
        noise, blur, smear: how unclear the warm-up's symbolic images are (see `LanguageWarmup`).
        train_encoder: whether "finetune" trains the encoder too.
        epochs: how often each image is seen; counts where `loop.steps` is 0.
        images_per_step: the global batch, over all processes; counts where `loop.accumulate` is 0, so that a recipe
            stays the same on any number of GPUs.
    """

    kind: Kind
    sample: SampleConfig
    loop: LoopConfig
    smoothing: float = 0.0
    distill_weight: float = 1.0
    alpha: float = 0.9
    noise: float = 0.3
    blur: float = 0.0
    smear: float = 0.0
    train_encoder: bool = False
    epochs: float = 1.0
    images_per_step: int = 256
    name: str = ""

    @property
    def folder(self) -> str:
        """The stage's folder in a run, unique in its recipe."""
        return self.name or self.kind

    def resolved(self, images: int, processes: int) -> StageRecipe:
        """The same stage with its steps and micro-batches as numbers, for a corpus and a number of processes.

        Raises:
            ValueError: so many processes cannot share `images_per_step` evenly.
        """
        loop, together = self.loop, self.loop.batch_size * processes
        accumulate = loop.accumulate or self.images_per_step // together
        if not loop.accumulate and accumulate * together != self.images_per_step:
            raise GranvitError(
                f"{self.folder}: {self.images_per_step} images per step are no whole number of batches of "
                f"{loop.batch_size} on {processes} process(es); choose another loop.batch-size"
            )
        steps = loop.steps or max(1, math.ceil(self.epochs * images / (accumulate * together)))
        return replace(self, loop=replace(loop, steps=steps, accumulate=accumulate))

    def build(self, model: RegionModel) -> AnsweringStage:
        """The stage object for a model."""
        from granvit.train.encoder_warmup import EncoderWarmup
        from granvit.train.stages import Adapt, Finetune, LanguageWarmup, Pretrain

        if self.kind == "encoder":
            return EncoderWarmup(model)
        if self.kind == "warmup":
            return LanguageWarmup(model, self.smoothing, self.noise, self.blur, self.smear)
        if self.kind == "stage1":
            return Pretrain(model, self.smoothing, self.distill_weight, self.alpha)
        if self.kind == "stage2":
            return Adapt(model, self.smoothing)
        return Finetune(model, self.smoothing, self.train_encoder)


@dataclass
class EmbeddedCorpus:
    """The embedded corpus that a recipe trains on where no other is named.

    `size` is the pictures' side in pixels, `documents` the share of documents in [0, 1], `objects` the fewest and most
    objects of a scene, `prints` the share of all pictures that is print (`granvit.corpus.print`) in their place.
    """

    train: int = 6000
    val: int = 200
    size: int = 160
    documents: float = 0.15
    objects: tuple[int, int] = OBJECTS
    prints: float = 0.0
    seed: int = 1


@dataclass
class Recipe:
    """An experiment from parts to checkpoint.

    Attributes:
        name: how it is called on the command line and in tables.
        encoder, language: a directory, a hub name, or "nano" for the shipped ones; "nano-untrained" and
            "tiny-untrained" start from nothing.
        canvas: side of the square input in pixels; the encoder's own where None.
        settings: coordinates and geometry of the checkpoint.
        stages: what is trained, in order.
        corpus: the embedded corpus, used where no other is named.
        text_tile: side in pixels of the tiles in which the demo evaluates images with text; whole images if None.
    """

    name: str
    encoder: str
    language: str
    settings: Settings
    stages: list[StageRecipe]
    corpus: EmbeddedCorpus = field(default_factory=EmbeddedCorpus)
    seed: int = 0
    text_tile: int | None = None
    canvas: int | None = None

    def __post_init__(self) -> None:
        folders = [stage.folder for stage in self.stages]
        if len(set(folders)) != len(folders):
            raise GranvitError(f"recipe {self.name!r}: two stages are called the same ({', '.join(folders)})")

    def resolved(self, images: int, processes: int) -> Recipe:
        """The recipe with every stage's steps and micro-batches as numbers (`StageRecipe.resolved`)."""
        return replace(self, stages=[stage.resolved(images, processes) for stage in self.stages])

    def save(self, path: Path, processes: int) -> None:
        """The resolved recipe as JSON, beside the run it made, and on how many processes it runs."""
        write_text(path, json.dumps({**self.facts(), "processes": processes}, indent=2) + "\n")

    def pretrained_parts(self) -> list[str]:
        """Of encoder and language model those that are somebody's weights: neither shipped with granvit nor fresh."""
        return [part for part in (self.encoder, self.language) if part not in OWN_PARTS]

    def facts(self) -> dict[str, Any]:
        """The resolved recipe as plain data."""
        return asdict(self)
