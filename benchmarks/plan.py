"""How near `granvit plan` comes to what a step on this CPU really takes: memory, and time.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/plan.py [--quick] [--language DIR]

Memory: the peak of a step as fake tensors predict it, against the growth of the process (its resident set), which
the allocator rounds up. Time: every operation of the fake step is timed alone, on tensors of its shapes, and the sum is
held against the median of whole steps. Both stages, at nano size; with `--language` also through that language model (a
folder). Every figure comes from a process of its own; of memory and time the median over `--rounds` processes.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from sizes import machine, make_model, make_samples
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from granvit.corpus.synthetic.scenes import sample_texts
from granvit.model.packing import Batch, pack
from granvit.model.region_model import RegionModel
from granvit.train.fake import fake_step, plain_step
from granvit.train.optimizer import make_optimizer
from granvit.train.stages.adapt import Adapt
from granvit.train.stages.base import AnsweringStage
from granvit.train.stages.pretrain import Pretrain


def stage_of(options: argparse.Namespace) -> tuple[AnsweringStage, Batch]:
    texts = sample_texts(500)
    model = make_model("nano", texts, "cpu", options.language)
    crops = 1 if options.stage == "1" else 0
    samples = make_samples(model, texts, options.images, options.regions, options.stage == "2", crops, 64)
    dialog = model.dialog
    batch = pack(samples, dialog.prefix_ids, dialog.image_token, dialog.pad_token)
    return made(model, options.stage), batch


def made(model: RegionModel, stage: str) -> AnsweringStage:
    return (Pretrain(model) if stage == "1" else Adapt(model)).train()


def measured(stage: AnsweringStage, batch: Batch, steps: int, memory: bool) -> dict[str, float]:
    """Median seconds of a step, or how far the process grew beyond what it held before, weights included."""
    optimizer = make_optimizer(stage, 1e-5, 0.0, (0.9, 0.999), {})
    if memory:  # freed blocks go back to the system at once, so that the resident set is what is in use
        ctypes.CDLL(None).mallopt(-3, 65536)  # M_MMAP_THRESHOLD
    before = resident()
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        plain_step(stage, batch, optimizer)
        seconds.append(time.perf_counter() - start)
    if not memory:
        return {"seconds": statistics.median(seconds[1:])}
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    weights = sum(p.nbytes for p in {id(p): p for p in (*stage.parameters(), *stage.buffers())}.values())
    return {"bytes": most - before + weights}


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@dataclass(frozen=True)
class Like:
    """A tensor's shape, strides and type."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Like:
        return cls(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)

    def make(self) -> Tensor:
        """One on the CPU: random numbers, or zeros where they are whole."""
        reach = 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True) if size)
        floats = self.dtype.is_floating_point
        memory = torch.randn(reach).to(self.dtype) if floats else torch.zeros(reach, dtype=self.dtype)
        return memory.as_strided(self.shape, self.strides)


class Operations(TorchDispatchMode):
    """What is called in its context: operation and arguments, `Like` in place of tensors, and how often."""

    def __init__(self) -> None:
        super().__init__()
        self.called: dict[str, tuple[tuple[Any, ...], int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = tree_map_only(Tensor, Like.of, (func, args, kwargs or {}))
        self.called[repr(call)] = call, self.called.get(repr(call), (call, 0))[1] + 1
        return func(*args, **(kwargs or {}))


def predicted(stage: AnsweringStage, batch: Batch) -> dict[str, float]:
    operations = Operations()
    step = fake_step(stage, batch, "cpu", beside=operations)
    return {"bytes": step.peak, "seconds": seconds_of(operations)}


def seconds_of(operations: Operations) -> float:
    """The sum over a step's operations, each timed alone on tensors like its own, once for each shape."""
    total = 0.0
    for (operation, args, kwargs), times in operations.called.values():
        like = tree_map_only(Like, Like.make, (args, {k: v for k, v in kwargs.items() if k != "device"}))
        total += times * best(lambda operation=operation, like=like: operation(*like[0], **like[1]))
    return total


def best(work: Any, rounds: int = 3) -> float:
    """The median of a few runs, after one."""
    work()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def child(*words: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language", help="a folder with a language model")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--regions", type=int, default=6)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--stage", choices=("1", "2"), help=argparse.SUPPRESS)
    parser.add_argument("--arm", choices=("predicted", "memory", "time"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        stage, batch = stage_of(options)
        if options.arm == "predicted":
            found = predicted(stage, batch)
        else:
            found = measured(stage, batch, options.steps, memory=options.arm == "memory")
        print(json.dumps(found))
        return
    steps = 2 if options.quick else options.steps
    print(f"{machine('cpu')}; {options.images} images of {options.regions} regions\n")
    print("| language model, stage | memory predicted | measured | ratio | step predicted | measured | ratio |")
    print("|---|---|---|---|---|---|---|")
    results = []
    for language in [None] + ([options.language] if options.language else []):
        for stage in ("1", "2"):
            words = ["--stage", stage, "--images", str(options.images), "--regions", str(options.regions)]
            words += ["--steps", str(steps), *(["--language", language] if language else [])]
            rounds = [
                (child("--arm", "predicted", *words), child("--arm", "memory", *words) | child("--arm", "time", *words))
                for _ in range(1 if options.quick else options.rounds)
            ]
            said, found = (
                {name: statistics.median(each[side][name] for each in rounds) for name in ("bytes", "seconds")}
                for side in (0, 1)
            )
            ratios = {name: said[name] / found[name] for name in said}
            print(
                f"| {'nano' if language is None else language}, {stage} | {said['bytes'] / 1e6:,.0f} MB "
                f"| {found['bytes'] / 1e6:,.0f} MB | {ratios['bytes']:.2f} | {said['seconds'] * 1e3:,.0f} ms "
                f"| {found['seconds'] * 1e3:,.0f} ms | {ratios['seconds']:.2f} |",
                flush=True,
            )
            results.append(
                {"language": language or "nano", "stage": stage, "predicted": said, "measured": found, **ratios}
            )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
