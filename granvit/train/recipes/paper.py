"""The paper's recipe on its own encoder and language model, for a machine of several GPUs or many such machines.

    torchrun --nproc-per-node 8 -m granvit train paper --corpus corpora/gran --out runs/paper
    torchrun --nproc-per-node 8 -m granvit train paper-transfer --encoder runs/paper/checkpoint \\
        --language Qwen/Qwen2.5-7B-Instruct --corpus corpora/gran --out runs/paper-7b

Several machines: add `--nnodes 4 --rdzv-backend c10d --rdzv-endpoint HOST:29500` on each. `--encoder` and `--language`
take a directory or a hub name. 256 images make a step on any number of GPUs: what the batches of all processes leave
missing is accumulated. One epoch of the corpus is as many steps as it has images over 256; `--stages.0.loop.steps 1000`
says otherwise. `--stages.0.loop.batch-size` is images per GPU and micro-batch, a matter of memory alone.

What the paper states is taken as stated: AdamW, lr 1e-5, one epoch, lambda 1, alpha 0.9, the questions of each stage,
decimal coordinates relative to the image, which is padded to the canvas. What it leaves open is chosen here: a cosine
after 100 steps of warm-up, no weight decay, gradients clipped at 1, up to 16 regions of an image each time it is seen
(a page of text has hundreds), the teacher's crops at the canvas's own resolution.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from granvit.model.settings import Settings
from granvit.questions import Task
from granvit.train.config import CachingLoop, CroppedSample, LoopConfig, SampleConfig
from granvit.train.recipes.base import Recipe
from granvit.train.stages.config import AdaptConfig, PretrainConfig

ENCODER = "google/siglip2-so400m-patch16-512"
LANGUAGE = "Qwen/Qwen2.5-1.5B-Instruct"
LARGER_LANGUAGE = "Qwen/Qwen2.5-7B-Instruct"
SETTINGS = Settings(codec="decimal", frame="image", fit="letterbox")
REGIONS = 16
# Tokens: the captions of whole images are paragraphs.
LONGEST_ANSWER = 256

Loop = TypeVar("Loop", bound=LoopConfig)


def _loop(kind: type[Loop]) -> Loop:
    """One epoch in steps of `StageConfig.images_per_step` images (both follow from the corpus and the processes)."""
    return kind(steps=0, accumulate=0, batch_size=4, lr=1e-5, warmup_steps=100, precision="bf16", save_every=500)


def pretraining() -> PretrainConfig:
    """Stage 1: Global and Bbox2Caption through the frozen language model, and localized self-distillation."""
    sample = CroppedSample(
        {"global": 1.0, "bbox2caption": 1.0},
        max_regions=REGIONS,
        max_answer=LONGEST_ANSWER,
        crops=REGIONS,
        draw_crops=True,
    )
    return PretrainConfig(sample, _loop(LoopConfig), distill_weight=1.0, alpha=0.9)


def adaptation() -> AdaptConfig:
    """Stage 2: Global and Caption2Bbox, the encoder frozen."""
    questions: dict[Task, float] = {"global": 1.0, "bbox2caption": 0.0, "caption2bbox": 1.0}
    sample = SampleConfig(questions, max_regions=REGIONS, max_answer=LONGEST_ANSWER)
    return AdaptConfig(sample, _loop(CachingLoop))


def transfer() -> AdaptConfig:
    """Stage 2 for a language model of billions of parameters, spread over all GPUs and its blocks computed anew."""
    stage = adaptation()
    return replace(stage, loop=replace(stage.loop, parallel="fsdp", gradient_checkpointing=("language",)))


def paper() -> Recipe:
    """The paper's two stages: SigLIP2 so400m at 512 pixels and Qwen2.5-1.5B, on a corpus of your own.

    torchrun --nproc-per-node 8 -m granvit train paper --corpus corpora/gran --out runs/paper
    """
    return Recipe("paper", ENCODER, LANGUAGE, SETTINGS, [pretraining(), adaptation()])


def paper_transfer() -> Recipe:
    """Stage 2 anew with a larger language model (3B, 7B, Llama-3-8B): fresh projector, the encoder of `paper`.

    torchrun --nproc-per-node 8 -m granvit train paper-transfer --encoder runs/paper/checkpoint \\
        --language meta-llama/Meta-Llama-3-8B-Instruct --corpus corpora/gran --out runs/paper-llama

    `granvit transfer RUN --llm NAME` is the same stage with the coordinates and geometry of any RUN.
    """
    return Recipe("paper-transfer", "runs/paper/checkpoint", LARGER_LANGUAGE, SETTINGS, [transfer()])
