"""What training on a corpus of Gran-29M's size takes: parameters, arithmetic, memory, GPU-hours, network and disk.

    python benchmarks/cluster_plan.py [--gpus 32] [--peak 989e12] [--mfu 0.4] [--regions 6.22] [--kilobytes 150]

Counted from the architectures' shapes (no weights are needed or made): parameters, and the arithmetic of one image
with its questions, by the same code that gives a run its MFU. Assumed, and to be replaced by your own: the MFU, what
texts and images are like. Nothing here is a measurement.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from sizes import QWEN_1_5B, qwen, so400m
from torch import nn
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, PretrainedConfig

from granvit.model.distill import Teacher
from granvit.model.families import trained_parameters
from granvit.model.packing import Batch, Branch, Sample, pack
from granvit.train.stages.base import Stage
from granvit.train.timing import StepFlops

IMAGES, PEAK = 29.51e6, 989e12  # Gran-29M; an H100's dense bfloat16, FLOP/s
# Tokens of a question and of its answer. The questions are the paper's, the coordinates three decimals each; how long
# captions are is assumed.
GLOBAL, REGION, PLACE = (28, 150), (68, 12), (45, 30)
BEFORE = 20  # what a chat template puts before the image

ENCODER = so400m()
LANGUAGES: dict[str, PretrainedConfig] = {
    "Qwen2.5-1.5B": qwen(*QWEN_1_5B),
    "Qwen2.5-3B": qwen(2048, 36, 16, 2, 11_008),
    "Qwen2.5-7B": qwen(3584, 28, 28, 4, 18_944, 152_064, tied=False),
    "Llama-3-8B": LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    ),
}


class Planned(Stage):
    """Stage 1 or stage 2 as shapes alone: what trains, and whether there is a teacher."""

    def __init__(self, language: PretrainedConfig, stage: int):
        super().__init__()
        config = LlavaConfig(vision_config=ENCODER, text_config=language, vision_feature_select_strategy="full")
        with torch.device("meta"):
            self.model = LlavaForConditionalGeneration(config).requires_grad_(False)
        inner = self.model.model
        self.teacher = Teacher(inner.vision_tower) if stage == 1 else None
        learning = trained_parameters(inner.vision_tower) if stage == 1 else [*parameters(inner.language_model)]
        for parameter in (*learning, *parameters(inner.multi_modal_projector)):
            parameter.requires_grad_(True)
        if stage == 2:
            self.model.lm_head.requires_grad_(True)


def parameters(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters())


def image(stage: int, regions: int) -> Batch:
    """One image with its questions; its pixels are shapes, its texts counts."""
    lengths = [GLOBAL, *[(REGION, PLACE)[stage - 1]] * regions]
    branches = [Branch([2] * (question + answer), question, "global") for question, answer in lengths]
    patches = (ENCODER.image_size // ENCODER.patch_size) ** 2
    batch = pack([Sample("one", branches)], [1] * BEFORE + [0] * patches, image_token=0, pad_token=3)
    side = ENCODER.image_size
    batch.pixels = torch.empty(1, side, side, 3, device="meta")
    batch.crops = torch.empty(regions, side, side, 3, device="meta") if stage == 1 else None
    return batch


@dataclass
class Plan:
    """One stage: parameters in all and of those that train, the arithmetic of one image, FLOP by section."""

    all: int
    trains: int
    parts: dict[str, float]

    @classmethod
    def of(cls, language: PretrainedConfig, stage: int, regions: float) -> Plan:
        planned = Planned(language, stage)
        few, more = (StepFlops(planned).parts(image(stage, n)) for n in (int(regions), int(regions) + 1))
        parts = {name: few[name] + (regions % 1) * (more[name] - few[name]) for name in few}
        every = {id(p): p for p in planned.parameters()}.values()
        return cls(sum(p.numel() for p in every), sum(p.numel() for p in every if p.requires_grad), parts)

    @property
    def flops(self) -> float:
        return sum(self.parts.values())

    @property
    def state(self) -> float:
        """Bytes of weights, gradients and AdamW's two moments, in float32."""
        return 4 * self.all + 12 * self.trains

    @property
    def checkpoint(self) -> float:
        """Bytes: the same without gradients."""
        return 4 * self.all + 8 * self.trains

    def traffic(self, parallel: str, gpus: int) -> float:
        """Bytes that each GPU sends (and receives): per step with ddp, per micro-batch with fsdp."""
        gradients = 4 * self.trains
        sent = 2 * gradients if parallel == "ddp" else 2 * 2 * self.all + gradients
        return sent * (gpus - 1) / gpus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=32)
    parser.add_argument("--peak", type=float, default=PEAK, help="of one GPU, FLOP/s in bfloat16")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of it that is reached (assumed)")
    parser.add_argument("--regions", type=float, default=6.22, help="of an image (183.55 M of 29.51 M)")
    parser.add_argument("--kilobytes", type=float, default=150, help="of an image on the disk (assumed)")
    chosen = parser.parse_args()
    rate = chosen.peak * chosen.mfu
    print("| stage | parameters | train | TFLOP/image | images/s per GPU | GPU-hours | state, ddp | state, fsdp |")
    print("|---|---|---|---|---|---|---|---|")
    wanted = [(1, "Qwen2.5-1.5B"), *((2, name) for name in LANGUAGES)]
    plans = {f"{stage}, {name}": Plan.of(LANGUAGES[name], stage, chosen.regions) for stage, name in wanted}
    for name, plan in plans.items():
        hours = IMAGES * plan.flops / rate / 3600
        size = f"{plan.all / 1e9:.2f} B | {plan.trains / 1e9:.2f} B | {plan.flops / 1e12:.1f}"
        memory = f"{plan.state / 1e9:.0f} GB | {plan.state / 1e9 / chosen.gpus:.1f} GB"
        print(f"| {name} | {size} | {rate / plan.flops:.1f} | {hours:,.0f} | {memory} |")
    print("\n| stage | sent per GPU, ddp (a step) | fsdp (a micro-batch) | checkpoint | read from disk, all GPUs |")
    print("|---|---|---|---|---|")
    for name, plan in plans.items():
        ddp, fsdp = (plan.traffic(parallel, chosen.gpus) / 1e9 for parallel in ("ddp", "fsdp"))
        read = chosen.gpus * rate / plan.flops * chosen.kilobytes / 1e3
        print(f"| {name} | {ddp:.1f} GB | {fsdp:.1f} GB | {plan.checkpoint / 1e9:.0f} GB | {read:.0f} MB/s |")
    first = plans["1, Qwen2.5-1.5B"]
    shares = ", ".join(f"{name} {part / first.flops:.0%}" for name, part in first.parts.items())
    print(f"\nStage 1 by section: {shares}. The corpus: {IMAGES * chosen.kilobytes / 1e9:.1f} TB.")


if __name__ == "__main__":
    main()
