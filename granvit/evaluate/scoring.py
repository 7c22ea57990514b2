"""From answered questions to scores: measures with their intervals, and what the best constant answer would reach."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from granvit.bootstrap import enough_images, estimate, resampled_sums
from granvit.evaluate import metrics
from granvit.evaluate.items import Item, Task
from granvit.evaluate.measures import LESS_IS_BETTER, SCORERS, Items, Measure, Scorer, Table


@dataclass
class Scores:
    """The scores of one task: values, 95 % intervals over images, and what the best single answer would reach.

    `drawn` holds the main measure in every drawing of images, (DRAWS,); empty where there is but one image. `undefined`
    says why a measure has no value here.
    """

    values: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    constant: dict[str, float] = field(default_factory=dict)
    drawn: Table = field(default_factory=lambda: np.empty(0))
    undefined: dict[str, str] = field(default_factory=dict)


def score(task: Task, items: Items, images: Sequence[str] | None = None, seed: int = 0) -> Scores:
    """All measures of a task, with "count" among the values.

    A measure that has no value here (precision where nothing was answered yes) is left out of the values.

    Args:
        images: the ids to draw from; those of `items` by default. Tasks with the same ones and seed are drawn together.

    Raises:
        ValueError: there are no items.
    """
    scorer = SCORERS[task.scorer]
    scores = Scores()
    images = images or list(dict.fromkeys(item.id for item in items))
    for name, measure in scorer.measures.items():
        table_ik = by_image(measure.each(items), items, images)
        drawn = draws(measure, table_ik, seed)
        told = estimate(float(measure.value(table_ik.sum(0))), drawn[~np.isnan(drawn)])
        if told is not None:
            scores.values[name] = told.value
            if told.low is not None and told.high is not None:
                scores.intervals[name] = (told.low, told.high)
        else:
            scores.undefined[name] = measure.undefined
        if name == scorer.main:
            scores.drawn = drawn
    scores.values["count"] = float(len(items))
    scores.constant = constant(scorer, items)
    return scores


def draws(measure: Measure, table: Table, seed: int) -> Table:
    """A measure in every drawing of images, (DRAWS,): of a table (images, K), equal tables drawn alike by a seed.

    Nothing where fewer than two images count.
    """
    if not enough_images(table.any(axis=1)):
        return np.empty(0)
    return measure.value(resampled_sums(table, seed))


def by_image(table: Table, items: Items, images: Sequence[str]) -> Table:
    """(N questions, K) -> (images, K)."""
    order = {name: i for i, name in enumerate(images)}
    sums = np.zeros((len(order), table.shape[1]))
    np.add.at(sums, [order[item.id] for item in items], table)
    return sums


def constant(scorer: Scorer, items: Items) -> dict[str, float]:
    """What the best single answer to all questions scores, measure by measure.

    Candidates are the 50 most frequent right answers; for boxes see `metrics.best_constant_box`.
    """
    if scorer is SCORERS["boxes"]:
        scale = np.array([[*item.size, *item.size] for item in items], dtype=float)
        return metrics.best_constant_box(np.array([item.box for item in items]) / scale, thresholds=(0.5, 0.75))
    best: dict[str, float] = {}
    # Questions with equal right answers are scored once.
    groups = list(Counter(_Same.of(item) for item in items).items())
    unique = [replace(group.item) for group, _ in groups]
    times = np.array([[count] for _, count in groups], dtype=float)
    for answer, _ in Counter(item.truth[0] for item in items).most_common(50):
        for item in unique:
            item.said = answer
        for name in scorer.constants:
            measure = scorer.measures[name]
            value = float(measure.value((times * measure.each(unique)).sum(0)))
            better = min if name in LESS_IS_BETTER else max
            best[name] = better(best.get(name, value), value)
    return best


@dataclass(frozen=True)
class _Same:
    """Questions that any answer scores alike on."""

    truth: tuple[str, ...]
    options: tuple[str, ...]
    kind: str
    image: str
    item: Item = field(compare=False)

    @classmethod
    def of(cls, item: Item) -> _Same:
        # What is chosen from options may count image by image.
        return cls(tuple(item.truth), tuple(item.options), item.kind, item.id if item.options else "", item)
