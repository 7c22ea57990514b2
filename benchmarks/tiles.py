"""Tiles against one canvas: small text read from pages larger than the encoder's canvas, and what that costs.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/tiles.py [--grid 2x2] [--steps 800] [--pages 800] [--quick]

A page is 2 x 2 pictures of rendered text, 320 x 320 pixels, whose letters are as large as the patches of the shipped
encoder that reads; on its canvas of 160 x 160 they are half as large. Both arms start from that encoder, which stays
frozen, and the shipped language model, and learn stage 2 with Bbox2Caption on the same pages, letters and order of
both: one is shown the page on one canvas (`squash`), the other in tiles too. Then letters of held-out pages are
read. The error is of characters; beside it stands that of the best constant answer, and that of a linear map which is
fitted to the same frozen features, pooled from each letter's box, and tells what is in them without a language model.

Steps are timed before, both arms by turns on the same pages, encoder and all; the ratio is that of paired steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sizes import machine, train_step
from torch import Tensor

from granvit.bootstrap import ratios
from granvit.corpus.synthetic.rendered_text import render_text
from granvit.corpus.synthetic.scenes import encode
from granvit.images import decode
from granvit.model.distill import roi_align
from granvit.model.region_model import RegionModel
from granvit.nano.recipes import nano
from granvit.predict import GranViT
from granvit.regions import RegionImage
from granvit.texts import character_error_rate, edit_cost
from granvit.train.build import build_model
from granvit.train.config import SampleConfig
from granvit.train.feature_cache import FeatureCache
from granvit.train.optimizer import make_optimizer, make_schedule
from granvit.train.prepare import Prepare
from granvit.train.stages.adapt import Adapt

PART, TRAIN_SEED, HELD_OUT_SEED = 160, 21, 1_000_021
LETTERS = 24  # of a page, in a step and when it is read


def page(seed: int, index: int, columns: int, rows: int) -> RegionImage:
    """`columns` x `rows` pictures of rendered text."""
    size = columns * PART, rows * PART
    whole = Image.new("RGB", size)
    regions = []
    for n in range(columns * rows):
        part = render_text(seed, columns * rows * index + n, PART)
        corner = (n % columns * PART, n // columns * PART)
        whole.paste(decode(part.image or b""), corner)
        shift = np.tile(corner, 2)
        regions += [replace(r, box=tuple((np.array(r.box) + shift).tolist())) for r in part.regions]
    page_id = f"page-{seed}-{index}"
    return replace(part, id=page_id, image=encode(whole), width=size[0], height=size[1], regions=regions)


def model_of(tiles: str) -> RegionModel:
    recipe = nano()
    recipe.encoder, recipe.settings = "nano-reader", replace(recipe.settings, fit="squash", tiles=tiles)
    return build_model(recipe)


class Arm:
    """A model that learns, and the samples that it makes of pages."""

    def __init__(self, tiles: str, steps: int, cache: Path):
        self.model = model_of(tiles)
        self.stage = Adapt(self.model).train()
        self.cache = FeatureCache(cache, self.model)
        self.prepare = Prepare(self.model, SampleConfig({"bbox2caption": 1.0}, max_regions=LETTERS), digests=True)
        self.optimizer = make_optimizer(self.stage, 1e-3, 0.05, (0.9, 0.98), {"layers": 6.0}, "muon")
        self.schedule = make_schedule(self.optimizer, max(steps, 1), min(50, max(1, steps // 10)), 0.02)

    def step(self, pages: Sequence[RegionImage], number: int) -> tuple[float, float, int]:
        """Loss, seconds and tokens of a step; which letters are asked depends on its number alone."""
        rng = np.random.default_rng((3, number))
        batch = self.prepare.collate([self.prepare(record, rng) for record in pages])
        start = time.perf_counter()
        loss = train_step(self.stage, batch, self.optimizer, self.schedule)
        return loss, time.perf_counter() - start, batch.counts["tokens"]


def drawn(pages: Sequence[RegionImage], size: int, step: int) -> list[RegionImage]:
    return [pages[i] for i in np.random.default_rng((4, step)).choice(len(pages), size, replace=False)]


def letters_of(record: RegionImage) -> list[tuple[tuple[float, ...], str]]:
    chosen = np.random.default_rng(5).permutation(len(record.regions))[:LETTERS]
    return [(record.regions[i].box, record.regions[i].text) for i in chosen]


def read(model: RegionModel, pages: Sequence[RegionImage]) -> list[list[str]]:
    """What a model reads of each page's letters."""
    model.llava.eval()
    granvit = GranViT(model)
    return [granvit.describe(decode(p.image or b""), [box for box, _ in letters_of(p)]) for p in pages]


@torch.no_grad()
def pooled(model: RegionModel, pages: Sequence[RegionImage]) -> Tensor:
    """The frozen encoder's features of each page's letters, (letters of all pages, D)."""
    found = []
    for record in pages:
        view = model.view((record.width, record.height))
        [patches] = model.region_maps(model.features(model.show(decode(record.image or b""), view)), [view])
        boxes = torch.from_numpy(view.to_features([box for box, _ in letters_of(record)])).float()
        each = torch.zeros(len(boxes), dtype=torch.long)
        found.append(roi_align(patches, boxes, each, (1, 1), 1 / model.patch, 0)[:, 0, 0])
    return torch.cat(found)


