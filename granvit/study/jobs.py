"""A study as jobs: each arm with each seed, as a chain of stages of which several jobs may have the first in common.

What a job computes is told by a digest of all the settings that decide it. A result of that digest counts as done,
wherever it was computed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from typing import Any

from granvit.errors import GranvitError
from granvit.loading.run_folder import by_content
from granvit.ranges import check_ranges
from granvit.study.definition import Arm, Study
from granvit.train.identity import cut_of, decisive, images_in_a_step
from granvit.train.recipes.base import Recipe
from granvit.train.stages.config import StageConfig

# Far apart, so that no stage of one seed draws what another stage of another seed draws.
_SEEDS_APART = 1000


@dataclass(frozen=True)
class Data:
    """What is trained on: how many images, and what tells the corpora from others (JSON-able)."""

    images: int
    facts: Any


@dataclass(frozen=True)
class Job:
    """One arm with one seed.

    Attributes:
        recipe: with its steps and micro-batches as numbers.
        share: of the training images.
        reference: where the arithmetic of another arm is matched, that arm's recipe.
        shared: how many of the stages, the first ones, other jobs of the study have too.
        measuring: what it is measured by, as plain values.
    """

    arm: Arm
    seed: int
    recipe: Recipe
    data: Data
    reference: Recipe | None
    measuring: Mapping[str, Any]
    shared: int = 0

    @property
    def name(self) -> str:
        return f"{self.arm.name}.seed{self.seed}"

    @property
    def images(self) -> int:
        """How many different training images there are for it."""
        return max(1, round(self.arm.share * self.data.images))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that decides its result, by dotted name."""
        return {**self.until(len(self.recipe.stages)), "measuring": self.measuring}

    def until(self, stages: int) -> dict[str, Any]:
        """All that decides the model after the first so many stages."""
        found = {**_settings(self.recipe, stages), "data": self.data.facts, "images": self.images}
        if self.reference is not None:
            found["flops of"] = _settings(self.reference, len(self.reference.stages))
            found["flops for"] = _settings(self.recipe, len(self.recipe.stages))
        return found

    @cached_property
    def identity(self) -> str:
        return digest(self.settings)

    @cached_property
    def links(self) -> list[str]:
        """What tells the model after each of the stages from others."""
        return [digest(self.until(n + 1)) for n in range(len(self.recipe.stages))]

    @property
    def shared_folder(self) -> str | None:
        """The folder of the stages that other jobs have too."""
        return None if not self.shared else f"{self.recipe.stages[self.shared - 1].kind}-{self.links[self.shared - 1]}"


def _settings(recipe: Recipe, stages: int) -> dict[str, Any]:
    found = decisive(recipe)
    found |= {part: _by_content(found[part]) for part in ("encoder", "language")}
    for n, stage in enumerate(recipe.stages[:stages]):
        step = {"kind": stage.kind, "images in a step": images_of_a_step(stage)}
        found |= {f"stages.{n}.{name}": value for name, value in {**decisive(stage), **step}.items()}
    return found


_by_content = cache(by_content)  # every job of a study asks about the same few parts


def images_of_a_step(stage: StageConfig) -> int:
    return images_in_a_step(cut_of(stage.loop, 1))


def digest(settings: Any) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def jobs_of(study: Study, seeds: int, data: Data) -> list[Job]:
    """All jobs of a study in the order of running: an arm's seeds together, arms in the study's order.

    Raises:
        GranvitError: a setting of an arm is out of its range; the message names both.
    """
    if seeds < 1:
        raise GranvitError(f"--seeds {seeds}: must be at least 1")
    made = [_job(study, arm, seed, data) for arm in study.arms for seed in range(seeds)]
    by_link: dict[str, set[str]] = {}
    for job in made:
        for link in job.links:
            by_link.setdefault(link, set()).add(job.identity)
    return [replace(job, shared=_shared(job, {link: len(of) for link, of in by_link.items()})) for job in made]


