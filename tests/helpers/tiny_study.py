"""A study of two arms and two seeds that runs in seconds, on eight drawn pictures; arms that fail on purpose."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from helpers.tiny_recipe import tiny_recipe

from granvit.errors import GranvitError
from granvit.study.definition import Arm, Comparison, Measuring, Series, Study
from granvit.train.recipes import ablations as by
from granvit.train.recipes.base import EmbeddedCorpus, Recipe


def base(parts: Path, steps: int) -> Recipe:
    recipe = tiny_recipe(parts, steps)
    recipe.corpus = EmbeddedCorpus(train=12, val=6, size=64, documents=0.0)
    for stage in recipe.stages:
        stage.loop = replace(stage.loop, trackers=(), first_batch=False, save_every=5, timing=False)
        stage.sample.max_answer = 6
    return recipe


def impossible(recipe: Recipe) -> Recipe:
    """An arm that fails when it begins: there is no such encoder."""
    return replace(recipe, encoder=str(Path(recipe.encoder).with_name("absent")))


def tiny_study(parts: Path, steps: int = 20, arms: tuple[Arm, ...] = ()) -> Study:
    """`parts` as `tiny_recipe.save_parts` leaves them."""
    return Study(
        "tiny",
        "A study of nothing",
        partial(base, parts, steps),
        (Arm("initial", "Initial", by.initial), Arm("stage1", "Stage 1"), *arms),
        (Comparison("Does it help?", "initial", "stage1", "describe", "better", "it does"),),
        (Series("stages", (("1", "initial"), ("2", "stage1"))),),
        Measuring(held_out=6, probe_train=12, probe_steps=10, probes=(), attention=2, tasks=("describe", "locate")),
        embedded=True,
    )


def main() -> None:
    """`PARTS OUT STEPS`: run the study, to be killed from outside, or by ranks of torchrun; a line for each job."""
    from granvit.study.jobs import Data, jobs_of
    from granvit.study.runner import run_jobs
    from granvit.study.worker import Place, do_together

    study = tiny_study(Path(sys.argv[1]), int(sys.argv[3]))
    jobs = jobs_of(study, 2, Data(12, "drawn"))
    place = Place(Path(sys.argv[2]), (), "cpu", False)
    if "WORLD_SIZE" in os.environ:
        raise SystemExit(do_together(study, jobs, place))
    raise SystemExit(bool(run_jobs(study, jobs, place, 1).failed))


if __name__ == "__main__":
    try:
        main()
    except GranvitError as error:
        raise SystemExit(str(error)) from error
