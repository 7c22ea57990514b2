"""The arms and the questions of the controlled study, for any recipe of two stages; the study at the paper's size."""

from __future__ import annotations

from granvit.study.definition import Arm, Comparison, Measuring, Series, Study
from granvit.train.recipes import ablations as by
from granvit.train.recipes.ablations import change
from granvit.train.recipes.paper import paper

PAPER_ARM = "stage1"

# In the order of running: first what the questions rest on.
CENTRAL: tuple[Arm, ...] = (
    Arm("initial", "Initial encoder", by.initial),
    Arm("global-only", "Global captions only", by.global_only),
    Arm("no-distillation", "Stage 1 without distillation", by.without_distillation),
    Arm(PAPER_ARM, "Stage 1 (the paper)", by.unchanged),
    Arm("contrast", "Contrast, no language model", by.contrast),
    Arm("merged", "Stages merged", by.merged),
    Arm("other-order", "Stages in the other order", by.other_order),
    Arm("encoder-trained", "Encoder trained in stage 2", by.encoder_trained),
    Arm("stage1-alone", "Stage 1, no stage 2", by.stage_1_alone),
)


def lambdas(*values: float) -> tuple[Arm, ...]:
    """Other weights of the distillation."""
    return tuple(Arm(f"lambda-{v:g}", f"lambda {v:g}", change(by.distilled_by, distill_weight=v)) for v in values)


def alphas(*values: float) -> tuple[Arm, ...]:
    """Teachers that keep more or less of themselves."""
    return tuple(Arm(f"alpha-{v:g}", f"alpha {v:g}", change(by.distilled_by, alpha=v)) for v in values)


def crops(*sides: int) -> tuple[Arm, ...]:
    """Teachers that see their crops at other sizes, in pixels."""
    return tuple(Arm(f"crop-{s}", f"Crops of {s} px", change(by.crops_of, side=s)) for s in sides)


def regions(*counts: int) -> tuple[Arm, ...]:
    """At most so many regions of an image asked about at a time."""
    return tuple(Arm(f"regions-{n}", f"{n} a picture", change(by.regions_at_most, count=n)) for n in counts)


def shares(*parts: int) -> tuple[Arm, ...]:
    """A part of the images, each seen the oftener."""
    return tuple(Arm(f"data-1-{n}", f"1/{n} of the images", share=1 / n) for n in parts)


FURTHER: tuple[Arm, ...] = (
    Arm("distillation-alone", "Distillation alone", by.distillation_alone),
    Arm("both-directions", "Both question directions in stage 1", by.both_directions),
)

# Arms whose arithmetic differs most from the paper's at equal images, brought to the same.
EQUAL_FLOPS: tuple[Arm, ...] = (
    Arm("global-only.flops", "Global captions only, equal FLOPs", by.global_only, flops_of=PAPER_ARM),
    Arm("no-distillation.flops", "Without distillation, equal FLOPs", by.without_distillation, flops_of=PAPER_ARM),
    Arm("contrast.flops", "Contrast, equal FLOPs", by.contrast, flops_of=PAPER_ARM),
    Arm("merged.flops", "Stages merged, equal FLOPs", by.merged, flops_of=PAPER_ARM),
    Arm("encoder-trained.flops", "Encoder trained in stage 2, equal FLOPs", by.encoder_trained, flops_of=PAPER_ARM),
)

LAMBDA = Series(
    "lambda, the weight of the distillation",
    (("0", "no-distillation"), ("0.1", "lambda-0.1"), ("1", PAPER_ARM), ("10", "lambda-10")),
)
ALPHA = Series(
    "alpha, what the teacher keeps of itself",
    (("0", "alpha-0"), ("0.9", PAPER_ARM), ("0.99", "alpha-0.99"), ("0.999", "alpha-0.999")),
)
DATA = Series("share of the images", (("1/8", "data-1-8"), ("1/4", "data-1-4"), ("1/2", "data-1-2"), ("1", PAPER_ARM)))

