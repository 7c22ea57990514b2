"""Two evaluations of the same questions: differences, and whether images drawn anew would show them again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from granvit.corpus.audit.bootstrap import DRAWS, resampled_sums
from granvit.errors import GranvitError
from granvit.evaluate.items import Item, Task
from granvit.evaluate.measures import SCORERS
from granvit.evaluate.scoring import by_image


@dataclass(frozen=True)
class Difference:
    """B minus A for one measure of one task.

    Attributes:
        first, second: the values of A and B over the `questions` that both answered.
        low, high: the 95 % interval of the difference, paired: both are scored on the same drawn images.
        p: two-sided, from the same drawings: how easily a difference of none would look like this. At least 2 / 1,001.
    """

    task: str
    measure: str
    questions: int
    images: int
    first: float
    second: float
    low: float
    high: float
    p: float

    @property
    def difference(self) -> float:
        return self.second - self.first


def compare(
    tasks: dict[str, Task], first: Sequence[Item], second: Sequence[Item], seed: int = 0
) -> tuple[list[Difference], list[str]]:
    """Differences in every measure of every task that both have, and what a reader must know.

    Raises:
        ValueError: no question was answered in both, or the same question has other right answers.
    """
    differences: list[Difference] = []
    notes: list[str] = []
    for name, task in tasks.items():
        ours = {item.key: item for item in first if item.task == name}
        theirs = {item.key: item for item in second if item.task == name}
        shared = [key for key in ours if key in theirs]
        alone = len(ours) + len(theirs) - 2 * len(shared)
        if alone:
            notes.append(f"{name}: {alone:,} questions were answered in one evaluation only, and are left out")
        for key in shared:
            if (ours[key].truth, ours[key].box) != (theirs[key].truth, theirs[key].box):
                raise GranvitError(f"{name}: question {key!r} has not the same right answer in both")
        if shared:
            differences += _of_task(task, [ours[k] for k in shared], [theirs[k] for k in shared], seed)
    if not differences:
        raise GranvitError("no question was answered in both evaluations")
    return differences, notes


def _of_task(task: Task, first: list[Item], second: list[Item], seed: int) -> list[Difference]:
    images = list(dict.fromkeys(item.id for item in first))
    told = []
    for name, measure in SCORERS[task.scorer].measures.items():
        a, b = (by_image(measure.each(items), items, images) for items in (first, second))
        value_a, value_b = (float(measure.value(table.sum(0))) for table in (a, b))
        # The same seed and length: both tables are drawn alike.
        drawn = measure.value(resampled_sums(b, seed)) - measure.value(resampled_sums(a, seed))
        drawn = drawn[~np.isnan(drawn)]
        if np.isnan(value_a) or np.isnan(value_b) or not len(drawn):
            continue
        low, high = np.percentile(drawn, [2.5, 97.5]).tolist()
        tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
        p = min(1.0, 2 * (tail + 1) / (DRAWS + 1))
        told.append(Difference(task.name, name, len(first), len(images), value_a, value_b, low, high, p))
    return told


def as_table(differences: Sequence[Difference]) -> str:
    """A Markdown table; the differences are in percentage points."""
    lines = ["| task | measure | questions | A | B | B - A | 95 % | p |", "|---|---|---|---|---|---|---|---|"]
    for d in differences:
        change = f"{100 * d.difference:+.1f} | {100 * d.low:+.1f} to {100 * d.high:+.1f}"
        lines.append(
            f"| {d.task} | {d.measure} | {d.questions:,} | {100 * d.first:.1f} | {100 * d.second:.1f} | {change} "
            f"| {d.p:.3f} |"
        )
    return "\n".join(lines)
