"""Many questions behind one image prefix, against one question per sequence: regions per second and peak memory.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/packing.py [--quick] [--images 8] [--repeats 7]
    python benchmarks/packing.py --device cuda --size paper
    python benchmarks/packing.py --language DIR     # through that language model, from a folder

Timed is a stage-1 step (forward and backward, encoder and projector training, language model frozen). The baselines
are

    no shared text   packed, but every question has all of its own words (`granvit.model.packing`: stems)
    dense mask       packed, with one S x S boolean mask a row and torch's SDPA, as message trees are trained elsewhere
    one by one       every question is a sequence of its own, with its own run of the encoder
    encoded once     every question is a sequence of its own, the image is encoded once and its embeddings repeated

(the first where the language model's tokenizer gives the questions words to share).

on the same model (benchmarks/sizes.py), pictures and questions. The arms take turns, each round in another order; the
table gives medians over the rounds and, in brackets, the range. A ratio is the median of the rounds' own ratios. Every
arm is worked off in micro-batches of at most `--tokens` tokens, images included: so the baselines fit into a GPU, and a
CPU's caches do not overflow. Memory is what the tensors of a step take at most besides weights and inputs: counted
tensor by tensor on the CPU, what the allocator has given out on a GPU.

What packing can give is bounded: with a cost P of an image and its prefix and b of a question, N questions one by one
cost N (P + b) and packed P + N b. P and b are fitted to the packed times; the last lines have the bound, and how
much of it was reached. Beside it the bound of the arithmetic alone, which no clock has a part in: how many times the
FLOPs of the packed step the questions one by one take.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from sizes import SIZES, autocast, machine, make_model, make_samples
from torch import Tensor

from granvit.corpus.synthetic.scenes import sample_texts
from granvit.model import forward
from granvit.model.forward import project
from granvit.model.packing import Batch, Sample, pack
from granvit.train.fake import Allocated
from granvit.train.stages.pretrain import Pretrain

REGIONS = (1, 4, 8, 16, 32)
PACKED, UNSHARED, DENSE = "packed", "no shared text", "dense mask"
ONE_BY_ONE, ENCODED_ONCE = "one by one", "encoded once"
ARMS = (PACKED, UNSHARED, DENSE, ONE_BY_ONE, ENCODED_ONCE)


def with_dense_mask(language: Any, batch: Batch) -> tuple[Batch, dict[str, Any]]:
    """In place of `fit_attention`: which position sees which, all S x S of them."""
    return batch, {"attention_mask": batch.mask()}


def without_stems(samples: Sequence[Sample]) -> list[Sample]:
    return [replace(s, branches=[replace(b, stem=0) for b in s.branches]) for s in samples]


def portions(stage: Pretrain, samples: Sequence[Sample], tokens: int, device: str) -> list[Batch]:
    """Samples in order as batches, an image per row, of at most `tokens` tokens."""
    dialog = stage.region_model.dialog
    longest = len(dialog.prefix_ids) + max(sum(len(b.ids) for b in s.branches) for s in samples)
    size = max(1, tokens // longest)
    parts = [samples[i : i + size] for i in range(0, len(samples), size)]
    return [pack(part, dialog.prefix_ids, dialog.image_token, dialog.pad_token).to(device) for part in parts]


def make_step(arm: str, stage: Pretrain, samples: list[Sample], tokens: int, device: str) -> Callable[[], Tensor]:
    """Forward and backward of one arm; returns the mean loss over answer tokens."""
    model = stage.region_model
    alone = [Sample(s.id, [b], s.pixels) for s in samples for b in s.branches]
    of_arm = {PACKED: samples, UNSHARED: without_stems(samples), DENSE: samples}
    batches = portions(stage, of_arm.get(arm, alone), tokens, device)
    mask = patch.object(forward, "fit_attention", with_dense_mask) if arm == DENSE else nullcontext()
    answers = sum(batch.counts["answer_tokens"] for batch in batches)
    images = portions(stage, samples, tokens, device)
    questions = len(samples[0].branches)

    def encode(batch: Batch) -> Tensor:
        assert batch.pixels is not None
        return project(stage.model, model.features(batch.pixels))

    def through_language(batch: Batch, embeds: Tensor) -> Tensor:
        loss = stage.answers(batch, embeds).total / answers
        loss.backward()
        return loss.detach()

    def step() -> Tensor:
        with autocast(device), mask:
            if arm != ENCODED_ONCE:
                return torch.stack([through_language(batch, encode(batch)) for batch in batches]).sum()
            encoded = [encode(batch) for batch in images]
            embeds = torch.cat(encoded).detach().requires_grad_(True)
            losses, at = [], 0
            for batch in batches:
                of_image = torch.arange(at, at + len(batch.ids), device=device) // questions
                losses.append(through_language(batch, embeds[of_image]))
                at += len(batch.ids)
            torch.autograd.backward(torch.cat(encoded), embeds.grad)
            return torch.stack(losses).sum()

    return step


def peak_memory(step: Callable[[], Tensor], device: str) -> float:
    """The most that the tensors of one step take at any moment, MiB; weights and inputs are not counted."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with Allocated("cpu") as allocated:
        step()
    return allocated.peak / 2**20