COMPARISONS: tuple[Comparison, ...] = (
    Comparison(
        "Does stage 1 put more about regions into the encoder than it came with?",
        *("initial", PAPER_ARM, "attribute-linear", "better"),
        "fine-grained average 73.20 at first, 75.55 after stage 1 with distillation",
    ),
    Comparison(
        "Is it the region questions, not just more captions of whole images?",
        *("global-only", PAPER_ARM, "attribute-linear", "better"),
        "no such arm",
    ),
    Comparison(
        "Does stage 1 help to describe regions, after the same stage 2?",
        *("initial", PAPER_ARM, "describe", "better"),
        "Bbox2Caption ROUGE-L 52 % after stage 1",
    ),
    Comparison(
        "Does the self-distillation help?",
        *("no-distillation", PAPER_ARM, "describe", "better"),
        "75.06 without, 75.55 with",
    ),
    Comparison(
        "Is a language model needed: does it supervise regions better than a contrast with their texts?",
        *("contrast", "no-distillation", "describe", "better"),
        "not compared; reviewers asked",
    ),
    Comparison(
        "Are two stages better than one of everything?",
        *("merged", PAPER_ARM, "locate-iou", "better"),
        "not compared; reviewers asked",
    ),
    Comparison(
        "Must they come in this order?",
        *("other-order", PAPER_ARM, "locate-iou", "better"),
        "not compared; reviewers asked",
    ),
    Comparison(
        "Does freezing the encoder in stage 2 cost nothing?",
        *("encoder-trained", PAPER_ARM, "locate-iou", "not worse"),
        "no loss, 24 % fewer FLOPs",
    ),
    Comparison(
        "Is stage 2 what teaches to find regions?",
        *("stage1-alone", PAPER_ARM, "locate-iou", "better"),
        "Caption2Bbox Acc@0.5 13 % after stage 1, 55 % after stage 2",
    ),
    Comparison(
        "Does stage 2 keep what stage 1 taught to describe?",
        *("stage1-alone", PAPER_ARM, "describe", "not worse"),
        "ROUGE-L rises by another 3 points",
    ),
    Comparison(
        "Do answers get more about the box itself, and not just the picture?",
        *("initial", PAPER_ARM, "distinct", "better"),
        "not measured",
    ),
    Comparison(
        "Does the region training cost nothing in captions of whole images?",
        *("global-only", PAPER_ARM, "caption", "not worse"),
        "not measured; slightly lower reasoning",
    ),
    Comparison(
        "Is lambda 1 better than 0.1?", *("lambda-0.1", PAPER_ARM, "describe", "better"), "best at 1 of 0.1, 1, 10"
    ),
    Comparison(
        "Is lambda 1 better than 10?", *("lambda-10", PAPER_ARM, "describe", "better"), "best at 1 of 0.1, 1, 10"
    ),
    Comparison(
        "Is alpha 0.9 better than a teacher that hardly moves (0.999)?",
        *("alpha-0.999", PAPER_ARM, "describe", "better"),
        "best at 0.9",
    ),
)


def paper_study() -> Study:
    """The same definitions at the paper's size, on a corpus of your own."""
    return Study(
        "paper",
        "The controlled study at the paper's size",
        paper,
        (
            *CENTRAL,
            *lambdas(0.1, 10),
            *alphas(0, 0.99, 0.999),
            *FURTHER,
            *crops(224),
            *regions(1, 4),
            *shares(8, 4, 2),
            *EQUAL_FLOPS,
        ),
        COMPARISONS,
        (LAMBDA, ALPHA, DATA, Series("regions a picture", (("1", "regions-1"), ("4", "regions-4"), ("16", PAPER_ARM)))),
        Measuring(2000, 2000, 600, ("attribute", "label", "read"), 500, ("describe", "locate", "caption", "read")),
    )