def _shared(job: Job, count: Mapping[str, int]) -> int:
    """How many of the first stages another job goes through too."""
    return max((n + 1 for n, link in enumerate(job.links) if count[link] > 1), default=0)


def _job(study: Study, arm: Arm, seed: int, data: Data) -> Job:
    def recipe_of(arm: Arm) -> Recipe:
        try:
            images = max(1, round(arm.share * data.images))
            recipe = seeded(arm.change(study.base()), seed).resolved(images, 1)
            check_ranges(recipe)
            for stage in recipe.stages:
                stage.check()
        except GranvitError as error:
            raise GranvitError(f"study {study.name}, arm {arm.name}: {error}") from error
        return recipe

    reference = None if arm.flops_of is None else recipe_of(study.arm(arm.flops_of))
    return Job(arm, seed, recipe_of(arm), data, reference, json.loads(json.dumps(asdict(study.measuring))))


def seeded(recipe: Recipe, seed: int) -> Recipe:
    """A recipe for a seed: of fresh weights, and of every stage's samples and random choices; the corpus stays."""
    stages = [
        replace(stage, loop=replace(stage.loop, seed=stage.loop.seed + _SEEDS_APART * seed + n))
        for n, stage in enumerate(recipe.stages)
    ]
    return replace(recipe, seed=recipe.seed + seed, stages=stages)


def stretched(recipe: Recipe, reference: Recipe, flops: Sequence[float], wanted: float) -> Recipe:
    """The recipe with as many steps that its arithmetic is that of the reference.

    The stages in which it departs from the reference get longer or shorter by one factor, all where it departs in none.

    Args:
        flops: of a step of each of its stages. wanted: of the whole reference.
    """
    same = [any(_alike(stage, other) for other in reference.stages) for stage in recipe.stages]
    varied = [not s for s in same] if not all(same) else [True] * len(same)
    cost = [step * stage.loop.steps for step, stage in zip(flops, recipe.stages, strict=True)]
    fixed = math.fsum(c for c, v in zip(cost, varied, strict=True) if not v)
    factor = (wanted - fixed) / math.fsum(c for c, v in zip(cost, varied, strict=True) if v)
    if factor <= 0:
        raise GranvitError(f"{recipe.name}: what it has in common with the reference takes more arithmetic than that")
    stages = [
        replace(stage, loop=replace(stage.loop, steps=max(1, round(factor * stage.loop.steps)))) if v else stage
        for stage, v in zip(recipe.stages, varied, strict=True)
    ]
    return replace(recipe, stages=stages)


def _alike(stage: StageConfig, other: StageConfig) -> bool:
    """Whether two stages are the same but for their seeds, which go by their place."""
    return stage.kind == other.kind and all(
        value == decisive(other).get(name) for name, value in decisive(stage).items() if name != "loop.seed"
    )


def work(study: Study, job: Job, done: set[str]) -> float:
    """Roughly the seconds that a job takes, by what the study knows; images alone where it knows nothing.

    Args:
        done: the links that need no training any more.
    """
    known = study.seconds
    seconds = known.get("measure", 0.0)
    for stage, link in zip(job.recipe.stages, job.links, strict=True):
        if link not in done:
            seconds += stage.loop.steps * images_of_a_step(stage) * known.get(stage.kind, 1.0)
    return seconds


def remaining_work(study: Study, jobs: Sequence[Job]) -> list[float]:
    """`work` of each job where they run in this order, stages in common counted at the first."""
    done: set[str] = set()
    found = []
    for job in jobs:
        found.append(work(study, job, done))
        done |= set(job.links[: job.shared])
    return found


def same_results(jobs: Sequence[Job]) -> list[str]:
    """Arms that are another arm under a second name, which would be counted twice."""
    arms = {job.identity: job.arm.name for job in reversed(jobs) if job.seed == 0}
    twice = Counter(job.identity for job in jobs if job.seed == 0)
    return [f"{job.arm.name} is {arms[job.identity]}" for job in jobs if twice[job.identity] > 1 and job.seed == 0]
