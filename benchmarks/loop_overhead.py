"""What the training loop and its input cost, against bare forward + backward + clip + optimizer step.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/loop_overhead.py [--steps 12] [--repeats 8]

The arms take turns within one process, each round in another order, and train the same stage from the same weights
on the same batches. What is timed goes from one optimizer step to the next. A round's figure is the median over its
steps, its ratio is to the bare step of the same round; the table gives medians over the rounds.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import LlavaConfig, LlavaForConditionalGeneration, Qwen2Config, SiglipVisionConfig

from granvit.model.packing import Batch, Branch, Sample, pack
from granvit.regions import RegionImage
from granvit.train.feed import Collate, Feed, Prepare, Records
from granvit.train.loop import LoopConfig, train
from granvit.train.optimizer import make_optimizer
from granvit.train.stage import Stage, Term

BATCH, SIDE, PATCH = 8, 112, 16


def workload() -> tuple[Callable[[], Stage], list[tuple[Records, float]], Prepare, Collate]:
    """What is trained, on what: stage factory, sources, prepare, collate."""
    return CaptionStage, [(RandomPictures(256), 1.0)], _prepare, _collate


class CaptionStage(Stage):
    """A small stock LLaVA that learns answer tokens, encoder and projector training."""

    name = "caption"

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        heads = {"num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 128, "intermediate_size": 384}
        config = LlavaConfig(
            vision_config=SiglipVisionConfig(image_size=SIDE, patch_size=PATCH, **heads),
            text_config=Qwen2Config(vocab_size=512, num_key_value_heads=4, tie_word_embeddings=True, **heads),
            image_token_index=0,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )
        config._attn_implementation = "sdpa"
        self.model = LlavaForConditionalGeneration(config)
        self.model.model.language_model.requires_grad_(False)

    def forward(self, batch: Batch) -> dict[str, Term]:
        assert batch.pixels is not None
        logits = self.model(
            input_ids=batch.input_ids,
            pixel_values=batch.pixels.permute(0, 3, 1, 2).float() / 127.5 - 1,
            attention_mask=batch.mask(),
            position_ids=batch.position_ids,
        ).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="sum")
        return {"caption": Term(loss, "answer_tokens")}


class RandomPictures:
    """`size` JPEG files of smooth noise, 256 pixels wide."""

    def __init__(self, size: int):
        rng = np.random.default_rng(0)
        self.files = []
        for _ in range(size):
            small = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
            file = io.BytesIO()
            small.resize((256, 256)).save(file, "JPEG")
            self.files.append(file.getvalue())

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> RegionImage:
        return RegionImage(f"picture{index}", self.files[index], 256, 256, [])


def _prepare(record: RegionImage, rng: np.random.Generator) -> Sample:
    assert record.image is not None
    canvas = np.asarray(Image.open(io.BytesIO(record.image)).resize((SIDE, SIDE)))
    branches = [Branch(rng.integers(3, 512, 20).tolist(), 12, "bbox2caption") for _ in range(4)]
    return Sample(record.id, branches, canvas)


def _collate(samples: list[Sample]) -> Batch:
    return pack(samples, [1] + [0] * (SIDE // PATCH) ** 2, image_token=0, pad_token=2)


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
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=8)
    options = parser.parse_args()
    make_stage, sources, prepare, collate = workload()
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
