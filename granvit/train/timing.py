"""Where the time of a training step goes, and how much arithmetic it needs: the two halves of the MFU.

    with section("encode"):
        ...

Outside a run that measures, `section` does nothing. Within one, every boundary between sections is a mark on the
device's own time line (CUDA events, without waiting for the device), so kernels count where they run and not where
they are launched.

Of the arithmetic (FLOPs) matrix products alone are counted, as 2 operations per multiplication and addition, and of
these what the method needs: no padding, only the pairs that the packed attention may look at, no activation computed
twice (docs/diagnostics.md).
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from granvit.model.distill import Teacher
from granvit.model.families import body_of, family_of, patch_of, registers_of
from granvit.model.packing import Batch

if TYPE_CHECKING:
    from granvit.train.stages.base import Stage

# What lies in no section.
OTHER = "other"
# The sections of a step, in the order in which they are reported.
SECTIONS = ("data", "encode", "teacher", "language", "head", "backward", "optimizer", OTHER)


class Clock(Protocol):
    """A time line on which moments are marked, and their distance computed later."""

    def mark(self) -> Any: ...

    def seconds(self, start: Any, end: Any) -> float: ...

    def wait(self, mark: Any) -> None:
        """Returns when the moment has passed, so that distances to it can be computed."""


class HostClock:
    """The processor's own."""

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def wait(self, mark: float) -> None:
        pass


class CudaClock:
    """The current CUDA stream's. A device that waits for data stands still in the section that waits."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return start.elapsed_time(end) / 1000

    def wait(self, mark: torch.cuda.Event) -> None:
        mark.synchronize()


class Timing:
    """Measures the sections of everything that runs within `with timing.running():`, in one thread.

    A section inside another is taken out of it, so the sections' seconds add up to the whole.
    """

    def __init__(self, clock: Clock):
        self.clock = clock
        self._names = [OTHER]
        self._marks: list[tuple[Any, str]] = []  # each with the section that begins there

    @classmethod
    def on(cls, device: torch.device) -> Timing:
        """With the clock that is exact for a device."""
        return cls(CudaClock() if device.type == "cuda" else HostClock())

    @contextmanager
    def running(self) -> Iterator[None]:
        global _current
        before, _current = _current, self
        self._marks = [(self.clock.mark(), OTHER)]
        try:
            yield
        finally:
            _current = before

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        self._names.append(name)
        self._marks.append((self.clock.mark(), name))
        try:
            yield
        finally:
            self._names.pop()
            self._marks.append((self.clock.mark(), self._names[-1]))

    def read(self) -> dict[str, float]:
        """Seconds per section since the last reading. Waits for the device."""
        end = self.clock.mark()
        self.clock.wait(end)
        seconds: dict[str, float] = defaultdict(float)
        ends = [mark for mark, _ in self._marks[1:]] + [end]
        for (start, name), after in zip(self._marks, ends, strict=True):
            seconds[name] += self.clock.seconds(start, after)
        self._marks = [(end, self._names[-1])]
        return dict(seconds)


_current: Timing | None = None
_nothing = nullcontext()


def section(name: str) -> AbstractContextManager[None]:
    """What runs in this context counts as `name`, if a run measures."""
    return _nothing if _current is None else _current.section(name)


# Dense bfloat16 of the tensor cores, from NVIDIA's data sheets; the first name that the device's holds.
_PEAKS = (
    ("H200 NVL", 835e12),
    ("H200", 989e12),
    ("H100 NVL", 835e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("RTX 4090", 165e12),
)


def peak_flops(device: torch.device) -> float | None:
    """What a device can do at best in dense bfloat16, FLOP/s; None for the CPU and for devices not in the table."""
    return None if device.type != "cuda" else peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float | None:
    """`peak_flops` by the device's name, as CUDA tells it."""
    return next((peak for part, peak in _PEAKS if part.lower() in name.lower()), None)


