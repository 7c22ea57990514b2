"""Memory options of a stage: blocks computed anew, compiled kernels, features kept on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from accelerate import PartialState

from granvit.errors import GranvitError
from granvit.model.blocks import compiled, recomputed
from granvit.train.config import CachingLoop
from granvit.train.feature_cache import FeatureCache
from granvit.train.stages.adapt import Adapt
from granvit.train.stages.answering import AnsweringStage
from granvit.train.stages.config import StageConfig


@contextmanager
def memory_options(stage: AnsweringStage, config: StageConfig, state: PartialState) -> Iterator[None]:
    """Within, a stage trains as its config's `loop` says under `gradient_checkpointing`, `compile`, `feature_cache`.

    Raises:
        ValueError: features of this stage can't be kept; the message says why.
    """
    loop = config.loop
    parts = {"encoder": stage.tower, "language": stage.model.model.language_model}
    with ExitStack() as context:
        context.enter_context(recomputed([parts[name] for name in loop.gradient_checkpointing]))
        if loop.compile and state.device.type == "cuda":
            context.enter_context(compiled(stage))
        if isinstance(loop, CachingLoop) and loop.feature_cache is not None:
            assert isinstance(stage, Adapt)
            if loop.parallel == "fsdp" and state.num_processes > 1:
                raise GranvitError(f"{config.folder}: loop.feature_cache with fsdp: processes must encode together")
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
