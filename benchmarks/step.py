"""Where the time of a training step goes, and how much of the machine it uses: stage 1 and stage 2.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/step.py [--quick]
    python benchmarks/step.py --device cuda --size paper --images 8 --regions 8

A step is forward, backward, clipping, AdamW and the teacher's average, on pictures that are there already. The arms

    stage 1                   the encoder learns through the frozen language model; every region's crop for the teacher
      recomputed              the same with activation checkpointing of encoder and language model
      compiled                the same with `torch.compile` per block (GPU)
    stage 2, encoder trains   the baseline: what stage 2 costs where the encoder keeps its graph and learns too
    stage 2                   the encoder is frozen and runs without a graph
      features kept           the same with the encoder's features from a folder (`loop.feature_cache`)

run on one model (benchmarks/sizes.py), each all its steps in turn, in another order each round. The split is that of
`granvit.train.timing`, the arithmetic that of `granvit.train.timing`: only what the method needs, so recomputing adds
none. MFU is the share of the GPU's data sheet; "of matmul" is the share of what one large matrix product reaches on
this machine in the same precision, timed in every round. Memory is the most at any moment: on a GPU what is allocated,
weights included, on the CPU what the tensors made in a step take. Padding is the share of positions without a token.
`compiles` counts graphs made after an arm's first steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from sizes import SIZES, autocast, machine, make_model, make_samples
from torch._dynamo.utils import counters

from granvit.corpus.synthetic.scenes import sample_texts
from granvit.model.attention import fit_attention
from granvit.model.forward import compiled, recomputed
from granvit.model.packing import Batch, pack
from granvit.model.region_model import RegionModel
from granvit.train.fake import Allocated
from granvit.train.feature_cache import FeatureCache
from granvit.train.optimizer import make_optimizer
from granvit.train.stages.adapt import Adapt
from granvit.train.stages.base import AnsweringStage
from granvit.train.stages.finetune import Finetune
from granvit.train.stages.pretrain import Pretrain
from granvit.train.timing import SECTIONS, HostClock, Timing, peak_flops, section

FIRST, RECOMPUTED, COMPILED = "stage 1", "stage 1, recomputed", "stage 1, compiled"
WHOLE, SECOND, KEPT = "stage 2, encoder trains", "stage 2", "stage 2, features kept"


class Arm:
    """A stage with its optimizer and batches, ready to take steps."""

    def __init__(self, name: str, model: RegionModel, batches: list[Batch], folder: Path, device: str):
        self.batches, self.device = batches, device
        self.stage = _stage(name, model).to(device).train()
        self.choices = _choices(name, self.stage, folder)
        self.optimizer = make_optimizer(self.stage, 1e-5, 0.0, (0.9, 0.999), {})
        self.flops = statistics.fmean(self.stage.step_flops(batch) for batch in batches)

    def run(self, steps: int, timing: Timing) -> None:
        """Steps, one batch after the other."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        with timing.running():
            for step in range(steps):
                batch = self.batches[step % len(self.batches)]
                counts = batch.counts
                with autocast(self.device):
                    terms = self.stage(batch)
                loss = torch.stack([t.weight * t.total / max(1, counts[t.count]) for t in terms.values()]).sum()
                with section("backward"):
                    loss.backward()
                with section("optimizer"):
                    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                    self.stage.after_step()

    def free(self) -> None:
        """Gives back what only this arm needs."""
        self.choices.close()
        del self.stage, self.optimizer


def _choices(name: str, stage: AnsweringStage, folder: Path) -> ExitStack:
    """What makes an arm another one than its stage, until it is closed."""
    stack = ExitStack()
    if name == RECOMPUTED:
        stack.enter_context(recomputed([stage.tower, stage.model.model.language_model]))
    if name == COMPILED:
        stack.enter_context(compiled(stage))
    if name == KEPT:
        assert isinstance(stage, Adapt)
        stage.cache = stack.enter_context(FeatureCache(folder, stage.region_model))
    return stack


