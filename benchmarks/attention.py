"""Training in bfloat16 on a CPU: attention by plain products and branch by branch, against torch's own SDPA.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/attention.py [--images 8] [--regions 8] [--repeats 15] [--quick]

Timed is a stage-1 step at nano size (forward and backward, without the teacher), on one batch and one thread, which is
what each of `make demo`'s two processes has:

    branch by branch   what granvit does: of packed rows only the scores that are looked at (`Branches`)
    whole mask         the same by plain products of all positions of a row
    SDPA               torch's kernel with the whole mask, in encoder and language model

The arms take turns, each round in another order; a ratio is the median of the rounds' own. Losses are compared first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import nullcontext
from unittest.mock import patch

import torch
from sizes import machine, make_model, make_samples

from granvit.corpus.synthetic.scenes import sample_texts
from granvit.model.attention import PACKED, Branches
from granvit.model.packing import Batch, pack
from granvit.train.stages.pretrain import Pretrain

BRANCHES, WHOLE, SDPA = "branch by branch", "whole mask", "SDPA"
ARMS = (BRANCHES, WHOLE, SDPA)
# More scores than any row has: `Branches` then seem to be no gain.
_TOO_MANY = 1 << 62


def step(stage: Pretrain, batch: Batch, arm: str) -> tuple[float, float]:
    """Seconds, and the mean loss over answer tokens."""
    stage.model.set_attn_implementation("sdpa" if arm == SDPA else PACKED)
    stage.zero_grad()
    with nullcontext() if arm == BRANCHES else patch.object(Branches, "scores", _TOO_MANY):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = stage(batch)["caption"].total / batch.counts["answer_tokens"]
        loss.backward()
        return time.perf_counter() - start, loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--regions", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    texts = sample_texts()
    model = make_model("nano", texts, "cpu")
    stage = Pretrain(model, distill_weight=0.0).train()
    dialog = model.dialog
    samples = make_samples(model, texts, chosen.images, chosen.regions)
    batch = pack(samples, dialog.prefix_ids, dialog.image_token, dialog.pad_token)
    losses = {arm: step(stage, batch, arm)[1] for arm in ARMS}
    assert max(losses.values()) - min(losses.values()) < 1e-2 * max(losses.values()), losses
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for repeat in range(3 if chosen.quick else chosen.repeats):
        for arm in ARMS[repeat % 3 :] + ARMS[: repeat % 3]:
            times[arm].append(step(stage, batch, arm)[0])
    ratios = {
        arm: statistics.median(slow / fast for fast, slow in zip(times[BRANCHES], times[arm], strict=True))
        for arm in ARMS
    }
    print(f"{machine('cpu')}; {chosen.images} images x {chosen.regions} regions; losses {losses}")
    print(f"{'':20}{'ms, median':>12}{'range':>16}{'granvit is':>12}")
    for arm, seconds in times.items():
        spread = f"{1e3 * min(seconds):.0f} to {1e3 * max(seconds):.0f}"
        print(f"{arm:20}{1e3 * statistics.median(seconds):12.0f}{spread:>16}{ratios[arm]:11.2f}x")
    print(
        json.dumps(
            {
                "benchmark": "attention",
                "speedup": ratios,
                "milliseconds": {arm: 1e3 * statistics.median(seconds) for arm, seconds in times.items()},
                "images": chosen.images,
                "regions": chosen.regions,
                "repeats": len(times[SDPA]),
            }
        )
    )


if __name__ == "__main__":
    main()
