"""The repeated blocks of towers and language models: recomputed in the backward pass or compiled, by choice."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

# Activations of a block are kept (False) or computed again from its input when their gradients are (True).
_recompute = partial(checkpoint, use_reentrant=False)


def blocks_of(module: nn.Module) -> list[GradientCheckpointingLayer]:
    """The transformer blocks in a module, in order."""
    return [part for part in module.modules() if isinstance(part, GradientCheckpointingLayer)]


@contextmanager
def recomputed(modules: Collection[nn.Module]) -> Iterator[None]:
    """Within, the blocks of these modules keep only their inputs for the backward pass (activation checkpointing).

    It concerns blocks in training mode alone, which in a stage are all but those of a frozen tower and of a teacher:
    a frozen language model too, since gradients pass through it.

    Raises:
        ValueError: a module has no such blocks.
    """
    found = [blocks_of(module) for module in modules]
    if not all(found):
        raise ValueError("gradient checkpointing: a model without transformer blocks that can be recomputed")
    blocks: list[Any] = [block for each in found for block in each]
    for block in blocks:
        block._gradient_checkpointing_func, block.gradient_checkpointing = _recompute, True
    try:
        yield
    finally:
        for block in blocks:
            block.gradient_checkpointing = False


@contextmanager
def compiled(module: nn.Module, **options: Any) -> Iterator[None]:
    """Within, every block in a module runs compiled by `torch.compile(**options)`; alike blocks share their code."""
    blocks: list[Any] = list(blocks_of(module))
    for block in blocks:
        block.compile(**options)
    try:
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None
