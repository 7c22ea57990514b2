"""Everything from nothing on one GPU, meant to take less than an hour.

    granvit train tiny                       on the embedded corpus, drawn on first use
    granvit train tiny --corpus DIR          on a corpus of your own

Twelve times the parameters of `nano`, 22 million in the encoder (12 layers, 384 wide, 16-pixel patches on a 256-pixel
canvas) and 15 million in the language model (8 layers, 384 wide, 128 places for a coordinate). Nothing is shipped for
it: both parts are warmed up first, as `nano_encoder_recipe` and `nano_language` warm up the shipped ones of `nano`.

It has not been run on a GPU yet: that it builds, trains and counts what it should is tested on a CPU, the numbers of
steps carry over from `nano`, and what it scores and how long it takes is unknown.
"""

from __future__ import annotations

from dataclasses import replace

from granvit.model.settings import Settings
from granvit.questions import Task
from granvit.train.config import LoopConfig
from granvit.train.recipes.base import EmbeddedCorpus, Recipe, StageRecipe
from granvit.train.sampling import SampleConfig

# Eight for each of the 16 patches of a side, as in `nano`.
BINS = 128


def tiny() -> Recipe:
    """Encoder and language model from nothing, both stages, on one GPU in under an hour (not yet run on one).

    granvit train tiny --corpus DIR --out runs/tiny
    """
    base = LoopConfig(
        steps=1, batch_size=64, lr=1e-3, min_lr_ratio=0.02, warmup_steps=200, weight_decay=0.02, betas=(0.9, 0.98)
    )
    base = replace(base, save_every=500)
    seeing = StageRecipe("encoder", SampleConfig({"bbox2caption": 1.0}), replace(base, steps=4000))
    return Recipe(
        name="tiny",
        encoder="tiny-untrained",
        language="tiny-untrained",
        settings=Settings(codec=f"loc:{BINS}"),
        corpus=EmbeddedCorpus(train=40_000, val=500, size=256, documents=0.15),
        stages=[seeing, *_reading(replace(base, weight_decay=0.05)), _stage1(base), _stage2(base)],
    )


def _reading(base: LoopConfig) -> list[StageRecipe]:
    """The language model learns to read symbolic images: clear ones, then unclear ones (see `LanguageWarmup`)."""

    def warmup(
        name: str, loop: LoopConfig, locate: float, noise: float, blur: float, smear: float = 0.0
    ) -> StageRecipe:
        questions: dict[Task, float] = {"global": 0.3, "bbox2caption": 1.0, "caption2bbox": locate}
        sample = SampleConfig(questions, subphrases=0.5 if locate else 0.0, symbolic=True)
        return StageRecipe("warmup", sample, loop, smoothing=1.0, noise=noise, blur=blur, smear=smear, name=name)

    first = replace(base, steps=800, min_lr_ratio=0.7)
    return [
        warmup("reading", first, locate=0.0, noise=0.3, blur=0.0),
        warmup("clear", replace(base, steps=1200, min_lr_ratio=0.5, seed=1), locate=1.0, noise=0.3, blur=0.0),
        warmup("blurred", replace(base, steps=1200, seed=2), locate=0.4, noise=0.5, blur=1.0),
        warmup("smeared", replace(base, steps=800, seed=3), locate=0.8, noise=0.4, blur=0.4, smear=1.0),
    ]


def _stage1(base: LoopConfig) -> StageRecipe:
    """The paper's stage 1, two crops of each image for the teacher at half the canvas."""
    sample = SampleConfig({"global": 0.2, "bbox2caption": 1.0}, crops=2, crop_size=128)
    loop = replace(base, steps=3000, optimizer_groups={"multi_modal_projector": 5.0})
    return StageRecipe("stage1", sample, loop)


def _stage2(base: LoopConfig) -> StageRecipe:
    """Stage 2 as in `nano`: a small language model keeps half of the Bbox2Caption questions."""
    sample = SampleConfig({"global": 0.3, "bbox2caption": 0.5, "caption2bbox": 1.0})
    loop = replace(base, steps=1500, lr=5e-4, weight_decay=0.0, warmup_steps=100)
    return StageRecipe("stage2", sample, loop, smoothing=1.0)
