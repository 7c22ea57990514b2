"""Muon against AdamW where a small language model learns to read from nothing: its loss after as many steps.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/optimizers.py [--steps 300] [--batch 16] [--seeds 1] [--quick]

A language model of the nano size, from random weights, learns to say what a box of a symbolic image holds
(`LanguageWarmup`, the first stage of `granvit train nano-language`). Both arms start from the same weights and see the
same images in the same order, each at the best of `RATES`, found in a quarter of the steps. The score is the mean
loss of the last tenth of the steps, all of them images never seen before; the seconds are those of a whole step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Literal

import numpy as np
import torch
from sizes import machine

from granvit.corpus.synthetic.synthesize import LazySynthetic
from granvit.model.packing import Batch
from granvit.nano.recipes import nano_language
from granvit.train.build import build_model
from granvit.train.optimizer import make_optimizer, make_schedule
from granvit.train.prepare import Prepare

Arm = Literal["adamw", "muon"]
ARMS: tuple[Arm, ...] = ("adamw", "muon")
RATES = (1e-3, 2e-3, 4e-3, 8e-3)


def batches(steps: int, size: int) -> list[Batch]:
    recipe = nano_language()
    prepare = Prepare(build_model(recipe), recipe.stages[0].sample)
    images, rng = LazySynthetic(steps * size, 11, 160, 0.15), np.random.default_rng(0)
    return [prepare.collate([prepare(images[step * size + i], rng) for i in range(size)]) for step in range(steps)]


def trained(arm: Arm, rate: float, seed: int, data: list[Batch]) -> tuple[float, float]:
    """The loss of the last tenth of the steps, nats per token, and seconds a step."""
    recipe = nano_language()
    recipe.seed = seed
    first = recipe.stages[0]
    stage = first.build(build_model(recipe)).train()
    optimizer = make_optimizer(stage, rate, first.loop.weight_decay, first.loop.betas, {}, arm)
    schedule = make_schedule(optimizer, len(data), max(1, len(data) // 10), 0.02)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    losses = []
    start = time.perf_counter()
    for batch in data:
        with torch.autocast("cpu", torch.bfloat16):
            (term,) = stage(batch).values()
        loss = term.total / batch.counts[term.count]
        loss.backward()
        losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return statistics.mean(losses[-max(1, len(data) // 10) :]), (time.perf_counter() - start) / len(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    steps, size = (12, 4) if chosen.quick else (chosen.steps, chosen.batch)
    torch.set_num_threads(1)
    data = batches(steps, size)
    best = {arm: min(RATES, key=lambda rate: trained(arm, rate, 0, data[: steps // 4])[0]) for arm in ARMS}
    losses: dict[Arm, list[float]] = {arm: [] for arm in ARMS}
    seconds: dict[Arm, list[float]] = {arm: [] for arm in ARMS}
    for seed in range(chosen.seeds):
        for arm in ARMS[:: 1 if seed % 2 else -1]:
            loss, took = trained(arm, best[arm], seed, data)
            losses[arm].append(loss)
            seconds[arm].append(took)
    print(f"{machine('cpu')}; {steps} steps of {size} symbolic images, {chosen.seeds} seed(s), one thread")
    print(f"{'':10}{'rate':>10}{'loss, nats':>14}{'ms a step':>12}")
    for arm in ARMS:
        loss, took = statistics.median(losses[arm]), statistics.median(seconds[arm])
        print(f"{arm:10}{best[arm]:10.0e}{loss:14.3f}{1e3 * took:12.0f}")
    print(
        json.dumps(
            {
                "benchmark": "optimizers",
                "loss": {arm: statistics.median(losses[arm]) for arm in ARMS},
                "muon_step_over_adamw_step": statistics.median(seconds["muon"]) / statistics.median(seconds["adamw"]),
                "rates": best,
                "steps": steps,
                "batch": size,
                "seeds": chosen.seeds,
            }
        )
    )


if __name__ == "__main__":
    main()
