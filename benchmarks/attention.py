"""Training in bfloat16 on a CPU: attention by plain products, against torch's own SDPA.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/attention.py [--images 8] [--regions 8] [--repeats 15] [--quick]

Timed is a stage-1 step at nano size (forward and backward, without the teacher), on one batch and one thread, which is
what each of `make demo`'s two processes has. The arms take turns. Both losses are compared first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from sizes import machine, make_model, make_samples

from granvit.corpus.synthetic import sample_texts
from granvit.model.attention import PACKED
from granvit.model.packing import Batch, pack
from granvit.train.stages import Pretrain

ARMS = {"plain products": PACKED, "SDPA": "sdpa"}


def step(stage: Pretrain, batch: Batch, arm: str) -> tuple[float, float]:
    """Seconds, and the mean loss over answer tokens."""
    stage.model.set_attn_implementation(ARMS[arm])
    stage.zero_grad()
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
        for arm in list(ARMS)[:: 1 if repeat % 2 else -1]:
            times[arm].append(step(stage, batch, arm)[0])
    ratios = [slow / fast for fast, slow in zip(times["plain products"], times["SDPA"], strict=True)]
    print(f"{machine('cpu')}; {chosen.images} images x {chosen.regions} regions; losses {losses}")
    print(f"{'':20}{'ms, median':>12}{'range':>16}")
    for arm, seconds in times.items():
        spread = f"{1e3 * min(seconds):.0f} to {1e3 * max(seconds):.0f}"
        print(f"{arm:20}{1e3 * statistics.median(seconds):12.0f}{spread:>16}")
    print(
        json.dumps(
            {
                "benchmark": "attention",
                "speedup_over_sdpa": statistics.median(ratios),
                "range": [min(ratios), max(ratios)],
                "milliseconds": {arm: 1e3 * statistics.median(seconds) for arm, seconds in times.items()},
                "images": chosen.images,
                "regions": chosen.regions,
                "repeats": len(ratios),
            }
        )
    )


if __name__ == "__main__":
    main()
