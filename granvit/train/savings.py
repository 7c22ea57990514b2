"""What a stage is spared by choice: activations, uncompiled kernels, encoding a picture again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from accelerate import PartialState

from granvit.errors import GranvitError
from granvit.model.blocks import compiled, recomputed
from granvit.train.feature_cache import FeatureCache
from granvit.train.recipes.base import StageRecipe
from granvit.train.stages import Adapt, AnsweringStage


@contextmanager
def savings(stage: AnsweringStage, recipe: StageRecipe, state: PartialState) -> Iterator[None]:
    """Within, a stage trains as its recipe's `loop` says under `gradient_checkpointing`, `compile`, `feature_cache`.

    Raises:
        ValueError: features of this stage can't be kept; the message says why.
    """
    loop = recipe.loop
    parts = {"encoder": stage.tower, "language": stage.model.model.language_model}
    with ExitStack() as context:
        context.enter_context(recomputed([parts[name] for name in loop.gradient_checkpointing]))
        if loop.compile and state.device.type == "cuda":
            context.enter_context(compiled(stage))
        if loop.feature_cache is not None:
            if not isinstance(stage, Adapt):
                raise GranvitError(f"{recipe.folder}: loop.feature_cache is for stage2, whose encoder is frozen")
            if recipe.sample.windows:
                raise GranvitError(f"{recipe.folder}: loop.feature_cache with sample.windows: no window comes up twice")
            if loop.parallel == "fsdp" and state.num_processes > 1:
                raise GranvitError(f"{recipe.folder}: loop.feature_cache with fsdp: processes must encode together")
            stage.cache = context.enter_context(
                FeatureCache(
                    loop.feature_cache,
                    stage.region_model,
                    loop.feature_cache_dtype,
                    loop.feature_cache_gb,
                    state.process_index,
                    state.num_processes,
                )
            )
        yield
