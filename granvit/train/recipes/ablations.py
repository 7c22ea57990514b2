"""What the controlled study varies: each function makes of a recipe of two stages, `base`, the recipe of one arm.

    granvit study nano --out runs/study                    the arms of `granvit/study/arms.py` at nano size
    granvit study paper --corpus corpora/gran --out DIR    the same changes of the paper's own recipe

A change is a function, so that it holds for recipes of any size: what it does not touch stays as the recipe has it.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import fields, replace
from functools import partial
from typing import Any

from granvit.errors import GranvitError
from granvit.questions import Task
from granvit.train.config import ConversationSample, LoopConfig
from granvit.train.recipes.base import Recipe
from granvit.train.stages.config import AdaptConfig, ContrastConfig, FinetuneConfig, PretrainConfig

Change = Callable[[Recipe], Recipe]

# All that a region can be asked, as fine-tuning asks it.
BOTH_DIRECTIONS: dict[Task, float] = {"bbox2caption": 1.0, "caption2bbox": 1.0}


def unchanged(base: Recipe) -> Recipe:
    """The paper's two stages."""
    return deepcopy(base)


def initial(base: Recipe) -> Recipe:
    """Stage 2 alone: the encoder as it came."""
    return _with(base, _stages(base)[1])


def stage_1_alone(base: Recipe) -> Recipe:
    """Stage 1 and nothing after it."""
    return _with(base, _stages(base)[0])


def stage_1_of(base: Recipe, change: Change) -> Recipe:
    """The first stage of another arm, and nothing after it."""
    changed = change(base)
    return _with(changed, changed.stages[0])


def untrained(base: Recipe) -> Recipe:
    """No stage at all: what the parts came with."""
    return _with(base)


def global_only(base: Recipe) -> Recipe:
    """Stage 1 on captions of whole images: no box, no crop."""
    pretrain, adapt = _stages(base)
    pretrain.sample.questions, pretrain.sample.crops, pretrain.distill_weight = {"global": 1.0}, 0, 0.0
    return _with(base, pretrain, adapt)


def without_distillation(base: Recipe) -> Recipe:
    """Stage 1 by the captions' loss alone."""
    pretrain, adapt = _stages(base)
    pretrain.sample.crops, pretrain.distill_weight = 0, 0.0
    return _with(base, pretrain, adapt)


def contrast(base: Recipe) -> Recipe:
    """Regions are contrasted with the embeddings of their texts; no language model is run in stage 1."""
    pretrain, adapt = _stages(base)
    sample = replace(pretrain.sample, questions={"bbox2caption": 1.0}, crops=0)
    return _with(base, ContrastConfig(sample, pretrain.loop, **_span(pretrain)), adapt)


def distillation_alone(base: Recipe) -> Recipe:
    """Stage 1 by the self-distillation alone: no word is learned from."""
    pretrain, adapt = _stages(base)
    sample = replace(pretrain.sample, questions={"bbox2caption": 1.0})
    loop = replace(pretrain.loop, optimizer_groups={})  # no projector learns, of which the groups may speak
    alone = ContrastConfig(sample, loop, contrast_weight=0.0, distill_weight=1.0, **_span(pretrain))
    alone.alpha = pretrain.alpha
    return _with(base, alone, adapt)


def both_directions(base: Recipe) -> Recipe:
    """Stage 1 asks where phrases are too, as FineViT does."""
    pretrain, adapt = _stages(base)
    pretrain.sample.questions = {**pretrain.sample.questions, **BOTH_DIRECTIONS}
    return _with(base, pretrain, adapt)


def merged(base: Recipe) -> Recipe:
    """One stage of as many images as both: every part learns from every question, beside the distillation."""
    pretrain, adapt = _stages(base)
    pretrain.sample.questions = {**pretrain.sample.questions, **BOTH_DIRECTIONS}
    pretrain.train_language, pretrain.smoothing = True, adapt.smoothing
    if pretrain.loop.batch_size * pretrain.loop.accumulate != adapt.loop.batch_size * adapt.loop.accumulate:
        raise GranvitError("merged: the stages take steps of different sizes")
    pretrain.loop.steps += adapt.loop.steps
    pretrain.epochs += adapt.epochs  # counts where the stages name no steps
    return _with(base, pretrain)


def other_order(base: Recipe) -> Recipe:
    """First the language model learns to find regions with the encoder as it came, then the encoder to describe."""
    pretrain, adapt = _stages(base)
    return _with(base, adapt, pretrain)


def encoder_trained(base: Recipe) -> Recipe:
    """The encoder goes on learning in stage 2."""
    pretrain, adapt = _stages(base)
    sample = ConversationSample(**_own(adapt.sample))
    loop = LoopConfig(**{field.name: getattr(adapt.loop, field.name) for field in fields(LoopConfig)})
    tuned = FinetuneConfig(sample, loop, smoothing=adapt.smoothing, train_encoder=True, name=adapt.folder)
    tuned.epochs, tuned.images_per_step = adapt.epochs, adapt.images_per_step
    return _with(base, pretrain, tuned)


def distilled_by(base: Recipe, distill_weight: float | None = None, alpha: float | None = None) -> Recipe:
    """Stage 1 with another `distill_weight` (lambda) or `alpha`; None is the recipe's own."""
    pretrain, adapt = _stages(base)
    pretrain.distill_weight = pretrain.distill_weight if distill_weight is None else distill_weight
    pretrain.alpha = pretrain.alpha if alpha is None else alpha
    return _with(base, pretrain, adapt)


def crops_of(base: Recipe, side: int) -> Recipe:
    """The teacher sees crops of so many pixels."""
    pretrain, adapt = _stages(base)
    pretrain.sample.crop_size = side
    return _with(base, pretrain, adapt)


def regions_at_most(base: Recipe, count: int) -> Recipe:
    """At most so many regions of an image are asked about in stage 1, each time it is seen."""
    pretrain, adapt = _stages(base)
    pretrain.sample.max_regions = count
    pretrain.sample.crops = min(pretrain.sample.crops, count)
    return _with(base, pretrain, adapt)


def encoder_from(base: Recipe, encoder: str) -> Recipe:
    """Another encoder to begin with."""
    changed = deepcopy(base)
    changed.encoder = encoder
    return changed


def change(function: Callable[..., Recipe], **settings: Any) -> Change:
    """One of the functions above with its settings."""
    return partial(function, **settings)


def _stages(base: Recipe) -> tuple[PretrainConfig, AdaptConfig]:
    """Copies of the two stages of a recipe that arms are made of.

    Raises:
        GranvitError: it has others.
    """
    stages = deepcopy(base.stages)
    if len(stages) == 2:
        pretrain, adapt = stages
        if isinstance(pretrain, PretrainConfig) and isinstance(adapt, AdaptConfig):
            return pretrain, adapt
    raise GranvitError(f"{base.name}: the arms of a study are changes of a recipe with stage 1 and stage 2")


def _with(base: Recipe, *stages: Any) -> Recipe:
    return replace(deepcopy(base), stages=list(stages))


def _span(stage: PretrainConfig) -> dict[str, Any]:
    return {"epochs": stage.epochs, "images_per_step": stage.images_per_step}


def _own(sample: Any) -> dict[str, Any]:
    return {field.name: getattr(sample, field.name) for field in fields(sample)}
