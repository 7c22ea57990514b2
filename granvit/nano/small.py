"""A real language model, frozen, and an encoder from nothing: one GPU, or two CPU cores for hours.

    granvit train small-encoder --out runs/small-encoder
    granvit train small --embedded-corpus --out runs/small
    granvit train small --language SmolLM2-135M-Instruct.Q4_1.gguf --corpus corpora/spoken --out runs/spoken

SmolLM2-135M-Instruct (Apache-2.0) is taken by its name on the hub, or from a folder or GGUF file by `--language`. The
encoder first learns which words belong to a drawn picture, as the presets' does (`small_encoder_recipe`); `--encoder`
names any other. From there on all is the paper's but for how boxes are written: no warm-up on symbolic images, no
smoothing, stage 1 through the frozen language model with lambda 1 and alpha 0.9, stage 2 with the encoder frozen. A box
is three location tokens, whose embeddings train in stage 1: a frozen model of this size has no link between the digits
of a box and a place in the picture (docs/encoders.md).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from granvit.model.settings import Settings
from granvit.nano.config import EncoderWarmupConfig, WordMapSample
from granvit.nano.recipes import nano_encoder_recipe
from granvit.train.config import CachingLoop, CroppedSample, LoopConfig, SampleConfig
from granvit.train.recipes.base import EmbeddedCorpus, Recipe, cpu_precision
from granvit.train.stages.config import AdaptConfig, PretrainConfig

LANGUAGE = "HuggingFaceTB/SmolLM2-135M-Instruct"
ENCODER = "runs/small-encoder/checkpoint"
CANVAS = 224
# bfloat16 where the processor multiplies it, and on a GPU.
_PRECISION: Literal["auto", "bf16"] = "bf16" if cpu_precision() == "bf16" else "auto"


def _loop(steps: int, lr: float) -> dict[str, object]:
    return {
        "steps": steps,
        "batch_size": 16,
        "lr": lr,
        "min_lr_ratio": 0.02,
        "warmup_steps": 100,
        "weight_decay": 0.02,
        "betas": (0.9, 0.98),
        # It starts from nothing, between parts that have learned.
        "optimizer_groups": {"multi_modal_projector": 2.0},
        "precision": _PRECISION,
        "save_every": 250,
    }


def small_encoder_recipe() -> Recipe:
    """`EncoderWarmup` of the encoder that `small` starts from: which words belong to a picture, and letters in patches.

    granvit train small-encoder --out runs/small-encoder

    The words are those of a tokenizer of a thousand, made on the spot; the language model that has it learns nothing.
    """
    recipe = nano_encoder_recipe()
    words, again = recipe.stages
    assert isinstance(words, EncoderWarmupConfig) and isinstance(again, EncoderWarmupConfig)
    sample = WordMapSample({"bbox2caption": 1.0}, max_regions=1, word_map=True)
    patches = replace(again, sample=sample, name="patches", loop=replace(again.loop, steps=3000, seed=2))
    for stage in (words, patches):
        stage.loop.precision = _PRECISION
    return replace(
        recipe,
        name="small-encoder",
        encoder="small-untrained",
        language="nano-untrained",
        corpus=EmbeddedCorpus(train=40_000, val=200, size=CANVAS, documents=0.05, objects=(1, 2), prints=0.2, seed=3),
        stages=[words, patches],
    )


def small() -> Recipe:
    """The paper's two stages through a frozen SmolLM2-135M, on drawn pictures or a corpus of your own.

    granvit train small --embedded-corpus --out runs/small
    """
    questions = {"global": 0.2, "bbox2caption": 1.0}
    first = LoopConfig(**_loop(3000, 5e-4))  # type: ignore[arg-type]
    first.optimizer_groups = {**first.optimizer_groups, "embed_tokens": 2.0}  # location tokens start from nothing too
    pretrain = PretrainConfig(
        CroppedSample(questions, max_regions=8, crops=2, crop_size=112, draw_crops=True),  # type: ignore[arg-type]
        first,
        distill_weight=1.0,
        alpha=0.9,
        train_locations=True,
    )
    adapt = AdaptConfig(
        SampleConfig({"global": 0.2, "bbox2caption": 0.0, "caption2bbox": 1.0}, max_regions=8),
        CachingLoop(**_loop(1000, 2e-4)),  # type: ignore[arg-type]
    )
    return Recipe(
        name="small",
        encoder=ENCODER,
        language=LANGUAGE,
        settings=Settings(codec="cell:24", frame="image", fit="letterbox"),
        corpus=EmbeddedCorpus(train=48_000, val=500, size=CANVAS, documents=0.1),
        stages=[pretrain, adapt],
    )