def _stage(name: str, model: RegionModel) -> AnsweringStage:
    if name in (SECOND, KEPT):
        return Adapt(model)
    return Finetune(model, train_encoder=True) if name == WHOLE else Pretrain(model)


def make_batches(model: RegionModel, texts: list[str], options: argparse.Namespace, second: bool) -> list[Batch]:
    """Two batches of unlike lengths, images sharing rows of `--max-tokens`."""
    dialog = model.dialog
    batches = []
    for regions in (options.regions, max(1, options.regions - 1)):
        crops = 0 if second else min(options.crops, regions)
        samples = make_samples(model, texts, options.images, regions, second, crops, options.crop_size or model.canvas)
        packed = pack(samples, dialog.prefix_ids, dialog.image_token, dialog.pad_token, options.max_tokens)
        batches.append(packed.to(options.device))
    return batches


def matmul_speed(device: str) -> float:
    """What one large matrix product reaches in the precision of training, FLOP/s."""
    side, dtype = (8192, torch.bfloat16) if device == "cuda" else (1024, torch.float32)
    a = torch.randn(side, side, device=device, dtype=dtype)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    best = 0.0
    for _ in range(4):
        wait()
        start = time.perf_counter()
        a @ a
        wait()
        best = max(best, 2 * side**3 / (time.perf_counter() - start))
    return best


def orders(names: list[str], rounds: int) -> Iterator[list[str]]:
    for at in range(rounds):
        yield names[at % len(names) :] + names[: at % len(names)]


def measure(options: argparse.Namespace, folder: Path) -> None:
    device = options.device
    texts = sample_texts(500)
    model = make_model(options.size, texts, device)
    timing = Timing.on(torch.device(device))
    names = [FIRST, RECOMPUTED, *([COMPILED] if device == "cuda" else []), WHOLE, SECOND, KEPT]
    batches = {second: make_batches(model, texts, options, second) for second in (False, True)}
    seconds: dict[str, list[float]] = defaultdict(list)
    speeds: dict[str, list[float]] = defaultdict(list)  # as a share of a matrix product
    splits: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    memory: dict[str, float] = {}
    compiles: dict[str, int] = defaultdict(int)
    flops: dict[str, float] = {}
    for order in orders(names, options.rounds):
        bare = matmul_speed(device)
        for name in order:
            # A folder of its own each time: arms that train the encoder leave it another one.
            kept = Path(tempfile.mkdtemp(dir=folder))
            arm = Arm(name, model, batches[name in (WHOLE, SECOND, KEPT)], kept, device)
            flops[name] = arm.flops
            arm.run(len(arm.batches), timing)  # warms up: kernels, shapes, the folder of features
            timing.read()
            graphs = counters["stats"]["unique_graphs"]
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            arm.run(options.steps, timing)
            split = timing.read()
            took = sum(split.values()) / options.steps
            seconds[name].append(took)
            speeds[name].append(arm.flops / took / bare)
            for part, value in split.items():
                splits[name][part] += value
            compiles[name] += counters["stats"]["unique_graphs"] - graphs
            if device == "cuda":
                memory[name] = max(memory.get(name, 0.0), torch.cuda.max_memory_allocated() / 2**30)
            elif name not in memory:
                with Allocated("cpu") as allocated:
                    arm.run(1, Timing(HostClock()))
                memory[name] = allocated.peak / 2**30
            arm.free()
    report(options, model, batches, names, seconds, speeds, splits, memory, compiles, flops)


