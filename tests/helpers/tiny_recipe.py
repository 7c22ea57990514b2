"""A recipe of both stages that trains in a second or two, with its parts as stock checkpoints on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.tiny_model import CANVAS, TEXTS, make_language, make_tower

from granvit import predict
from granvit.coordinates import get_codec
from granvit.corpus.synthetic.synthesize import make
from granvit.evaluate import region_tasks
from granvit.model.region_model import Settings
from granvit.nano.models import train_tokenizer
from granvit.train.config import CachingLoop, CroppedSample, LoopConfig, SampleConfig
from granvit.train.recipes.base import EmbeddedCorpus, Recipe
from granvit.train.stages.config import AdaptConfig, PretrainConfig

CODEC = "loc:16"
SOURCES = [([make(i, seed=1, size=64, documents=0.4) for i in range(8)], 1.0)]


def save_parts(folder: Path) -> Path:
    """`folder`/encoder and `folder`/language, a SigLIP tower and a Qwen2 of a few thousand parameters."""
    tokenizer = train_tokenizer(TEXTS, 280, get_codec(CODEC))
    make_tower().save_pretrained(folder / "encoder")
    make_language("qwen2", tokenizer).save_pretrained(folder / "language")
    tokenizer.save_pretrained(folder / "language")
    return folder


def tiny_recipe(parts: Path, steps: int = 2) -> Recipe:
    """Both stages on 8 embedded pictures; every step leaves a checkpoint."""
    loop = {"steps": steps, "batch_size": 2, "lr": 1e-3, "precision": "fp32", "log_every": 1, "save_every": 1}
    return Recipe(
        name="tiny",
        encoder=str(parts / "encoder"),
        language=str(parts / "language"),
        settings=Settings(codec=CODEC),
        corpus=EmbeddedCorpus(train=8, val=4, size=CANVAS, documents=0.4),
        stages=[
            PretrainConfig(
                CroppedSample({"global": 1.0, "bbox2caption": 1.0}, crops=1, crop_size=32),
                LoopConfig(**loop),
            ),
            AdaptConfig(
                SampleConfig({"global": 0.5, "bbox2caption": 0.5, "caption2bbox": 1.0}),
                CachingLoop(**loop),
                smoothing=1.0,
            ),
        ],
    )


def shorten_answers(patch: pytest.MonkeyPatch, longest: int = 4) -> None:
    """An untrained model never ends an answer by itself; four tokens of it are enough."""
    for module in (region_tasks, predict):
        for name in ("LONGEST_CAPTION", "LONGEST_DESCRIPTION", "LONGEST_BOX"):
            patch.setattr(module, name, longest)
