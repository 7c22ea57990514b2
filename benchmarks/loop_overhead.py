"""What the training loop and its input cost, against bare forward + backward + clip + optimizer step.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/loop_overhead.py [--steps 40] [--repeats 4]

The arms take turns within one process, each round in another order, and train the same stage from the same weights
on the same batches. What is timed goes from one optimizer step to the next. A round's figure is the median over its
steps, its ratio is to the bare step of the same round; the table gives medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from granvit.corpus.synthetic.synthesize import synthesize
from granvit.model.packing import Batch
from granvit.nano.recipes import nano
from granvit.train.build import build_model
from granvit.train.feed import Collate, Feed, PrepareSample, Records
from granvit.train.loop import LoopConfig, train
from granvit.train.optimizer import make_optimizer
from granvit.train.prepare import Prepare
from granvit.train.stages.base import Stage

BATCH = 16


def workload(folder: Path) -> tuple[Callable[[], Stage], list[tuple[Records, float]], PrepareSample, Collate]:
    """What is trained, on what: stage 1 of the nano recipe on pictures drawn into `folder`."""
    recipe = nano()
    stage = recipe.stages[0]
    model = build_model(recipe)
    start = {name: tensor.clone() for name, tensor in model.llava.state_dict().items()}

    def make_stage() -> Stage:
        model.llava.load_state_dict(start)
        return stage.build(model)

    prepare = Prepare(model, stage.sample)
    corpus = synthesize(folder / "corpus", 256, progress=False)
    return make_stage, [(corpus, 1.0)], prepare, prepare.collate


class Ready(Feed):
    """A feed whose batches are there already."""

    def replay(self, batches: Sequence[Batch]) -> Ready:
        self._ready: Iterator[Batch] = iter(batches)
        return self

    def __next__(self) -> Batch:
        return next(self._ready)


def time_steps(stage: Stage) -> list[float]:
    """A list that receives the moment of every optimizer step of `stage`."""
    moments: list[float] = []
    own = stage.after_step

    def after_step() -> None:
        own()
        moments.append(time.perf_counter())

    stage.after_step = after_step  # type: ignore[method-assign]
    return moments


def run_bare(stage: Stage, batches: Sequence[Batch], config: LoopConfig) -> None:
    """The same mathematics without the loop."""
    stage.train()
    optimizer = make_optimizer(stage, config.lr, config.weight_decay, config.betas, {})
    parameters = [p for p in stage.parameters() if p.requires_grad]
    for batch in batches:
        counts = batch.counts
        loss = sum(t.weight * t.total / max(1, counts[t.count]) for t in stage(batch).values())
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        stage.after_step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(options, *workload(Path(folder)))


def measure(
    options: argparse.Namespace,
    make_stage: Callable[[], Stage],
    sources: list[tuple[Records, float]],
    prepare: PrepareSample,
    collate: Collate,
) -> None:
    """Time all arms and print the table."""
    config = LoopConfig(steps=options.steps, batch_size=BATCH, trackers=(), log_every=1)

    def feed(kind: type[Feed] = Feed, prefetch: int = 2) -> Any:
        return kind(sources, prepare, collate, BATCH, seed=0, prefetch=prefetch)

    plain = feed(prefetch=0)
    batches = [next(plain) for _ in range(options.steps)]
    arms: dict[str, Callable[[], Feed] | None] = {
        "bare step": None,
        "loop, batches ready": lambda: feed(Ready).replay(batches),
        "loop + feed, made ahead": feed,
        "loop + feed, made when asked": lambda: feed(prefetch=0),
    }
    times: dict[str, list[float]] = {name: [] for name in arms}
    waits: dict[str, list[float]] = {name: [] for name in arms}
    for repeat in range(options.repeats + 1):
        names = list(arms)
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            make_feed = arms[name]
            stage = make_stage()
            moments = time_steps(stage)
            if make_feed is None:
                run_bare(stage, batches, config)
            else:
                with tempfile.TemporaryDirectory() as folder, make_feed() as stream:
                    result = train(stage, stream, config, Path(folder), device="cpu")
                if repeat:
                    waits[name].append(result.data_wait)
            if repeat:  # the first round warms up
                times[name].append(statistics.median(b - a for a, b in zip(moments, moments[1:], strict=False)))

    ratios = {n: statistics.median(t / b for t, b in zip(times[n], times["bare step"], strict=True)) for n in arms}
    print(f"{'':30}{'ms/step':>10}{'ratio':>8}{'data wait':>11}")
    for name in arms:
        wait = f"{statistics.median(waits[name]):11.1%}" if waits[name] else " " * 11
        print(f"{name:30}{1000 * statistics.median(times[name]):10.1f}{ratios[name]:8.3f}{wait}")
    ahead = "loop + feed, made ahead"
    facts = {
        "bare_ms": 1000 * statistics.median(times["bare step"]),
        "loop_ratio": ratios["loop, batches ready"],
        "loop_and_feed_ratio": ratios[ahead],
        "without_prefetch_ratio": ratios["loop + feed, made when asked"],
        "data_wait": statistics.median(waits[ahead]),
        "steps": options.steps,
        "repeats": options.repeats,
    }
    print(json.dumps({"benchmark": "loop_overhead", **facts}))


if __name__ == "__main__":
    main()
