"""Published parts of a size for one GPU: SigLIP2-base at 256 pixels and Qwen2.5-0.5B, both stages.

    granvit train base --corpus corpora/vg=2 corpora/coco corpora/refcoco corpora/textocr --out runs/base

docs/recipes/base.md tells where these corpora come from. Micro-batches are those of a GPU with 24 GB; on one with 80 GB
add `--stages.0.loop.batch-size 32 --stages.1.loop.batch-size 16`: fewer accumulated, 256 images a step all the same.

The questions, losses, coordinates and geometry are the paper's. The rates are not: its 1e-5 is for 115,000 steps, and
an epoch of a few hundred thousand pictures has a hundredth of these, in which the projector, which starts from nothing,
would hardly move. It gets what LLaVA gives it, 1e-3; the rest 2e-5.
"""

from __future__ import annotations

from dataclasses import replace

from granvit.train.recipes.base import Recipe
from granvit.train.recipes.paper import SETTINGS, Loop, adaptation, pretraining

ENCODER = "google/siglip2-base-patch16-256"
LANGUAGE = "Qwen/Qwen2.5-0.5B-Instruct"


def base() -> Recipe:
    """The paper's two stages for one GPU of 24 or 80 GB: SigLIP2-base at 256 pixels and Qwen2.5-0.5B.

    granvit train base --corpus corpora/vg=2 corpora/coco corpora/refcoco corpora/textocr --out runs/base
    """
    first, second = pretraining(), adaptation()
    return Recipe(
        name="base",
        encoder=ENCODER,
        language=LANGUAGE,
        settings=SETTINGS,
        stages=[replace(first, loop=_one_gpu(first.loop, 8)), replace(second, loop=_one_gpu(second.loop, 4))],
    )


def _one_gpu(loop: Loop, batch_size: int) -> Loop:
    groups = {"multi_modal_projector": 50.0}
    return replace(loop, batch_size=batch_size, lr=2e-5, warmup_steps=50, optimizer_groups=groups, save_every=100)
