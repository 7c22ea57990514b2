"""The sizes at which benchmarks run: untrained models, made on the spot.

    nano    what two CPU cores train: encoder 5 layers x 160 on a 160-pixel canvas, language model 4 layers x 128
    paper   the paper's shapes: SigLIP2 so400m, 16-pixel patches at 512 pixels, and Qwen2.5-1.5B, boxes in decimals

Weights are random, and both speak the small tokenizer of `nano`, so nothing is downloaded. Its vocabulary has a
thousand tokens, where Qwen's texts would be shorter; the head of `paper` is as wide as Qwen's.
"""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import numpy as np
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import Qwen2ForCausalLM, SiglipVisionModel

from granvit.coordinates import get_codec
from granvit.model.assemble import assemble
from granvit.model.packing import Batch, Branch, Sample
from granvit.model.region_model import RegionModel, Settings
from granvit.nano.models import nano_encoder, nano_language, train_tokenizer
from granvit.questions import box_exchange, caption_exchange
from granvit.train.recipes.base import cpu_precision
from granvit.train.recipes.paper import ENCODER, LANGUAGE
from granvit.train.shapes import published
from granvit.train.stages.base import AnsweringStage

Size = Literal["nano", "paper"]
SIZES: tuple[Size, ...] = ("nano", "paper")


def make_model(size: Size, texts: list[str], device: str, language: str | None = None) -> RegionModel:
    """An untrained model in float32 on a device; with `language`, a folder, through that language model."""
    torch.manual_seed(0)
    if language is not None:
        encoder = nano_encoder() if size == "nano" else SiglipVisionModel(published(ENCODER))
        return assemble(encoder, language, Settings("int1000"))
    codec = get_codec("loc:80" if size == "nano" else "decimal")
    tokenizer = train_tokenizer(texts, 1024, codec)
    with torch.device(device):  # a CPU takes minutes to draw two billion random weights
        if size == "nano":
            return assemble(nano_encoder(), (nano_language(tokenizer, codec), tokenizer), Settings(codec.spec))
        config = published(LANGUAGE)
        config.eos_token_id = tokenizer.eos_token_id
        language = Qwen2ForCausalLM(config)
        return assemble(SiglipVisionModel(published(ENCODER)), (language, tokenizer), Settings(codec.spec))


def make_samples(
    model: RegionModel,
    texts: list[str],
    images: int,
    regions: int,
    locate: bool = False,
    crops: int = 0,
    crop_size: int = 0,
) -> list[Sample]:
    """Random canvases, each with `regions` random boxes and captions (asked for, or to be found: `locate`)."""
    rng = np.random.default_rng(regions)
    captions = [t for t in texts if len(t) < 40]
    ask = box_exchange if locate else caption_exchange

    def branch() -> Branch:
        box = np.sort(rng.random((2, 2)), axis=0).ravel()
        return model.dialog.branch(ask(box, str(rng.choice(captions)), model.codec))

    def picture(*shape: int) -> np.ndarray:
        return rng.integers(0, 256, (*shape, 3), dtype=np.uint8)

    samples = []
    for i in range(images):
        corners = np.sort(rng.uniform(0, model.canvas, (crops, 2, 2)), axis=1) + [[0], [4]]
        samples.append(
            Sample(
                f"{i}",
                [branch() for _ in range(regions)],
                picture(model.canvas, model.canvas),
                picture(crops, crop_size, crop_size),
                corners.reshape(crops, 4).astype(np.float32),
                digests=[f"{regions}-{i}"],
            )
        )
    return samples


def autocast(device: str) -> AbstractContextManager[object]:
    """bfloat16 where training has it, on a GPU."""
    return torch.autocast("cuda", torch.bfloat16) if device == "cuda" else nullcontext()


def train_step(stage: AnsweringStage, batch: Batch, optimizer: Optimizer, schedule: LRScheduler) -> float:
    """A step of a stage with one loss, as the loop takes it on this CPU; the loss, nats per token."""
    with torch.autocast("cpu", torch.bfloat16) if cpu_precision() == "bf16" else nullcontext():
        (term,) = stage(batch).values()
    loss = term.total / batch.counts[term.count]
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in stage.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
    return loss.item()


def machine(device: str) -> str:
    """What a benchmark ran on."""
    processor = f"{platform.machine()}, {torch.get_num_threads()} threads"
    return f"{torch.cuda.get_device_name() if device == 'cuda' else processor}, torch {torch.__version__}"