def linear(train: Tensor, letters: list[str], held_out: Tensor) -> list[str]:
    """A linear map from features to letters, fitted to the cross-entropy of the first, applied to the second."""
    known = sorted(set(letters))
    labels = torch.tensor([known.index(letter) for letter in letters])
    mean, std = train.mean(0), train.std(0) + 1e-6
    torch.manual_seed(0)
    head = torch.nn.Linear(train.shape[1], len(known))
    optimizer = torch.optim.AdamW(head.parameters(), 1e-2, weight_decay=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(head((train - mean) / std), labels).backward()
        optimizer.step()
    return [known[i] for i in head((held_out - mean) / std).argmax(1).tolist()]


def errors(said: Sequence[Sequence[str]], pages: Sequence[RegionImage]) -> str:
    """The rate over all letters, with its 95 % interval over pages."""
    truth = [[text for _, text in letters_of(p)] for p in pages]
    costs = [sum(edit_cost(s, t)[0] for s, t in zip(*both, strict=True)) for both in zip(said, truth, strict=True)]
    lengths = [sum(map(len, t)) for t in truth]
    estimate = ratios(np.array(costs, float)[:, None], np.array(lengths, float)[:, None])[0]
    assert estimate is not None
    return f"{estimate.value:.1%} [{estimate.low:.1%}, {estimate.high:.1%}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pages", type=int, default=800)
    parser.add_argument("--held-out", type=int, default=60)
    parser.add_argument("--timed", type=int, default=8)
    parser.add_argument("--grid", default="2x2", help="of a page, and of its tiles: COLUMNSxROWS")
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.steps, chosen.batch, chosen.pages, chosen.held_out, chosen.timed = 2, 2, 4, 2, 2
    torch.set_num_threads(1)
    columns, rows = map(int, chosen.grid.split("x"))
    tiles_of = {"one canvas": "", "tiles": chosen.grid}
    pages = [page(TRAIN_SEED, i, columns, rows) for i in range(chosen.pages)]
    held_out = [page(HELD_OUT_SEED, i, columns, rows) for i in range(chosen.held_out)]
    truth = [[text for _, text in letters_of(p)] for p in held_out]
    constant = min(
        sorted({text for texts in truth for text in texts}),
        key=lambda letter: character_error_rate([letter] * sum(map(len, truth)), [t for ts in truth for t in ts]),
    )
    print(f"best constant answer {constant!r}: {errors([[constant] * len(t) for t in truth], held_out)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        arms = {
            name: Arm(tiles, chosen.steps, Path(folder) / f"{n}") for n, (name, tiles) in enumerate(tiles_of.items())
        }
        fresh = {name: Arm(tiles, 0, Path(folder) / "none") for name, tiles in tiles_of.items()}
        seconds: dict[str, list[float]] = {name: [] for name in tiles_of}
        for step in range(-2, chosen.timed):  # two to warm up
            for name in list(tiles_of)[:: 1 if step % 2 else -1]:
                _, took, tokens = fresh[name].step(drawn(pages, chosen.batch, chosen.steps + step + 2), step + 2)
                seconds[name] += [took] if step >= 0 else []
                if step == chosen.timed - 1:
                    print(
                        f"{name}: {tokens / chosen.batch:.0f} tokens a page with {LETTERS} letters, "
                        f"{statistics.median(seconds[name]):.2f} s a step of {chosen.batch} pages",
                        flush=True,
                    )
        paired = [t / w for w, t in zip(seconds["one canvas"], seconds["tiles"], strict=True)]
        print(
            f"tiles / one canvas, paired steps: {statistics.median(paired):.2f} ({min(paired):.2f}-{max(paired):.2f})"
        )
        letters = [text for p in pages for _, text in letters_of(p)]
        for name, arm in arms.items():
            names = linear(pooled(arm.model, pages), letters, pooled(arm.model, held_out))
            each = iter(names)
            print(f"{name}: linear map {errors([[next(each) for _ in t] for t in truth], held_out)}", flush=True)
        losses: dict[str, list[float]] = {name: [] for name in tiles_of}
        for arm in arms.values():
            arm.stage.cache = arm.cache
        for step in range(chosen.steps):
            for name, arm in arms.items():
                losses[name].append(arm.step(drawn(pages, chosen.batch, step), step)[0])
            if (step + 1) % 50 == 0:
                recent = {name: round(statistics.mean(values[-50:]), 3) for name, values in losses.items()}
                print(f"step {step + 1}: {recent}", flush=True)
        for name, arm in arms.items():
            print(f"{name}: read {errors(read(arm.model, held_out), held_out)}", flush=True)
    print(json.dumps({"machine": machine("cpu"), **vars(chosen)}))


if __name__ == "__main__":
    main()
