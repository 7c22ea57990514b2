"""How near `granvit plan` comes to what a step on this CPU really takes: memory, and time.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/plan.py [--quick] [--language DIR]

Memory: the peak of a step as it is told by fake tensors, against the growth of the process (its resident set), which
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
from typing import Any

import torch
from sizes import machine, make_model, make_samples
from torch.utils._pytree import tree_map_only

from granvit.corpus.synthetic.scenes import sample_texts
from granvit.model.packing import Batch, pack
from granvit.model.region_model import RegionModel
from granvit.train.fake import FakeStep, Like, fake_step
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


def real(stage: AnsweringStage, batch: Batch, steps: int, memory: bool) -> dict[str, float]:
    """Median seconds of a step, or how far the process grew beyond what it held before, weights included."""
    optimizer = make_optimizer(stage, 1e-5, 0.0, (0.9, 0.999), {})
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    if memory:  # freed blocks go back to the system at once, so that the resident set is what is in use
        ctypes.CDLL(None).mallopt(-3, 65536)  # M_MMAP_THRESHOLD
    before = resident()
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        terms = stage(batch)
        torch.stack([term.weight * term.total.float() for term in terms.values()]).sum().backward()
        del terms
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        stage.after_step()
        seconds.append(time.perf_counter() - start)
    if not memory:
        return {"seconds": statistics.median(seconds[1:])}
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    weights = sum(p.nbytes for p in {id(p): p for p in (*stage.parameters(), *stage.buffers())}.values())
    return {"bytes": most - before + weights}


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def told(stage: AnsweringStage, batch: Batch) -> dict[str, float]:
    step = fake_step(stage, batch, "cpu")
    return {"bytes": step.peak, "seconds": seconds_of(step)}


def seconds_of(step: FakeStep) -> float:
    """The sum over a step's operations, each timed alone on tensors like its own, once for each shape."""
    total = 0.0
    for (operation, args, kwargs), times in step.operations:
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
    parser.add_argument("--arm", choices=("told", "memory", "time"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        stage, batch = stage_of(options)
        memory = options.arm == "memory"
        print(json.dumps(told(stage, batch) if options.arm == "told" else real(stage, batch, options.steps, memory)))
        return
    steps = 2 if options.quick else options.steps
    print(f"{machine('cpu')}; {options.images} images of {options.regions} regions\n")
    print("| language model, stage | memory told | real | ratio | step told | real | ratio |")
    print("|---|---|---|---|---|---|---|")
    results = []
    for language in [None] + ([options.language] if options.language else []):
        for stage in ("1", "2"):
            words = ["--stage", stage, "--images", str(options.images), "--regions", str(options.regions)]
            words += ["--steps", str(steps), *(["--language", language] if language else [])]
            rounds = [
                (child("--arm", "told", *words), child("--arm", "memory", *words) | child("--arm", "time", *words))
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
            results.append({"language": language or "nano", "stage": stage, "told": said, "real": found, **ratios})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
