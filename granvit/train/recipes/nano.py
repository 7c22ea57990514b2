"""The smallest complete experiment: minutes on two CPU cores.

    granvit demo                          both stages on the embedded corpus, with evaluation and a report
    granvit train nano --corpus DIR       the same on a corpus of your own
    granvit train nano-paper              stage 2 in the paper's plain form (see `nano_paper`)
    granvit train nano-language           make the shipped language model again (about an hour)

The encoder (5 layers, 160 wide, 16-pixel patches on a 160-pixel canvas) starts from nothing; the language model (4
layers, 128 wide, one token per coordinate bin) is the shipped one that `nano_language_warmup` made.
"""

from __future__ import annotations

from granvit.model.region_model import Settings
from granvit.train.config import LoopConfig
from granvit.train.prepare import SampleConfig
from granvit.train.recipes.base import EmbeddedCorpus, Recipe, StageRecipe

BINS = 80
SETTINGS = Settings(codec=f"loc:{BINS}", frame="image", fit="letterbox")


def nano_language_warmup() -> Recipe:
    """`LanguageWarmup` of the shipped language model, on symbolic images of the embedded corpus.

    All three questions, and parts of phrases ("red star" where there is but one), without which a small model is
    slow to learn that a phrase is a conjunction.
    """
    return Recipe(
        name="nano-language",
        encoder="nano",
        language="nano-untrained",
        settings=SETTINGS,
        corpus=EmbeddedCorpus(train=200_000, val=200, seed=7),
        stages=[
            StageRecipe(
                "warmup",
                SampleConfig({"global": 0.3, "bbox2caption": 1.0, "caption2bbox": 1.0}, subphrases=1.0, symbolic=True),
                LoopConfig(
                    steps=5000,
                    batch_size=16,
                    lr=2e-3,
                    min_lr_ratio=0.05,
                    warmup_steps=200,
                    weight_decay=0.05,
                    betas=(0.9, 0.98),
                    precision="bf16",
                    save_every=500,
                ),
                smoothing=1.0,
            )
        ],
    )
