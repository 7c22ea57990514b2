"""The controlled study at nano size: small enough for two CPU cores, on the embedded corpus."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from granvit.model.settings import Settings
from granvit.nano.recipes import nano
from granvit.nano.small import LANGUAGE
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
from granvit.study.definition import Arm, Comparison, Measuring, Series, Study
from granvit.train.recipes import ablations as by
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


def smollm2_recipe() -> Recipe:
    """One stage through a frozen SmolLM2-135M, which was not made for these pictures as nano's language model was."""
    recipe = study_recipe((120, 60), 4)
    recipe.language = LANGUAGE
    # It has no token for a place: boxes are written in digits.
    recipe.settings = Settings(codec="int1000", frame="image", fit="letterbox")
    stage_1 = recipe.stages[0]
    # The projector is fresh.
    stage_1.loop = replace(stage_1.loop, lr=5e-4, optimizer_groups={"multi_modal_projector": 2.0})
    # Nearly all time goes into the language model, question by question.
    stage_1.sample.max_regions = 2
    return recipe


def nano_smollm2() -> Study:
    """What stage 1 puts into nano's encoder through a pretrained language model: no stage 2, which would train it."""
    arms = (
        Arm("initial", "Initial encoder", by.untrained),
        Arm("contrast", "Contrast, no language model", change(by.stage_1_of, change=by.contrast)),
        Arm("global-only", "Global captions only", change(by.stage_1_of, change=by.global_only)),
        Arm("no-distillation", "Without distillation", change(by.stage_1_of, change=by.without_distillation)),
        Arm(PAPER_ARM, "Stage 1 (the paper)", change(by.stage_1_of, change=by.unchanged)),
    )
    more = "Does stage 1 put more about regions into the encoder than {}?"
    return Study(
        "nano-smollm2",
        "Do the paper's claims hold at nano size, through a pretrained language model?",
        smollm2_recipe,
        arms,
        (
            Comparison(
                more.format("it came with"),
                *("initial", PAPER_ARM, "attribute-linear", "better"),
                "fine-grained average 73.20 at first, 75.55 after stage 1 with distillation",
            ),
            Comparison(
                more.format("captions of whole images do"),
                *("global-only", PAPER_ARM, "attribute-linear", "better"),
                "no such arm",
            ),
            Comparison(
                more.format("a contrast with their texts does"),
                *("contrast", PAPER_ARM, "attribute-linear", "better"),
                "not compared; reviewers asked",
            ),
            Comparison(
                "Does the self-distillation help the encoder?",
                *("no-distillation", PAPER_ARM, "attribute-linear", "better"),
                "75.06 without, 75.55 with",
            ),
            Comparison(
                "Does the self-distillation help to describe regions?",
                *("no-distillation", PAPER_ARM, "describe", "better"),
                "75.06 without, 75.55 with",
            ),
            Comparison(
                "Does the region training cost nothing in captions of whole images?",
                *("global-only", PAPER_ARM, "caption", "not worse"),
                "not measured; slightly lower reasoning",
            ),
        ),
        (),
        Measuring(64, 256, 60, ("attribute",), 32, ("describe", "caption")),
        seconds={"stage1": 1.7, "contrast": 0.05, "measure": 150.0},
        embedded=True,
        note="One stage of 120 steps of 4 pictures, two regions of each: what shows early in training. SmolLM2 stays "
        "as it is, so there is no stage 2. Of arms that teach no answer (the initial encoder, the contrast) only the "
        "encoder is measured; captions alone teach none about boxes.",
    )
