"""What the teacher's crops cost: stretched to the canvas, smaller, or packed into one sequence at their own size.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/crops.py [--quick] [--size nano] [--regions 8] [--repeats 7]
    python benchmarks/crops.py --device cuda --size paper --regions 16

The teacher of stage 1 sees every region's crop. The arms encode the crops of one image, without gradients:

    canvas     each is stretched to the encoder's canvas (the paper's recipe; `sample.crop_size 0`)
    half       each is stretched to half the canvas's side (`sample.crop_size`)
    own size   none is stretched: each has as many patches as it covers on the canvas, at least two along a side and at
               most the canvas; all are one sequence, in which no crop sees another

Boxes are those of regions of the embedded scenes. "Own size" is an arm and no setting: what it would do to the
distillation is for a study to say, here is what it would save. Its crops come in any shape, so that no shape repeats,
positions are resized for each crop, and attention needs a mask; on a CPU each crop attends for itself, on a GPU
FlexAttention does so. Before anything is timed, crops of the canvas's size must give the same features in one sequence
as in a batch. Arithmetic is that of matrix products; the arms take turns. At paper size a CPU only counts it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from sizes import SIZES, autocast, machine, make_model
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import AttentionInterface

from granvit.corpus.synthetic.scenes import sample_texts
from granvit.corpus.synthetic.synthesize import make
from granvit.model.families import body_of, patch_of
from granvit.model.forward import encode

CANVAS, HALF, OWN = "canvas", "half", "own size"
ARMS = (CANVAS, HALF, OWN)


def boxes_of(count: int, canvas: int) -> list[tuple[int, int]]:
    """Width and height in canvas pixels of regions of the embedded scenes."""
    sizes = []
    for seed in range(100):
        record = make(seed, seed=5, size=canvas, documents=0.0)
        scale = canvas / max(record.width, record.height)
        for region in record.regions:
            x1, y1, x2, y2 = region.box
            sizes.append((round(scale * (x2 - x1)), round(scale * (y2 - y1))))
        if len(sizes) >= count:
            break
    return sizes[:count]


def grid_of(size: tuple[int, int], patch_side: int, canvas: int) -> tuple[int, int]:
    """Rows and columns of patches of a crop at its own size."""
    columns, rows = (min(max(2, -(-side // patch_side)), canvas // patch_side) for side in size)
    return rows, columns


class OwnAttention:
    """Attention of one sequence of crops, (1, heads, S, D), in which each sees itself alone."""

    def __init__(self, lengths: Sequence[int], device: str):
        self.lengths, self.device = list(lengths), device
        if device == "cuda":
            owner = torch.arange(len(lengths), device=device).repeat_interleave(torch.tensor(lengths, device=device))
            total = len(owner)
            self.mask = create_block_mask(lambda b, h, q, k: owner[q] == owner[k], 1, None, total, total, device=device)
            self.run: Any = torch.compile(flex_attention, dynamic=True)

    def __call__(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
        if self.device == "cuda":
            return self.run(query, key, value, block_mask=self.mask).transpose(1, 2).contiguous(), None
        parts = zip(*(part.split(self.lengths, 2) for part in (query, key, value)), strict=True)
        return torch.cat([nn.functional.scaled_dot_product_attention(*part) for part in parts], 2).transpose(1, 2), None


def encode_own(tower: Any, crops: Sequence[Tensor], device: str) -> Tensor:
    """Normalised crops (1, 3, h, w) of any sizes -> features of all their patches, (patches, D)."""
    body = body_of(tower)
    embedded = [body.embeddings(crop, interpolate_pos_encoding=True) for crop in crops]
    attention = OwnAttention([each.shape[1] for each in embedded], device)
    with patch.dict(AttentionInterface._global_mapping, {"sdpa": attention}):
        features: Tensor = body.encoder(inputs_embeds=torch.cat(embedded, 1)).last_hidden_state[0]
    return features


def flops(tower: Any, lengths: Sequence[int]) -> float:
    """Of the matrix products of crops of so many patches each."""
    config = tower.config
    linear = sum(m.weight.numel() for m in body_of(tower).encoder.modules() if isinstance(m, nn.Linear))
    linear += body_of(tower).embeddings.patch_embedding.weight.numel()
    attention = 4.0 * config.hidden_size * config.num_hidden_layers
    return sum(2.0 * linear * n + attention * n * n for n in lengths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=SIZES, default="nano")
    parser.add_argument("--regions", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    options = parser.parse_args()
    device, repeats = options.device, 3 if options.quick else options.repeats
    counted_only = options.size == "paper" and device == "cpu"
    model = make_model(options.size, sample_texts(100), "meta" if counted_only else device)
    tower = model.llava.model.vision_tower.eval().requires_grad_(False)
    canvas, side = model.canvas, patch_of(tower.config)
    half = canvas // 2 // side * side
    sizes = boxes_of(options.regions, canvas)
    grids = [grid_of(size, side, canvas) for size in sizes]
    lengths = {
        CANVAS: [(canvas // side) ** 2] * len(grids),
        HALF: [(half // side) ** 2] * len(grids),
        OWN: [rows * columns for rows, columns in grids],
    }
    times = (
        {} if counted_only else timed(tower, canvas, half, [(r * side, c * side) for r, c in grids], repeats, device)
    )
    report(options, tower, lengths, times, np.array(sizes) / canvas)


def timed(
    tower: Any, canvas: int, half: int, shapes: list[tuple[int, int]], repeats: int, device: str
) -> dict[str, list[float]]:
    """Seconds of each arm, a list over the rounds; the round before them warms up."""
    random = torch.Generator(device=device).manual_seed(0)

    def noise(count: int, rows: int, columns: int) -> Tensor:
        return torch.randn(count, 3, rows, columns, generator=random, device=device)

    whole, smaller = noise(len(shapes), canvas, canvas), noise(len(shapes), half, half)
    own = [noise(1, *shape) for shape in shapes]
    arms: dict[str, Callable[[], Tensor]] = {
        CANVAS: lambda: encode(tower, whole),
        HALF: lambda: encode(tower, smaller, resized=True),
        OWN: lambda: encode_own(tower, own, device),
    }
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    with torch.no_grad(), autocast(device):
        two = whole[:2]
        difference = (encode_own(tower, two.split(1), device) - encode(tower, two).flatten(0, 1)).abs().max().item()
        assert difference < (1e-4 if device == "cpu" else 0.1), f"the features differ by {difference}"
        for repeat in range(repeats + 1):
            for arm in ARMS[repeat % 3 :] + ARMS[: repeat % 3]:
                wait()
                start = time.perf_counter()
                arms[arm]()
                wait()
                if repeat:
                    times[arm].append(time.perf_counter() - start)
    return times


def report(
    options: argparse.Namespace,
    tower: Any,
    lengths: dict[str, list[int]],
    times: dict[str, list[float]],
    sides: np.ndarray,
) -> None:
    print(f"{machine(options.device)}, {options.size}, {len(sides)} crops")
    print(f"{'':10}{'patches':>9}{'GFLOP':>10}{'of canvas':>11}{'ms [range]':>28}{'of canvas':>11}")
    whole, facts = flops(tower, lengths[CANVAS]), {}
    for arm in ARMS:
        work = flops(tower, lengths[arm])
        facts[arm] = {"patches": sum(lengths[arm]), "flops_of_canvas": round(work / whole, 4)}
        row = f"{arm:10}{sum(lengths[arm]):9}{work / 1e9:10.2f}{work / whole:11.2f}"
        if times:
            of = times[arm]
            took = statistics.median(t / c for t, c in zip(of, times[CANVAS], strict=True))
            spread = f"{1e3 * statistics.median(of):.1f} [{1e3 * min(of):.1f}, {1e3 * max(of):.1f}]"
            row += f"{spread:>28}{took:11.2f}"
            facts[arm]["time_of_canvas"] = round(took, 4)
        print(row)
    print(f"regions cover {np.median(sides.prod(1)):.1%} of the canvas in the median")
    settings = {"size": options.size, "device": options.device, "regions": len(sides)}
    print(json.dumps({"benchmark": "crops", **settings, "arms": facts}))


if __name__ == "__main__":
    main()
