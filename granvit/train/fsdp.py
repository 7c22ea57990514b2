"""Weights, gradients and optimizer state spread over the ranks (FSDP2).

torch's `fully_shard` itself and not Accelerate's plugin: the plugin is not switched on for ranks on the CPU, where
everything here is tested; it wants model and optimizer prepared together, and it knows embeddings and head of a bare
transformers model, not of a stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._pytree import SUPPORTED_NODES

from granvit.train.stages.base import Stage, Term


def shard(stage: Stage, device: torch.device, bf16: bool) -> None:
    """Spreads a stage over all ranks, in place and for good; every rank calls it with the same stage.

    Each transformer block is gathered when it runs and let go after it; embeddings, projector and head stay gathered
    from the forward pass to the end of the backward pass. What is frozen is sharded as well: in stage 1 it is most of
    the model. So is the EMA teacher: it is as large as the tower, and moves towards it piece by piece on each rank,
    without a word between them, where a replicated one would have to gather the whole student at every step.

    With `bf16` blocks compute in bfloat16; the shards that the optimizer sees and the sums over ranks are float32.
    Tensors are those of the first rank, as `DistributedDataParallel` has it.
    """
    if Term not in SUPPORTED_NODES:
        # The root learns from its outputs that backward has begun, and looks for them in known containers only.
        torch.export.register_dataclass(Term)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else MixedPrecisionPolicy()
    for unit in (*_blocks(stage), stage):
        _from_first_rank(unit, device)
        fully_shard(unit, mesh=mesh, mp_policy=policy)


def is_sharded(module: nn.Module) -> bool:
    """Whether a module, or some block in it, has been through `shard`."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The transformer blocks: what the outermost module lists hold."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _blocks(child)


def _from_first_rank(unit: nn.Module, device: torch.device) -> None:
    """Makes what is not sharded yet the same everywhere; unit by unit, so that no device ever holds the whole model."""
    for tensor in (*unit.parameters(), *unit.buffers()):
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.detach().to(device)
            dist.broadcast(tensor.data, 0)


def clip_gradients(parameters: Sequence[Tensor], limit: float) -> Tensor:
    """Scales the gradients to a norm of at most `limit`, taken over all shards; the norm before, as a plain tensor."""
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm


def whole_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors on the first rank, nothing on the others. Every rank calls it.

    Sharded ones are gathered one after the other into main memory, so that a device needs room for the largest alone.
    """
    first = not dist.is_initialized() or dist.get_rank() == 0
    whole: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if first:
            whole[name] = full.cpu() if isinstance(tensor, DTensor) else full
    return whole
