"""Several processes: weights, gradients and optimizer state sharded over the ranks (FSDP2), and ranks started.

torch's `fully_shard` itself and not Accelerate's plugin: the plugin is not switched on for ranks on the CPU, where
everything here is tested; it wants model and optimizer prepared together, and it knows embeddings and head of a bare
transformers model, not of a stage.

`launch` does what `torchrun` does, for a command that starts itself. On a CPU two processes of one thread each train
nearly twice as fast as one process of two threads: small matrices gain little from a second thread.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
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
        # A stage's input is a batch, whose boxes are pixels: bfloat16 would round them to whole pairs of pixels.
        fully_shard(unit, mesh=mesh, mp_policy=replace(policy, cast_forward_inputs=unit is not stage))


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


def processes_for(batch_size: int) -> int:
    """Two where there are two cores to themselves, no GPU, and a batch to halve; otherwise one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 2 if cores >= 2 and batch_size % 2 == 0 and not torch.cuda.is_available() else 1


def launch(work: Callable[..., None], processes: int, reported: tuple[type[Exception], ...], *args: Any) -> None:
    """Call `work(*args)` in so many processes that know each other as ranks; one process is this one.

    `work` and `args` travel to spawned processes. The threads of this process are shared out among them.

    Raises:
        Exception: the first that one of them raised, if it is of the kinds `reported`.
        torch.multiprocessing.ProcessRaisedException: one of them raised another; it carries the traceback.
        SystemExit: one of them left so. KeyboardInterrupt: this process was interrupted, and all of them have ended.
    """
    if processes == 1:
        work(*args)
        return
    errors = mp.get_context("spawn").SimpleQueue()
    threads = max(1, torch.get_num_threads() // processes)
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # that it ends ranks when one has ended
    ranks = mp.spawn(_rank, (processes, _free_port(), threads, reported, errors, work, args), processes, join=False)
    interrupted = False
    try:
        while True:
            try:
                if ranks.join():
                    break
            except KeyboardInterrupt:  # the ranks stop by themselves, and save first
                interrupted = True
                for process in ranks.processes:
                    if process.is_alive():
                        os.kill(process.pid, signal.SIGINT)
        if interrupted:
            raise KeyboardInterrupt
    except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
        if not errors.empty():
            raise errors.get() from None
        if isinstance(error, mp.ProcessExitedException) and error.exit_code > 0:
            raise SystemExit(error.exit_code) from None
        if interrupted:
            raise KeyboardInterrupt from None
        raise


def _rank(
    rank: int,
    processes: int,
    port: int,
    threads: int,
    reported: tuple[type[Exception], ...],
    errors: Any,
    work: Callable[..., None],
    args: tuple[Any, ...],
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(threads),
    }
    torch.set_num_threads(threads)
    try:
        work(*args)
    except reported as error:
        errors.put(error)
        raise SystemExit(1) from error
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