def check_equal(stage: Pretrain, steps: dict[str, Callable[[], Tensor]], device: str) -> float:
    """The largest difference between the arms' losses, relative to the loss; gradients are compared too."""
    loss_bound, gradient_bound = (1e-5, 1e-4) if device == "cpu" else (5e-3, 0.1)  # float32, or bfloat16 products
    patches = stage.tower.get_submodule("embeddings.patch_embedding").weight
    losses, gradients = [], []
    for arm in steps:
        stage.zero_grad()
        losses.append(steps[arm]().item())
        gradients.append(patches.grad.clone())
    difference = (max(losses) - min(losses)) / losses[0]
    assert difference <= loss_bound, f"the arms' losses differ: {dict(zip(steps, losses, strict=True))}"
    for gradient in gradients[1:]:
        assert (gradient - gradients[0]).norm() <= gradient_bound * gradients[0].norm(), "the arms' gradients differ"
    return difference


def time_arms(
    stage: Pretrain,
    steps: dict[str, Callable[[], Tensor]],
    repeats: int,
    device: str,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds per step, a list over the rounds for each arm."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    arms = list(steps)
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for repeat in range(repeats):
        at = repeat % len(arms)
        for arm in arms[at:] + arms[:at]:
            stage.zero_grad()
            wait()
            start = clock()
            steps[arm]()
            wait()
            times[arm].append(clock() - start)
    return times


def costs(seconds: dict[int, float]) -> tuple[float, float]:
    """Seconds of an image with its prefix, and of each question, fitted to those of an image with so many questions.

    By least squares of the relative errors: else the longest would decide alone.
    """
    counts = np.array(list(seconds), float)
    taken = np.array(list(seconds.values()))
    system = np.stack([np.ones_like(counts), counts], 1) / taken[:, None]
    prefix, branch = np.linalg.lstsq(system, np.ones_like(taken), rcond=None)[0]
    return float(prefix), float(branch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=8, help="images per step")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=SIZES, default="nano")
    parser.add_argument("--language", help="a folder with a language model, in place of the size's")
    parser.add_argument("--regions", type=int, nargs="+", help="per image; 1, 4, 8, 16 and 32")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="which to run; the packed one always")
    parser.add_argument("--processor-time", action="store_true", help="for a busy machine: of all threads together")
    parser.add_argument("--tokens", type=int, help="per micro-batch; 16384 on a GPU, 8192 on the CPU")
    parser.add_argument("--quick", action="store_true", help="two images, three rounds, 1, 8 and 32 regions")
    options = parser.parse_args()
    images, repeats, counts = (2, 3, (1, 8, 32)) if options.quick else (options.images, options.repeats, REGIONS)
    counts = options.regions or counts
    device, tokens = options.device, options.tokens or (16384 if options.device == "cuda" else 8192)

    texts = sample_texts(500)
    model = make_model(options.size, texts, device, options.language)
    stage = Pretrain(model, distill_weight=0).to(device)
    print(f"{machine(device)}, {options.language or options.size}, {images} images per step")
    print(f"{'regions/image':>13}  {'arm':14}{'regions/s':>22}{'packed is':>11}{'peak MiB':>10}{'packed needs':>14}")
    facts: dict[str, dict[str, float]] = {}
    seconds: dict[int, float] = {}
    worst = 0.0
    for count in counts:
        samples = make_samples(stage.region_model, texts, images, count)
        shares = any(branch.stem for branch in samples[0].branches)
        arms = [arm for arm in ARMS if arm in (PACKED, *options.arms) and (arm != UNSHARED or shares)]
        steps = {arm: make_step(arm, stage, samples, tokens, device) for arm in arms}
        worst = max(worst, check_equal(stage, steps, device))
        clock = time.process_time if options.processor_time else time.perf_counter
        times = time_arms(stage, steps, repeats, device, clock)
        memory = {arm: peak_memory(steps[arm], device) for arm in arms}
        facts[str(count)] = {}
        seconds[count] = statistics.median(times[PACKED]) / images
        if shares:
            few, many = (portions(stage, each, tokens, "cpu") for each in (samples, without_stems(samples)))
            for name, count_of in (("tokens", lambda b: b.counts["tokens"]), ("arithmetic", stage.step_flops)):
                ratio = sum(map(count_of, many)) / sum(map(count_of, few))
                facts[str(count)][f"{name}_without_shared_text"] = round(ratio, 3)
        if ONE_BY_ONE in arms:
            alone = [Sample(s.id, [b], s.pixels) for s in samples for b in s.branches]
            one, packed = (sum(map(stage.step_flops, portions(stage, s, tokens, "cpu"))) for s in (alone, samples))
            facts[str(count)]["arithmetic_one_by_one"] = round(one / packed, 3)
        for arm in arms:
            speeds = [images * count / t for t in times[arm]]
            spread = f"{statistics.median(speeds):.1f} [{min(speeds):.1f}, {max(speeds):.1f}]"
            faster = statistics.median(t / p for t, p in zip(times[arm], times[PACKED], strict=True))
            share = memory[PACKED] / memory[arm]
            print(f"{count:13}  {arm:14}{spread:>22}{faster:10.2f}x{memory[arm]:10.0f}{share:14.2f}")
            if arm == PACKED:
                facts[str(count)]["regions_per_second"] = round(statistics.median(speeds), 2)
            else:
                name = arm.replace(" ", "_")
                facts[str(count)] |= {f"speedup_vs_{name}": round(faster, 3), f"memory_vs_{name}": round(share, 3)}
    for count in counts:
        if "tokens_without_shared_text" in facts[str(count)]:
            of_tokens, of_flops = (facts[str(count)][f"{x}_without_shared_text"] for x in ("tokens", "arithmetic"))
            print(f"{count:13}  without shared text: {of_tokens:.2f}x the tokens, {of_flops:.2f}x the arithmetic")
    if ONE_BY_ONE in options.arms and len(counts) > 1:
        report_bound(counts, facts, costs(seconds))
    print(f"losses agree to {worst:.1e} of their size")
    head = {"benchmark": "packing", "size": options.size, "device": device, "images": images, "repeats": repeats}
    print(json.dumps({**head, "loss_difference": worst, "regions_per_image": facts}))


def report_bound(counts: Sequence[int], facts: dict[str, dict[str, float]], cost: tuple[float, float]) -> None:
    """What packing can give at most by the costs of an image and of a question, and how much of it was reached."""
    prefix, branch = cost
    print(f"an image costs {prefix * 1e3:.1f} ms, a question {branch * 1e3:.2f} ms more")
    for count in counts:
        bound = count * (prefix + branch) / (prefix + count * branch)
        reached = facts[str(count)]["speedup_vs_one_by_one"] / bound
        facts[str(count)] |= {"bound": round(bound, 3), "share_of_bound": round(reached, 3)}
        counted = facts[str(count)]["arithmetic_one_by_one"]
        print(
            f"{count:13}  one by one: at most {bound:.2f}x, reached {reached:.0%}; {counted:.2f}x the arithmetic, "
            f"reached {facts[str(count)]['speedup_vs_one_by_one'] / counted:.0%}"
        )


if __name__ == "__main__":
    main()
