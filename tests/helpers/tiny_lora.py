"""A stage 2 by LoRA that trains in a second, from a model on the disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from helpers.tiny_recipe import SOURCES, tiny_recipe

from granvit.model.region_model import RegionModel
from granvit.train.config import Lora
from granvit.train.recipes.base import Recipe
from granvit.train.run import run_recipe

RANK = 4


def lora_recipe(steps: int = 2, lora: Lora | None = None, **loop: Any) -> Recipe:
    """The tiny recipe's stage 2 alone; at a rate at which every adapter has changed after a step."""
    recipe = tiny_recipe(Path("parts"), steps)
    stage = recipe.stages[1]
    changes = {"lr": 3e-2, "trackers": (), "first_batch": False, **loop}
    stage = replace(stage, loop=replace(stage.loop, **changes), lora=lora or Lora(RANK))
    return replace(recipe, stages=[stage])


def train_lora(start: Path, out: Path, steps: int = 2, lora: Lora | None = None, **options: Any) -> RegionModel:
    """A run from the checkpoint `start`; `out`/checkpoint is its adapter."""
    return run_recipe(lora_recipe(steps, lora), out, SOURCES, init=start, device="cpu", **options)
