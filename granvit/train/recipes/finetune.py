"""The paper's third step: instruction data and region questions in one mixture, from a model that both stages made.

    torchrun --nproc-per-node 8 -m granvit train finetune --init runs/paper --corpus corpora/instruct=3 corpora/gran \\
        --out runs/finetuned

`--init` names the run or checkpoint to go on from: its parts, coordinates and geometry. Corpora are mixed by weight; of
each picture the conversations and, in the checkpoint's own coordinates, all three questions are asked side by side.

What the paper states is taken as stated: 128 images a step, lr 2e-5, one epoch. What it leaves open is chosen here: a
cosine after 30 steps of warm-up, no weight decay, gradients clipped at 1, the encoder frozen
(`--stages.0.train-encoder` trains it too), rows of at most 4,096 tokens, which short conversations without a picture
share with others.
"""

from __future__ import annotations

from granvit.questions import Task
from granvit.train.config import ConversationSample, LoopConfig
from granvit.train.recipes.base import FROM_INIT, Recipe
from granvit.train.recipes.paper import LONGEST_ANSWER, REGIONS, SETTINGS
from granvit.train.stages.config import FinetuneConfig

QUESTIONS: dict[Task, float] = {"global": 1.0, "bbox2caption": 1.0, "caption2bbox": 1.0}


def finetuning() -> FinetuneConfig:
    """Conversations and all three questions; projector and language model learn."""
    return FinetuneConfig(
        ConversationSample(QUESTIONS, max_regions=REGIONS, max_answer=LONGEST_ANSWER, max_tokens=4096),
        LoopConfig(steps=0, accumulate=0, batch_size=4, lr=2e-5, warmup_steps=30, save_every=500),
        images_per_step=128,
    )


def finetune() -> Recipe:
    """Supervised fine-tuning on conversations and region questions, from a trained model that --init names.

    granvit train finetune --init runs/paper --corpus corpora/instruct=3 corpora/gran --out runs/finetuned
    """
    return Recipe("finetune", FROM_INIT, FROM_INIT, SETTINGS, [finetuning()])
