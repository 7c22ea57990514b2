"""Many questions behind one image prefix, against one question per sequence: regions per second and peak memory.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/packing.py [--quick] [--images 4] [--repeats 7]

Timed is a stage-1 step (forward and backward, encoder and projector training, language model frozen) of the `nano`
sizes: encoder 5 layers x 160 on a 160-pixel canvas, language model 4 layers x 128. The baselines are

    one by one     every question is a sequence of its own, with its own run of the encoder
    encoded once   every question is a sequence of its own, the image is encoded once and its embeddings repeated

on the same model, pictures and questions. The arms take turns, each round in another order; the table gives medians
over the rounds and, in brackets, the range. A ratio is the median of the rounds' own ratios. Memory is what the
tensors of a step take at most (activations and gradients), counted tensor by tensor.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from granvit.coordinates import get_codec
from granvit.corpus.synthetic import sample_texts
from granvit.model.assemble import assemble
from granvit.model.forward import answer_logits, project
from granvit.model.packing import Batch, Branch, Sample, pack
from granvit.model.presets import nano_encoder, nano_language
from granvit.model.region_model import RegionModel, Settings
from granvit.model.tokenizer import train_tokenizer
from granvit.questions import caption_exchange
from granvit.train.stages import Pretrain

REGIONS = (1, 4, 8, 16, 32)
PACKED, ONE_BY_ONE, ENCODED_ONCE = "packed", "one by one", "encoded once"
ARMS = (PACKED, ONE_BY_ONE, ENCODED_ONCE)


def make_model(texts: list[str]) -> RegionModel:
    """The untrained `nano` model with stage 1's parts trainable."""
    torch.manual_seed(0)
    codec = get_codec("loc:80")
    tokenizer = train_tokenizer(texts, 1024, codec)
    model = assemble(nano_encoder(), (nano_language(tokenizer, codec), tokenizer), Settings(codec.spec))
    Pretrain(model, distill_weight=0)
    return model


def make_samples(model: RegionModel, texts: list[str], images: int, regions: int) -> list[Sample]:
    """Random canvases, each with `regions` random boxes and captions."""
    rng = np.random.default_rng(regions)
    captions = [t for t in texts if len(t) < 40]

    def branch() -> Branch:
        box = np.sort(rng.random((2, 2)), axis=0).ravel()
        return model.dialog.branch(caption_exchange(box, str(rng.choice(captions)), model.codec))

    shape = (model.canvas, model.canvas, 3)
    return [
        Sample(f"{i}", [branch() for _ in range(regions)], rng.integers(0, 256, shape, dtype=np.uint8))
        for i in range(images)
    ]


def make_step(arm: str, model: RegionModel, samples: list[Sample]) -> Callable[[], Tensor]:
    """Forward and backward of one arm; returns the mean loss over answer tokens."""

    def batch_of(samples: list[Sample]) -> Batch:
        dialog = model.dialog
        return pack(samples, dialog.prefix_ids, dialog.image_token, dialog.pad_token)

    alone = [Sample(s.id, [b], s.pixels) for s in samples for b in s.branches]
    batch = batch_of(samples if arm == PACKED else alone)
    pixels = batch_of(samples).pixels if arm == ENCODED_ONCE else batch.pixels
    assert pixels is not None

    def step() -> Tensor:
        embeds = project(model.llava, model.features(pixels))
        if arm == ENCODED_ONCE:
            embeds = embeds.repeat_interleave(len(samples[0].branches), 0)
        loss = F.cross_entropy(*answer_logits(model.llava, batch, embeds))
        loss.backward()
        return loss.detach()

    return step


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of all tensors made in its context while they live; `peak` is the most at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (key := tensor.untyped_storage()._cdata) not in self._known:
                storage = tensor.untyped_storage()
                self._known.add(key)
                self.bytes += storage.nbytes()
                weakref.finalize(storage, self._freed, key, storage.nbytes())
        self.peak = max(self.peak, self.bytes)
        return result

    def _freed(self, key: int, size: int) -> None:
        self._known.remove(key)
        self.bytes -= size


def peak_memory(step: Callable[[], Tensor]) -> float:
    """The most that the tensors of one step take at any moment, MiB; weights and inputs are not counted."""
    with LiveTensors() as live:
        step()
    return live.peak / 2**20


def check_equal(model: RegionModel, steps: dict[str, Callable[[], Tensor]]) -> float:
    """The largest difference between the arms' losses, relative to the loss; gradients are compared too."""
    patches = model.llava.model.vision_tower.get_submodule("embeddings.patch_embedding").weight
    losses, gradients = [], []
    for arm in ARMS:
        model.llava.zero_grad()
        losses.append(steps[arm]().item())
        gradients.append(patches.grad.clone())
    difference = (max(losses) - min(losses)) / losses[0]
    assert difference <= 1e-5, f"the arms' losses differ: {dict(zip(ARMS, losses, strict=True))}"
    for gradient in gradients[1:]:
        assert (gradient - gradients[0]).abs().max() <= 1e-4 * gradients[0].abs().max(), "the arms' gradients differ"
    return difference


def time_arms(model: RegionModel, steps: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, list[float]]:
    """Seconds per step, a list over the rounds for each arm."""
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for repeat in range(repeats):
        at = repeat % len(ARMS)
        for arm in ARMS[at:] + ARMS[:at]:
            model.llava.zero_grad()
            start = time.perf_counter()
            steps[arm]()
            times[arm].append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=4, help="images per step")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="two images, three rounds, 1, 8 and 32 regions")
    options = parser.parse_args()
    images, repeats, counts = (2, 3, (1, 8, 32)) if options.quick else (options.images, options.repeats, REGIONS)

    texts = sample_texts(500)
    model = make_model(texts)
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {images} images per step"
    )
    print(f"{'regions/image':>13}  {'arm':14}{'regions/s':>22}{'packed is':>11}{'peak MiB':>10}{'packed needs':>14}")
    facts: dict[str, dict[str, float]] = {}
    worst = 0.0
    for count in counts:
        samples = make_samples(model, texts, images, count)
        steps = {arm: make_step(arm, model, samples) for arm in ARMS}
        worst = max(worst, check_equal(model, steps))
        times = time_arms(model, steps, repeats)
        memory = {arm: peak_memory(steps[arm]) for arm in ARMS}
        facts[str(count)] = {}
        for arm in ARMS:
            speeds = [images * count / t for t in times[arm]]
            spread = f"{statistics.median(speeds):.1f} [{min(speeds):.1f}, {max(speeds):.1f}]"
            faster = statistics.median(t / p for t, p in zip(times[arm], times[PACKED], strict=True))
            share = memory[PACKED] / memory[arm]
            print(f"{count:13}  {arm:14}{spread:>22}{faster:10.2f}x{memory[arm]:10.0f}{share:14.2f}")
            if arm != PACKED:
                name = arm.replace(" ", "_")
                facts[str(count)] |= {f"speedup_vs_{name}": round(faster, 3), f"memory_vs_{name}": round(share, 3)}
    print(f"losses agree to {worst:.1e} of their size")
    head = {"benchmark": "packing", "images": images, "repeats": repeats, "loss_difference": worst}
    print(json.dumps({**head, "regions_per_image": facts}))


if __name__ == "__main__":
    main()