class StepFlops:
    """Counts the arithmetic of a stage's forward and backward pass over a batch, from the shapes of its matrices.

    What trains must be settled: a matrix that trains costs its own gradient, one that a gradient passes through
    costs that of its input.
    """

    def __init__(self, stage: Stage):
        llava: Any = stage.model
        self.tower = llava.model.vision_tower.config
        body, self.family = body_of(llava.model.vision_tower), family_of(self.tower)
        seen = self.family.trained(body)
        self.encoder_trains = any(p.requires_grad for part in seen for p in part.parameters())
        self.per_patch = _cost(_weights(seen, nn.Conv2d), into=False)  # pixels want no gradient
        self.per_image_token = _cost(_weights(seen), into=self.encoder_trains)
        projector = llava.model.multi_modal_projector
        self.per_feature = _cost([projector.linear_1.weight], into=self.encoder_trains)
        self.per_embed = _cost([projector.linear_2.weight], into=True)
        self.per_token = _cost(_weights([llava.model.language_model]), into=True)
        self.per_answer = _cost([llava.lm_head.weight], into=True)
        self.text = llava.config.text_config
        self.teacher = any(isinstance(part, Teacher) for part in stage.children())

    def __call__(self, batch: Batch) -> float:
        """Of the whole step; the optimizer and the teacher's average count nothing."""
        return math.fsum(self.parts(batch).values())

    def parts(self, batch: Batch) -> dict[str, float]:
        """By section of the step (`granvit.train.timing`): "encode", "teacher", "language", "head", "backward"."""
        real = batch.block_ids >= 0
        tokens, answers = int(real.sum()), batch.counts["answer_tokens"]
        pairs = int((batch.position_ids + 1)[real].sum())  # a position sees itself and all before it, siblings apart
        heads = self.text.num_attention_heads
        width = heads * (getattr(self.text, "head_dim", None) or self.text.hidden_size // heads)
        attention = 4.0 * pairs * width * self.text.num_hidden_layers
        parts = {
            "encode": 0.0,
            "teacher": 0.0,
            "language": self.per_token.forward * tokens + attention,
            "head": self.per_answer.forward * answers,
            "backward": self.per_token.backward * tokens + 2 * attention + self.per_answer.backward * answers,
        }
        for name, cost in self.of_pictures(batch).items():
            parts[name] += cost
        return parts

    def of_pictures(self, batch: Batch, projected: bool = True) -> dict[str, float]:
        """The same without the language model: encoder, teacher and, where the features are `projected`, projector."""
        parts = {"encode": 0.0, "teacher": 0.0, "backward": 0.0}
        if batch.pixels is not None:
            images, side = batch.pixels.shape[:2]
            embeds = images * self._embeds(side) * projected
            forward = self.per_feature.forward + self.per_embed.forward
            backward = self.per_feature.backward + self.per_embed.backward
            parts["encode"] = self._encode(images, side) + forward * embeds
            parts["backward"] = self._encode_backward(images, side) + backward * embeds
        if self.teacher and batch.crops is not None:
            parts["teacher"] = self._encode(*batch.crops.shape[:2])
        return parts

    def _sizes(self, side: int) -> tuple[int, int, float]:
        """Patches, tokens and attention's arithmetic of one picture of `side` pixels."""
        patches = (side // patch_of(self.tower)) ** 2
        tokens = patches + registers_of(self.tower) + self.family.class_token
        layers = self.tower.num_hidden_layers + 1 + self.family.layer  # those in front of what is read
        return patches, tokens, 4.0 * tokens**2 * self.tower.hidden_size * layers

    def _embeds(self, side: int) -> int:
        """How many features of one picture of `side` pixels the projector takes."""
        return self._sizes(side)[1] - self.family.class_token

    def _encode(self, images: int, side: int) -> float:
        patches, tokens, attention = self._sizes(side)
        return images * (self.per_patch.forward * patches + self.per_image_token.forward * tokens + attention)

    def _encode_backward(self, images: int, side: int) -> float:
        patches, tokens, attention = self._sizes(side)
        linear = self.per_patch.backward * patches + self.per_image_token.backward * tokens
        return images * (linear + 2 * attention * self.encoder_trains)


@dataclass(frozen=True)
class _Cost:
    """What some matrices cost per row that goes through them."""

    forward: float
    backward: float


def _cost(weights: Iterable[Tensor], into: bool) -> _Cost:
    """`into`: whether the rows want a gradient too."""
    sizes = [(2.0 * weight.numel(), weight.requires_grad + into) for weight in weights]
    return _Cost(sum(size for size, _ in sizes), sum(size * gradients for size, gradients in sizes))


def _weights(modules: Iterable[nn.Module], kind: type[nn.Linear] | type[nn.Conv2d] = nn.Linear) -> list[Tensor]:
    return [m.weight for module in modules for m in module.modules() if isinstance(m, kind)]
