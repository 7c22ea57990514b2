"""A training step on a device that computes nothing: its shapes, types, devices and memory, without that device.

torch's fake tensors know what every operation would give and where it would lie. What depends on values (how long the
questions are, which positions are answers) is read from the batch on the CPU, as it is in a run on a GPU. So a step of
a model of billions of parameters is gone through in seconds, and a tensor that is made on another device, or of another
type, fails here as it would there.

The device stands in for a GPU under a name of its own: a build of torch without CUDA has no device guard for "cuda".
Of FlexAttention, which wants a real GPU, the arguments are checked and the memory is accounted for.

A stage that is spread over many ranks is gone through as the first of them, by FSDP2 itself: the others are not there
either, and what would be sent to them is not sent.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, Self
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._higher_order_ops.flex_attention import flex_attention as flex_operator
from torch._higher_order_ops.flex_attention import flex_attention_backward
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.distributed.tensor import DTensor
from torch.nn.attention.flex_attention import BlockMask
from torch.optim import Optimizer
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from granvit.model import attention, distill
from granvit.model.packing import Batch
from granvit.train import parallel
from granvit.train.optimizer import make_optimizer
from granvit.train.stages.base import Stage

# Allocators hand out whole blocks of so many bytes.
_BLOCK = 512
# The stand-in's name: letters alone, as a mesh of ranks wants it.
_STAND_IN = "granvitgpu"
# Operations that autocast computes in bfloat16.
_LOWERED = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "conv2d", "conv2d.padding")


@dataclass(frozen=True)
class FakeStep:
    """What a step takes on its device; memory in bytes.

    Attributes:
        weights: parameters and buffers, a teacher's included.
        between: what is allocated between steps: weights, batch, and what the optimizer keeps.
        peak: the most that is allocated at any moment of a step.
    """

    weights: int
    between: int
    peak: int


def fake_step(
    stage: Stage,
    batch: Batch,
    device: str = "gpu",
    bf16: bool = False,
    steps: int = 2,
    beside: AbstractContextManager[object] | None = None,
) -> FakeStep:
    """Goes through so many optimizer steps (AdamW) of `stage` on `batch`, forward and backward, computing nothing.

    Args:
        stage: of a model on any device, "meta" included. Its weights are replaced by fake ones.
        batch: on the CPU.
        device: "gpu" for one that need not be there, or "cpu".
        bf16: under autocast, as runs train on a GPU.
        steps: the second has the optimizer's state from its beginning.
        beside: a dispatch mode that is to see the operations of the last step too.

    Raises:
        RuntimeError: an operation was given tensors of several devices, or of types that do not go together.
    """
    target, autocast = device_of(device, bf16)
    with faked(stage, target) as fake_batch:
        packed = fake_batch(batch)
        optimizer = make_optimizer(stage, 1e-5, 0.0, (0.9, 0.999), {})
        for group in optimizer.param_groups:
            group["fused"], group["foreach"] = False, True  # fused kernels exist for devices that torch knows
        allocated = Allocated(target)
        allocated.take(stage.parameters(), stage.buffers())
        weights = allocated.now
        allocated.take(tensors_of(packed).values())
        for step in range(steps):
            seen = beside if beside is not None and step == steps - 1 else nullcontext()
            with allocated, seen:
                plain_step(stage, packed, optimizer, autocast)
    return FakeStep(weights, allocated.now, allocated.peak)


def fake_passes(
    stage: Stage,
    batches: Sequence[Batch],
    device: str = "gpu",
    bf16: bool = False,
    ranks: int = 1,
    accumulated: bool = False,
) -> list[int]:
    """The most bytes that a rank holds at any moment of a forward and backward pass on each of the batches.

    Weights and gradients are in it, an optimizer's state is not. The arguments that `fake_step` has are as there.

    Args:
        ranks: so many share the stage (`granvit.train.parallel.shard`), which remains in shards.
        accumulated: there are gradients from the beginning.

    Raises:
        ValueError: `ranks` are wanted, and this process is one of a group already.
    """
    target, autocast = device_of(device, bf16)
    peaks = []
    with faked(stage, target) as fake_batch, grouped(ranks, target) if ranks > 1 else nullcontext():
        if ranks > 1:
            parallel.shard(stage, target, bf16)
        allocated = Allocated(target)
        allocated.take(stage.parameters(), stage.buffers())
        trained = [parameter for parameter in stage.parameters() if parameter.requires_grad]
        for batch in batches:
            packed = fake_batch(batch)
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter) if accumulated else None
            allocated.take(tensors_of(packed).values(), [p.grad for p in trained if p.grad is not None])
            allocated.peak = allocated.now
            with allocated:
                backward(stage, packed, autocast)
            peaks.append(allocated.peak)
    return peaks


@contextmanager
def grouped(ranks: int, device: torch.device) -> Iterator[None]:
    """Within, this process is the first of so many ranks, and what it sends them, or awaits of them, is nothing.

    Raises:
        ValueError: it is one of a group already.
    """
    import torch.distributed._tools.fake_collectives  # noqa: F401 - what collectives give for fake tensors
    from torch.testing._internal.distributed.fake_pg import FakeStore, _create_fake_pg

    name = "fake" if device.type == "cpu" else f"fake_{device.type}"
    if not hasattr(dist.Backend, name.upper()):  # torch's own is for the devices that it knows
        dist.Backend.register_backend(name, _create_fake_pg, extended_api=True, devices=[device.type])
    dist.init_process_group(name, store=FakeStore(), rank=0, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


def device_of(device: str, bf16: bool) -> tuple[torch.device, AbstractContextManager[object]]:
    """A device by its name, "gpu" for one that need not be there, and the autocast that runs there are under."""
    target = torch.device(_stand_in() if device == "gpu" else device)
    return target, torch.autocast(target.type, torch.bfloat16) if bf16 else nullcontext()


@contextmanager
def faked(stage: nn.Module, device: torch.device) -> Iterator[Callable[[Batch], Batch]]:
    """Within, all tensors are fake: the stage's weights, which remain so, and batches as the yielded function gives.

    That function takes a batch on the CPU.
    """
    mode = FakeTensorMode()

    def fake_batch(batch: Batch) -> Batch:
        tensors: dict[str, Any] = {name: _like(each, device) for name, each in tensors_of(batch).items()}
        return replace(batch, **tensors, host=batch)

    with mode, _values_from_cpu(mode):
        _replace_weights(stage, device)
        yield fake_batch


def tensors_of(made_of: Batch | attention.Branches) -> dict[str, Tensor]:
    """The tensors among the fields."""
    made = {f.name: getattr(made_of, f.name) for f in fields(made_of)}
    return {name: value for name, value in made.items() if isinstance(value, Tensor)}


def plain_step(
    stage: Stage, batch: Batch, optimizer: Optimizer, autocast: AbstractContextManager[object] | None = None
) -> None:
    """A step as the loop takes it, without the loop: forward, backward, clipping, optimizer, `after_step`."""
    backward(stage, batch, autocast)
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0, foreach=True)
    optimizer.step()
    optimizer.zero_grad()
    stage.after_step()


def backward(stage: nn.Module, batch: Batch, autocast: AbstractContextManager[object] | None) -> None:
    """A forward and backward pass of a stage, or of what is wrapped around it."""
    with autocast or nullcontext():
        terms = stage(batch)
    torch.stack([term.weight * term.total.float() for term in terms.values()]).sum().backward()


def _like(tensor: Tensor, device: torch.device) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)


def _replace_weights(stage: nn.Module, device: torch.device) -> None:
    """Fake ones on `device`; those that were one stay one."""
    new: dict[int, Tensor] = {}
    for module in stage.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in new:
                    new[id(parameter)] = nn.Parameter(_like(parameter, device), parameter.requires_grad)
                module._parameters[name] = new[id(parameter)]  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = new.setdefault(id(buffer), _like(buffer, device))


class Allocated(TorchDispatchMode):
    """Counts the bytes of all storages on a device that operations make in its context, while they live.

    Of a tensor in shards it is the shard that counts. FSDP lets go of a gathered block by shrinking its storage.

    Attributes:
        now, peak: at this moment, and the most at any.
    """

    def __init__(self, device: torch.device | str):
        super().__init__()
        self.device, self.now, self.peak = torch.device(device).type, 0, 0
        self._sizes: dict[int, int] = {}
        self._patch = ExitStack()

    def take(self, *made: Any) -> None:
        """Counts tensors, in any collections, that were made before."""
        for tensor in tree_leaves([list(each) if not isinstance(each, Tensor) else each for each in made]):
            if isinstance(tensor, Tensor) and tensor.device.type == self.device:
                storage = (tensor._local_tensor if isinstance(tensor, DTensor) else tensor).untyped_storage()
                if storage._cdata not in self._sizes:
                    self._sizes[storage._cdata] = 0
                    self._measure(storage)
                    weakref.finalize(storage, self._freed, storage._cdata)

    def _measure(self, storage: torch.UntypedStorage) -> None:
        """Counts a known storage as large as it is now."""
        size = -(-storage.nbytes() // _BLOCK) * _BLOCK
        self.now += size - self._sizes[storage._cdata]
        self._sizes[storage._cdata] = size
        self.peak = max(self.peak, self.now)

    def _freed(self, storage: int) -> None:
        self.now -= self._sizes.pop(storage)

    def __enter__(self) -> Self:
        resize = torch.UntypedStorage.resize_

        def resized(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
            resize(storage, size)
            if storage._cdata in self._sizes:
                self._measure(storage)
            return storage

        self._patch.enter_context(patch.object(torch.UntypedStorage, "resize_", resized))  # no operation tells of it
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patch.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # comes again, as what is done to the shards
        result = func(*args, **(kwargs or {}))
        self.take(tree_leaves(result))
        return result


# --- what is known without the device -------------------------------------------------------------------------------


@contextmanager
def _values_from_cpu(mode: FakeTensorMode) -> Iterator[None]:
    """Within, what a run reads from the batch on the CPU is read there for real, and FlexAttention is accounted for."""

    def real(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            with unset_fake_temporarily():
                result = function(*args)
            return _faked(mode, result)

        return run

    positions = Batch.answer_positions
    with (
        patch.object(Batch, "image_positions", property(lambda batch: real(_image_positions)(batch.on_host))),
        patch.object(
            Batch,
            "answer_positions",
            lambda batch: tuple(p.to(batch.labels.device) for p in real(positions)(batch.on_host)),
        ),
        patch.object(distill, "_pooling_weights", real(distill._pooling_weights)),
        patch.object(parallel, "init_device_mesh", real(parallel.init_device_mesh)),
        patch.object(attention.Branches, "of", lambda batch: real(_branches)(batch.on_host)),
        patch.object(attention, "_compiled", lambda: _flex_attention),
        patch("torch.nn.attention.flex_attention._validate_device", lambda *_: None),  # knows a few by name
    ):
        yield


def _image_positions(batch: Batch) -> int:
    return int(batch.is_image.sum())


_branches = attention.Branches.of


def _faked(mode: FakeTensorMode, result: Any) -> Any:
    if isinstance(result, attention.Branches):
        faked: dict[str, Any] = {name: mode.from_tensor(each) for name, each in tensors_of(result).items()}
        return replace(result, **faked)
    return tree_map_only(Tensor, mode.from_tensor, result)


def _flex_attention(
    query: Tensor, key: Tensor, value: Tensor, block_mask: BlockMask, scale: float | None, enable_gqa: bool
) -> Tensor:
    """What the compiled kernel refuses is refused; what it keeps for the backward pass is kept."""
    mask = block_mask
    listed = (mask.kv_num_blocks, mask.kv_indices, mask.full_kv_num_blocks, mask.full_kv_indices)
    devices = {tensor.device for tensor in (query, key, value, *listed) if tensor is not None}
    if len(devices) > 1:
        raise RuntimeError(f"attention was given tensors on several devices: {devices}")
    if not query.dtype == key.dtype == value.dtype:
        raise RuntimeError(f"attention was given queries, keys, values in {query.dtype}, {key.dtype}, {value.dtype}")
    index = torch.arange(query.shape[2], device=query.device)
    mask.mask_mod(index[:1], index[:1], index[:1], index[:1])
    result: Tensor = _Kernel.apply(query, key, value)
    return result


class _Kernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output, sums = torch.empty_like(query), torch.empty_like(query[..., 0], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


# --- the stand-in ---------------------------------------------------------------------------------------------------


@cache
def _stand_in() -> str:
    """The name of a device that has what autograd and autocast want of one, and no memory. Once for a process."""
    backend_registration._setup_privateuseone_for_python_backend(_STAND_IN, _StandIn())
    libraries = (torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL"))
    libraries[0].fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for operator in (flex_operator, flex_attention_backward):  # inside compiled blocks
        operator.py_impl(torch._C._dispatch_key_parse("AutocastPrivateUse1"))(_outside_autocast(operator))
    for name in _LOWERED:
        operation, _, overload = name.partition(".")
        found = getattr(getattr(torch.ops.aten, operation), overload or "default")
        libraries[1].impl(name, _in_bfloat16(found), "AutocastPrivateUse1")
    _KEPT.extend(libraries)  # what is registered ends with its library
    return _STAND_IN


_KEPT: list[torch.library.Library] = []


def _outside_autocast(operation: Any) -> Callable[..., Any]:
    autocast = torch._C.DispatchKeySet(torch._C._dispatch_key_parse("AutocastPrivateUse1"))

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(autocast):
            return operation(*args, **kwargs)

    return run


def _in_bfloat16(operation: Any) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        lower = [a.to(torch.bfloat16) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
        return operation(*lower, **kwargs)

    return _outside_autocast(run)


class _StandIn(backend_registration._DummyBackendModule):
    """What torch asks of a device's module."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    # One after the other, as on a CPU: what waits for what is no matter here.
    Stream, Event, stream, current_stream = (
        staticmethod(each) for each in (torch.cpu.Stream, torch.cpu.Event, torch.cpu.stream, torch.cpu.current_stream)
    )

    def set_device(self, device: Any) -> None:
        pass
