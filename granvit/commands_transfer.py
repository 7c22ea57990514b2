"""`granvit transfer`: a trained encoder with another language model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from granvit.commands import train_into
from granvit.errors import GranvitError
from granvit.geometry import Fit, Frame
from granvit.run_folder import checkpoint_of
from granvit.train.config import CachingLoop
from granvit.train.recipes.base import Recipe
from granvit.train.recipes.paper import transfer
from granvit.train.sampling import SampleConfig
from granvit.train.stages.config import AdaptConfig


def _questions() -> SampleConfig:
    return transfer().sample


def _loop() -> CachingLoop:
    return transfer().loop


@dataclass
class Transfer:
    """Give a trained encoder another, larger language model: stage 2 with a fresh projector, the encoder frozen.

    The defaults are those of the recipe `paper-transfer`: Global and Caption2Bbox questions, AdamW with 1e-5, 256
    images a step on any number of GPUs, one epoch.
    """

    source: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run folder, or a checkpoint: where the encoder comes from."""
    llm: str
    """The language model, a directory or a hub name: Qwen2, Qwen2.5, Qwen3, Llama 3, SmolLM to SmolLM3."""
    corpus: tuple[str, ...]
    """Corpus folders, each DIR or DIR=WEIGHT; their training images are mixed."""
    out: Path | None = None
    """The run folder; runs/transfer-LLM by default."""
    codec: str | None = None
    """How boxes are written ("decimal", "int1000", "loc", "loc:BINS"); as RUN writes them by default."""
    frame: Frame | None = None
    """What relative coordinates refer to; as in RUN by default."""
    fit: Fit | None = None
    """How the whole image becomes the canvas; as in RUN by default, which is how the encoder learned to see."""
    sample: SampleConfig = field(default_factory=_questions)
    """What is asked."""
    loop: CachingLoop = field(default_factory=_loop)
    """How it is trained."""
    epochs: float = 1.0
    """How often each image is seen, where --loop.steps names no number of steps."""
    images_per_step: int = 256
    """The global batch, where --loop.accumulate names no number of micro-batches."""
    smoothing: float = 0.0
    """Spread of a location token's target over its neighbours, in bins."""
    seed: int = 0
    resume: bool = True
    """Go on where an interrupted run in `out` stopped."""
    device: Literal["auto", "cpu"] = "auto"

    def run(self) -> int:
        if not self.corpus:
            raise GranvitError("--corpus names no corpus; stage 2 needs at least one")
        out = self.out or Path("runs") / f"transfer-{Path(self.llm).name}"
        return train_into(out, self.recipe(), self.corpus, resume=self.resume, device=self.device)

    @property
    def resumes(self) -> bool:
        return self.resume

    def recipe(self) -> Recipe:
        """Stage 2 alone, from the source's encoder and the new language model.

        Raises:
            CheckpointError: the source is no granvit checkpoint.
        """
        from granvit.model.region_model import read_settings

        checkpoint = checkpoint_of(self.source)
        given = {name: value for name in ("codec", "frame", "fit") if (value := getattr(self, name)) is not None}
        return Recipe(
            name="transfer",
            encoder=str(checkpoint),
            language=self.llm,
            settings=replace(read_settings(checkpoint), **given),
            stages=[
                AdaptConfig(
                    self.sample,
                    self.loop,
                    smoothing=self.smoothing,
                    epochs=self.epochs,
                    images_per_step=self.images_per_step,
                )
            ],
            seed=self.seed,
        )