def report(
    options: argparse.Namespace,
    model: RegionModel,
    batches: dict[bool, list[Batch]],
    names: list[str],
    seconds: dict[str, list[float]],
    speeds: dict[str, list[float]],
    splits: dict[str, dict[str, float]],
    memory: dict[str, float],
    compiles: dict[str, int],
    flops: dict[str, float],
) -> None:
    peak = peak_flops(torch.device(options.device))
    print(f"{machine(options.device)}, {options.size}, {options.images} images of {options.regions} regions per step")
    padding = {}
    for second, name in ((False, FIRST), (True, SECOND)):
        fitted = [fit_attention(model.llava.model.language_model, batch)[0] for batch in batches[second]]
        padding[name] = statistics.fmean(batch.padding for batch in fitted)
        rows = " and ".join(f"{len(b.input_ids)} x {b.input_ids.shape[1]}" for b in fitted)
        print(f"{name}: rows of {rows} positions, {padding[name]:.1%} padding")
    shown = [part for part in SECTIONS if part not in ("data",)]
    head = f"{'':24}{'ms/step':>9}{'regions/s':>11}{'TFLOP':>8}{'of matmul':>11}{'MFU':>7}{'GiB':>7}{'compiles':>10}  "
    print(head + " ".join(f"{part:>9}" for part in shown))
    facts: dict[str, Any] = {}
    for name in names:
        took = statistics.median(seconds[name])
        branches = statistics.fmean(b.counts["branches"] for b in batches[name in (WHOLE, SECOND, KEPT)])
        share = statistics.median(speeds[name])
        mfu = flops[name] / took / peak if peak else None
        total = sum(splits[name].values())
        parts = {part: splits[name].get(part, 0.0) / total for part in shown}
        row = f"{name:24}{1000 * took:9.1f}{branches / took:11.1f}{flops[name] / 1e12:8.3f}{share:11.1%}"
        row += f"{f'{mfu:.1%}' if mfu else '-':>7}{memory[name]:7.3f}{compiles[name]:10}  "
        print(row + " ".join(f"{value:9.1%}" for value in parts.values()))
        facts[name] = {
            "ms": round(1000 * took, 2),
            "regions_per_second": round(branches / took, 2),
            "of_matmul": round(share, 4),
            "mfu": None if mfu is None else round(mfu, 4),
            "gib": round(memory[name], 3),
            "compiles": compiles[name],
            "split": {part: round(value, 4) for part, value in parts.items()},
        }
    ratio = statistics.median(w / s for w, s in zip(seconds[WHOLE], seconds[SECOND], strict=True))
    kept = statistics.median(s / k for s, k in zip(seconds[SECOND], seconds[KEPT], strict=True))
    print(f"stage 2 is {ratio:.2f}x as fast as with an encoder that trains, {kept:.2f}x more with its features kept")
    settings = {name: getattr(options, name) for name in ("size", "device", "images", "regions", "crops", "max_tokens")}
    ratios = {"frozen_speedup": round(ratio, 3), "features_kept_speedup": round(kept, 3)}
    head_facts = {"benchmark": "step", **settings, "padding": padding, **ratios}
    print(json.dumps({**head_facts, "arms": facts}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=SIZES, default="nano")
    parser.add_argument("--images", type=int, default=8, help="images per step")
    parser.add_argument("--regions", type=int, default=8, help="regions per image")
    parser.add_argument("--crops", type=int, help="crops per image for the teacher; nano: 1, paper: all regions")
    parser.add_argument("--crop-size", type=int, help="their side in pixels: 64 at nano size, else the canvas's")
    parser.add_argument("--max-tokens", type=int, help="of a row: 4096, at nano size one image per row")
    parser.add_argument("--steps", type=int, default=6, help="steps per arm and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two images, one round of two steps")
    options = parser.parse_args()
    nano = options.size == "nano"
    options.crops = options.crops if options.crops is not None else (1 if nano else options.regions)
    options.crop_size = options.crop_size or (64 if nano else 0)
    options.max_tokens = options.max_tokens or (None if nano else 4096)
    if options.quick:
        options.images, options.steps, options.rounds = 2, 2, 1
    with tempfile.TemporaryDirectory() as folder:
        measure(options, Path(folder))


if __name__ == "__main__":
    main()
