"""What the loop refuses before it takes a step: whatever would train something else than asked for."""

from __future__ import annotations

from accelerate import Accelerator
from accelerate.utils import DistributedType

from granvit.errors import GranvitError
from granvit.train.config import LoopConfig
from granvit.train.feed import Feed
from granvit.train.stages.base import Stage


def check_feed(accelerator: Accelerator, feed: Feed, config: LoopConfig) -> None:
    """Refuses what the loop can't do together, and a feed that is made for other ranks or batches.

    Raises:
        ValueError: one of these.
    """
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        raise GranvitError(
            f"the loop shards by itself (loop.parallel) and does not run on {accelerator.distributed_type}"
        )
    if (config.parallel, config.optimizer) == ("fsdp", "muon"):
        raise GranvitError(
            "loop.optimizer muon needs whole matrices, which loop.parallel fsdp spreads: choose ddp or adamw"
        )
    there, here = (feed.rank, feed.world_size), (accelerator.process_index, accelerator.num_processes)
    if there != here:
        raise ValueError(f"the feed is made for rank {there[0]} of {there[1]}, this is rank {here[0]} of {here[1]}")
    if feed.batch_size != config.batch_size:
        raise ValueError(f"the feed makes batches of {feed.batch_size}, the config asks for {config.batch_size}")


def check_saved(stage: Stage) -> None:
    """Refuses trainable weights that no checkpoint would hold.

    Raises:
        ValueError: there are some; the message names one.
    """
    saved = {t.data_ptr() for t in (*stage.model.state_dict().values(), *stage.extra_state().values())}
    for name, parameter in stage.named_parameters():
        if parameter.requires_grad and parameter.data_ptr() not in saved:
            raise ValueError(f"{name} trains, but is neither part of stage.model nor of stage.extra_state()")
