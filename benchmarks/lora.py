"""LoRA against all of the language model in stage 2: what trains, memory, speed, and how well it finds.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/lora.py [--rank 16] [--language DIR] [--timed 12] [--quick]
    OMP_WAIT_POLICY=PASSIVE python benchmarks/lora.py --steps 320 [--init RUN] [--rates 2e-3 5e-3]

The cost: steps on random pictures by turns, all arms on the same batch, the ratio being that of paired steps. Memory is
the most that tensors hold at any moment of a step on this device, weights, gradients and AdamW's moments included; it
is counted, so it is the same on every machine. Then what the adapters learned is merged, and its logits are compared.
`--language` takes the folder of another language model than the shipped one, such as SmolLM2.

With `--steps` the arms learn the demo's stage 2, from the model of a run (`--init`) or else from the shipped parts,
whose encoder has seen no stage 1: the same pictures and questions in the same order, with the demo's settings, the
adapters at each of `--rates`. The encoder is frozen, so its features are computed once for all arms. Then phrases are
located on the demo's held-out pictures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sizes import machine, make_model, make_samples, train_step
from torch import Tensor

from granvit.corpus.synthetic.scenes import layout
from granvit.evaluate.region_tasks import evaluate
from granvit.loading.run_folder import checkpoint_of
from granvit.model.forward import answer_logits, encode, project
from granvit.model.packing import Batch, pack
from granvit.model.region_model import RegionModel
from granvit.nano.recipes import nano
from granvit.predict import GranViT
from granvit.train.build import build_model, embedded_corpora
from granvit.train.config import Lora
from granvit.train.fake import Allocated
from granvit.train.lora import Base, save_adapter, trained_names
from granvit.train.optimizer import make_optimizer, make_schedule
from granvit.train.prepare import Prepare
from granvit.train.stages.config import AdaptConfig


def texts() -> list[str]:
    return [region.text for n in range(60) for region in layout(3, n, 160, documents=0).record.regions]


class Arm:
    """A stage 2 that learns, all of the language model or by adapters."""

    def __init__(self, model: RegionModel, lora: Lora, rate: float, steps: int, smoothing: float):
        config = nano().stages[1]
        assert isinstance(config, AdaptConfig)
        loop = config.loop
        self.stage = replace(config, lora=lora, smoothing=smoothing).build(model).train()
        self.model = model
        self.optimizer = make_optimizer(self.stage, rate, loop.weight_decay, loop.betas, {})
        self.schedule = make_schedule(self.optimizer, max(1, steps), min(loop.warmup_steps, steps), loop.min_lr_ratio)
        self.trained = sum(p.numel() for p in self.stage.parameters() if p.requires_grad)
        self.losses: list[float] = []

    def step(self, batch: Batch) -> float:
        """Seconds that it took."""
        start = time.perf_counter()
        self.losses.append(train_step(self.stage, batch, self.optimizer, self.schedule))
        return time.perf_counter() - start

    def peak(self, batch: Batch) -> int:
        """Bytes of all tensors at the fullest moment of a step that has AdamW's moments from its beginning."""
        allocated = Allocated("cpu")
        moments = [t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
        allocated.take(self.stage.parameters(), self.stage.buffers(), moments)
        with allocated:
            self.step(batch)
        return allocated.peak


@torch.no_grad()
def logits(model: RegionModel, batch: Batch) -> Tensor:
    assert batch.pixels is not None
    model.llava.eval()
    pixels = model.normalise(batch.pixels).to(model.llava.dtype)
    return answer_logits(model.llava, batch, project(model.llava, encode(model.llava.model.vision_tower, pixels)))[0]


def merged(arm: Arm, lora: Lora, base: Path) -> RegionModel:
    """What the arm has learned as a run would leave it, opened again."""
    state, folder = arm.model.llava.state_dict(), base.parent / "adapter"
    weights = {name: state[name] for name in trained_names(arm.model.llava)}
    save_adapter(folder, folder, arm.model, weights, lora, Base.of(base))
    return RegionModel.load(folder)


def cost(chosen: argparse.Namespace, folder: str) -> None:
    said = texts()
    lora = Lora(chosen.rank)

    def arm(lora: Lora) -> Arm:
        model = build_model(nano()) if chosen.language is None else make_model("nano", said, "cpu", chosen.language)
        return Arm(model, lora, 1e-3, chosen.timed, 0.0)

    base = Path(folder) / "base"
    if chosen.language is None:
        build_model(nano()).save(base)
    arms = {"full": arm(Lora()), f"rank {chosen.rank}": arm(lora)}
    model = next(iter(arms.values())).model
    samples = make_samples(model, said, chosen.batch, 4, locate=True)
    batch = pack(samples, model.dialog.prefix_ids, model.dialog.image_token, model.dialog.pad_token)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for n in range(-2, chosen.timed):  # two to warm up
        for name in list(arms)[:: 1 if n % 2 else -1]:
            took = arms[name].step(batch)
            seconds[name] += [took] if n >= 0 else []
    peaks = {name: arm.peak(batch) for name, arm in arms.items()}
    full, low = arms
    paired = [f / a for f, a in zip(seconds[full], seconds[low], strict=True)]
    tokens = batch.counts["tokens"] // chosen.batch
    print(f"{machine('cpu')}; {chosen.batch} pictures a step, 4 regions of each, {tokens} tokens a picture")
    print(f"{'':12}{'train':>14}{'peak, MB':>12}{'ms a step':>12}")
    for name, each in arms.items():
        took = statistics.median(seconds[name])
        print(f"{name:12}{each.trained:14,}{peaks[name] / 1e6:12.1f}{1e3 * took:12.0f}")
    speed = f"{statistics.median(paired):.2f} ({min(paired):.2f}-{max(paired):.2f})"
    print(f"{low}: {speed} times the speed (paired steps), {peaks[low] / peaks[full]:.2f} of the memory")
    if chosen.language is None:
        apart, whole = (logits(m, batch) for m in (arms[low].model, merged(arms[low], lora, base)))
        arms[low].model.llava.double()
        exact = logits(arms[low].model, batch)
        off, *rounded = (float((a - b).abs().max()) for a, b in ((apart, whole), (apart, exact), (whole, exact)))
        print(
            f"merged and apart: logits up to {float(apart.abs().max()):.1f} differ by {off:.1e}; "
            f"from float64 apart {rounded[0]:.1e}, merged {rounded[1]:.1e}"
        )


class Shared:
    """In the place of a cache: the features of one batch, which all arms take in turn."""

    features_of: Any = None

    def features(self, pixels: Any, digests: Any) -> Any:
        return self.features_of


def finding(chosen: argparse.Namespace) -> None:
    recipe = nano()
    config = recipe.stages[1]
    assert isinstance(config, AdaptConfig)
    train, held_out = embedded_corpora(recipe.corpus)

    def start() -> RegionModel:
        return build_model(recipe) if chosen.init is None else RegionModel.load(checkpoint_of(chosen.init))

    arms = {"full": Arm(start(), Lora(), config.loop.lr, chosen.steps, config.smoothing)}
    for rate in chosen.rates:
        name = f"rank {chosen.rank} at {rate:g}"
        arms[name] = Arm(start(), Lora(chosen.rank), rate, chosen.steps, config.smoothing)
    shared, first = Shared(), next(iter(arms.values())).model
    for arm in arms.values():
        arm.stage.cache = shared  # type: ignore[attr-defined]
    prepare = Prepare(first, config.sample)
    order = np.random.default_rng(0).permutation(len(train))
    for step in range(chosen.steps):
        rng = np.random.default_rng((1, step))
        picked = [order[(step * chosen.batch + i) % len(order)] for i in range(chosen.batch)]
        batch = prepare.collate([prepare(train[int(i)], rng) for i in picked])
        with torch.no_grad():
            shared.features_of = first.features(batch.pixels)
        for arm in arms.values():
            arm.step(batch)
        if (step + 1) % 20 == 0:
            recent = {name: round(statistics.mean(arm.losses[-20:]), 3) for name, arm in arms.items()}
            print(f"step {step + 1}: {recent}", flush=True)
    tasks = ["locate"]
    for name, arm in arms.items():
        arm.model.llava.eval()
        report = evaluate(GranViT(arm.model), list(held_out)[: chosen.limit], tasks, progress=False)
        low, high = report.intervals["locate"]["acc50"]
        locate, constant = report.scores["locate"], report.baseline["locate"]
        print(
            f"{name}: {arm.trained:,} train; locate Acc@0.5 {locate['acc50']:.1%} [{low:.1%}, {high:.1%}], "
            f"mean IoU {locate['miou']:.1%} (best constant answer {constant['acc50']:.1%}, {constant['miou']:.1%}), "
            f"answers that are a box {locate['parse_rate']:.1%}; "
            f"loss of the last steps {statistics.mean(arm.losses[-20:]):.3f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--timed", type=int, default=12)
    parser.add_argument("--language", help="a language model's folder, for the cost")
    parser.add_argument("--steps", type=int, default=0, help="of the demo's stage 2; 0 measures the cost alone")
    parser.add_argument("--init", type=Path, help="a run or checkpoint that stage 2 begins with")
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-3, 5e-3], help="of the adapters")
    parser.add_argument("--limit", type=int, default=200, help="held-out pictures")
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.batch, chosen.timed, chosen.steps = 4, 2, 0
    torch.set_num_threads(1)
    if chosen.steps:
        finding(chosen)
    else:
        with tempfile.TemporaryDirectory() as folder:
            cost(chosen, folder)
    print(json.dumps({"benchmark": "lora", **{name: str(value) for name, value in vars(chosen).items()}}))


if __name__ == "__main__":
    main()
