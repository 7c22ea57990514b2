"""Which settings decide what a run computes: said once, beside each setting, and read wherever two runs are compared.

A setting that bears no mark decides. `decisive` is what resuming compares, what finished stages are held to, and what a
checkpoint keeps of its run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from granvit.train.config import LoopConfig
    from granvit.train.recipes.base import Recipe

# Changes no number (`parallel` the order of sums): it may be another when a run goes on.
FREE = {"decides": "nothing"}
# Cuts a step into pieces: of how many images a step is decides, and not how it is cut.
CUT = {"decides": "together with others"}
# Counts in another form: as steps and micro-batches, or stage by stage.
ELSEWHERE = {"decides": "elsewhere"}

# In the metadata of a setting that came after runs had been written: where it is its default it decides nothing.
NEWER = "newer"

# What a step is cut into, by the names that checkpoints keep.
CUT_BY = ("batch_size", "accumulate", "processes")

# Settings that were once written down for every stage, and are now those of the one that heeds them.
ONE_STAGES = frozenset(
    ("smoothing", "distill_weight", "alpha", "noise", "blur", "smear", "train_encoder")
    + ("crops", "crop_size", "symbolic", "word_map")
    + ("feature_cache", "feature_cache_dtype", "feature_cache_gb")
)
# Where those of a stage and those of its samples were written down side by side: the stage's.
_STAGES_OWN = ("smoothing", "distill_weight", "alpha", "noise", "blur", "smear", "train_encoder")


def decisive(config: Any, prefix: str = "") -> dict[str, Any]:
    """The settings of a config that decide, by dotted name, as JSON has them."""
    found: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if "decides" in field.metadata or (NEWER in field.metadata and value == field.default):
            continue
        if is_dataclass(value):
            found |= decisive(value, f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = json.loads(json.dumps(value))
    return found


def cut_of(loop: LoopConfig, processes: int) -> dict[str, int]:
    """How a step is cut into micro-batches and processes."""
    return {"batch_size": loop.batch_size, "accumulate": loop.accumulate, "processes": processes}


def images_in_a_step(cut: Mapping[str, Any]) -> int:
    return math.prod(cut.get(name, 1) for name in CUT_BY)


def of_stages(recipe: Recipe, folders: Collection[str], processes: int) -> dict[str, Any]:
    """What the weights after the stages in these folders depend on, besides the data."""
    found = decisive(recipe)
    for stage in recipe.stages:
        if stage.folder in folders:
            step = {"kind": stage.kind, "images in a step": images_in_a_step(cut_of(stage.loop, processes))}
            found |= {f"{stage.folder}.{name}": value for name, value in {**decisive(stage), **step}.items()}
    return found


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first setting in which two runs differ, for people; of a step only how many images it is of."""
    then, here = (" x ".join(f"{run.get(name, 1)} {name}" for name in CUT_BY) for run in (before, now))
    images = images_in_a_step(before), images_in_a_step(now)
    if images[0] != images[1]:
        return f"a step was of {images[0]} images there ({then}) and is of {images[1]} in this run ({here})"
    for name in sorted((before.keys() | now.keys()) - set(CUT_BY)):
        if name not in now and name.rpartition(".")[2] in ONE_STAGES:
            continue
        if before.get(name) != now.get(name):
            return f"{name} was {before.get(name)!r} there and is {now.get(name)!r} in this run"
    return None


def flattened(stored: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint kept of its run, by dotted names; the first versions kept groups, and the recipe's name."""
    sample, settings = stored.get("sample"), stored.get("settings")
    if not isinstance(sample, Mapping) or not isinstance(settings, Mapping):
        return dict(stored)
    flat = {name: value for name, value in stored.items() if name not in ("recipe", "sample", "settings")}
    flat |= {f"settings.{name}": value for name, value in settings.items()}
    for name, value in sample.items():
        if name not in ("kind", "name"):
            flat[name if name in _STAGES_OWN else f"sample.{name}"] = value
    return flat
