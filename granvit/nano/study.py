"""The controlled study at nano size: small enough for two CPU cores, on the embedded corpus."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from granvit.nano.recipes import nano
from granvit.study.arms import (
    ALPHA,
    CENTRAL,
    COMPARISONS,
    DATA,
    EQUAL_FLOPS,
    FURTHER,
    LAMBDA,
    PAPER_ARM,
    alphas,
    crops,
    lambdas,
    regions,
    shares,
)
from granvit.study.definition import Arm, Measuring, Series, Study
from granvit.train.recipes.ablations import change, encoder_from
from granvit.train.recipes.base import EmbeddedCorpus, Recipe


def study_recipe(steps: tuple[int, int] = (100, 60), batch_size: int = 8, pictures: int = 2400) -> Recipe:
    """`nano` with short stages on a small corpus, in float32 throughout, on a GPU too."""
    recipe = nano()
    recipe.corpus = EmbeddedCorpus(train=pictures, val=256, documents=0.1)
    for stage, count in zip(recipe.stages, steps, strict=True):
        stage.loop = replace(
            stage.loop,
            steps=count,
            batch_size=batch_size,
            warmup_steps=10,
            precision="fp32",
            save_every=50,
            save_keep=1,
            trackers=(),
            first_batch=False,
        )
    return recipe


def nano_study() -> Study:
    """All arms in short stages from the shipped weights: what shows within some hundred steps."""
    return Study(
        "nano",
        "Do the paper's claims hold at nano size?",
        partial(study_recipe),
        (
            *CENTRAL,
            *lambdas(0.1, 10),
            *alphas(0, 0.99, 0.999),
            *FURTHER,
            *crops(160),
            *regions(1, 4),
            *shares(8, 4, 2),
            Arm("random", "From random weights", change(encoder_from, encoder="nano-untrained")),
            *EQUAL_FLOPS,
        ),
        COMPARISONS,
        (
            LAMBDA,
            ALPHA,
            DATA,
            Series("side of the teacher's crops, px", (("64", PAPER_ARM), ("160", "crop-160"))),
            # Scenes have up to six objects, documents some more lines: 16 are all.
            Series("regions a picture", (("1", "regions-1"), ("4", "regions-4"), ("16", PAPER_ARM))),
            Series("encoder to begin with", (("random", "random"), ("warmed up", PAPER_ARM))),
        ),
        Measuring(held_out=96, probe_train=256, probe_steps=60, probes=("attribute",), attention=32),
        seconds={"stage1": 0.06, "contrast": 0.04, "stage2": 0.05, "finetune": 0.06, "measure": 20.0},
        embedded=True,
        note="Stages of 100 and 60 steps of 8 pictures, from weights that know the embedded corpus's words: this is "
        "what shows early in training. What comes late, such as a distillation that first has to settle, is not seen.",
    )


def nano_longer() -> Study:
    """The arms that the first questions rest on, in stages six and four times as many pictures long."""
    study = nano_study()
    arms = tuple(study.arm(name) for name in ("initial", "no-distillation", PAPER_ARM, "contrast", "global-only"))
    names = {arm.name for arm in arms}
    return replace(
        study,
        name="nano-longer",
        title="Do the paper's claims hold at nano size, in longer stages?",
        base=partial(study_recipe, (300, 120), 16, 4800),
        arms=arms,
        comparisons=tuple(c for c in study.comparisons if {c.first, c.second} <= names),
        series=(),
        measuring=Measuring(held_out=256, probe_train=600, probe_steps=150, probes=("attribute",), attention=64),
        note="Stages of 300 and 120 steps of 16 pictures, from weights that know the embedded corpus's words; the "
        "demo's are three times as long.",
    )
