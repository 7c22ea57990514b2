"""Two evaluations of the same questions: differences, and whether images drawn anew would show them again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from granvit.bootstrap import by_picture, interval
from granvit.errors import GranvitError
from granvit.evaluate.evaluation import Means, has_answers, read_means, read_scores
from granvit.evaluate.items import Item, Task
from granvit.evaluate.scoring import SCORERS, Table, by_image, draws
from granvit.regions import picture_id


@dataclass(frozen=True)
class Difference:
    """B minus A for one measure of one task.

    Attributes:
        first, second: the values of A and B over the `questions` that both answered.
        low, high: the 95 % interval of the difference, paired: both are scored on the same drawn images; None where
            fewer than two images count.
        p: two-sided, from the same drawings: how easily a difference of none would look like this; None as before. At
            least 2 / 1,001, and of n images at least 2 / 2^n, as often as n coins fall alike.
    """

    task: str
    measure: str
    questions: int
    images: int
    first: float
    second: float
    low: float | None
    high: float | None
    p: float | None

    @property
    def difference(self) -> float:
        return self.second - self.first


def compare_places(first: Path, second: Path) -> tuple[list[Difference], list[str]]:
    """What of two evaluations can be compared: their answers, or means where one of them has no more than these.

    Raises:
        GranvitError: a place holds neither, or they cannot be compared; the message says why.
    """
    if not (has_answers(first) and has_answers(second)):
        return compare_means(read_means(first), read_means(second))
    (scores, ours), (others, theirs) = read_scores(first), read_scores(second)
    notes = _settings(scores, others)
    differences, more = compare(scores["tasks"] | others["tasks"], ours, theirs)
    return differences, notes + more


# Of an evaluation's facts those that decide what was asked and how its answers were read.
_SETTINGS = ("Corpus", "Benchmarks", "Limit", "Reading", "Boxes")


def _settings(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """In which settings two evaluations differ, as `read_scores` gives them.

    Raises:
        GranvitError: a task was scored in another way.
    """
    notes = []
    for name in _SETTINGS:
        a, b = (str(_of_kind(dict, side.get("facts")).get(name, "not stated")) for side in (first, second))
        if a != b:
            notes.append(f"{name}: {a} in A, {b} in B")
    for name, task in first["tasks"].items():
        other = second["tasks"].get(name, task)
        if task.scorer != other.scorer:
            raise GranvitError(f"{name}: scored as {task.scorer} in A and as {other.scorer} in B")
        for setting in ("window", "longest", "note"):
            a, b = (getattr(side, setting) or "none" for side in (task, other))
            if a != b:
                notes.append(f"{name}: {setting} is {a} in A, {b} in B")
    told = [_of_kind(list, side.get("notes")) for side in (first, second)]
    for side, mine, others in (("A", *told), ("B", *reversed(told))):
        notes += [f"of {side} alone: {note}" for note in mine if note not in others]
    return notes


def _of_kind(kind: type, value: Any) -> Any:
    """What a file says where it is of a kind, else nothing: these are only told."""
    return value if isinstance(value, kind) else kind()


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
        (ours, doubled), (theirs, also) = (_by_key(name, items) for items in (first, second))
        if doubled or also:
            left_out = f"{name}: {len(doubled | also):,} keys stand for several questions, and are left out"
            notes.append(f"{left_out}: {min(doubled | also)!r}")
            ours, theirs = ({k: i for k, i in side.items() if k not in doubled | also} for side in (ours, theirs))
        shared = [key for key in ours if key in theirs]
        alone = len(ours) + len(theirs) - 2 * len(shared)
        if alone:
            notes.append(f"{name}: {alone:,} questions were answered in one evaluation only, and are left out")
        for key in shared:
            if (ours[key].truth, ours[key].box) != (theirs[key].truth, theirs[key].box):
                raise GranvitError(f"{name}: question {key!r} has not the same right answer in both")
            if _question(ours[key]) != _question(theirs[key]):
                raise GranvitError(f"{name}: question {key!r} is not the same in both")
        reworded = sum(ours[key].asked != theirs[key].asked for key in shared)
        if reworded:
            notes.append(f"{name}: {reworded:,} questions were asked in other words")
        if shared:
            of_task, undefined = _of_task(task, [ours[k] for k in shared], [theirs[k] for k in shared], seed)
            differences += of_task
            notes += undefined
            if len({picture_id(ours[key].id) for key in shared}) < 2:
                notes.append(f"{name}: one image tells nothing of others, so there is no interval and no p")
    if not differences:
        raise GranvitError("no question was answered in both evaluations")
    return differences, notes


def _by_key(task: str, items: Sequence[Item]) -> tuple[dict[str, Item], set[str]]:
    """The questions of a task by their keys, and the keys that several have."""
    mine = [item for item in items if item.task == task]
    counted = Counter(item.key for item in mine)
    return {item.key: item for item in mine}, {key for key, count in counted.items() if count > 1}


def _question(item: Item) -> tuple[Any, ...]:
    """What must be the same of a question besides its right answer; a picture's size is known once it was opened."""
    return item.id, item.size, item.how, item.options, item.kind


def compare_means(ours: Means, theirs: Means) -> tuple[list[Difference], list[str]]:
    """Differences of scores alone, by task and measure: without the single answers there is no interval and no p.

    Raises:
        GranvitError: no measure is in both, or they are known to be of other questions.
    """
    first, second = ours.scores, theirs.scores
    unknown = [side for side, means in (("A", ours), ("B", theirs)) if not (means.asked or "").startswith("2:")]
    if not unknown and ours.asked != theirs.asked:
        raise GranvitError(
            "A and B were asked other questions, or about other pictures: evaluate both with granvit eval --out on one "
            "corpus, and compare what that leaves"
        )
    differences = [
        Difference(
            task, name, int(min(scores["count"], second[task]["count"])), 0, value, second[task][name], *[None] * 3
        )
        for task, scores in first.items()
        if task in second
        for name, value in scores.items()
        if name != "count" and name in second[task]
    ]
    if not differences:
        raise GranvitError("no task was scored in both")
    notes = [note for note in (ours.note, theirs.note) if note]
    notes += ["means alone: intervals and p need the single answers, in the folder that `granvit eval --out` writes"]
    if unknown:
        notes.append(
            f"it is not known whether both were asked the same questions: {' and '.join(unknown)} does not say"
        )
    counts = {
        task: (int(scores["count"]), int(second[task]["count"])) for task, scores in first.items() if task in second
    }
    notes += [f"{task}: in one of them only" for task in sorted(first.keys() ^ second.keys())]
    notes += [f"{task}: of {a:,} questions in A, of {b:,} in B" for task, (a, b) in counts.items() if a != b]
    return differences, notes


def _of_task(task: Task, first: list[Item], second: list[Item], seed: int) -> tuple[list[Difference], list[str]]:
    images = list(dict.fromkeys(item.id for item in first))
    differences: list[Difference] = []
    notes: list[str] = []
    for name, measure in SCORERS[task.scorer].measures.items():
        a, b = (by_picture(by_image(measure.each(items), items, images), images) for items in (first, second))
        value_a, value_b = (float(measure.value(table.sum(0))) for table in (a, b))
        if np.isnan(value_a) or np.isnan(value_b):
            notes.append(f"{task.name}: {name} is left out: {measure.undefined}")
            continue
        # The same seed and length: both tables are drawn alike.
        drawn_a, drawn_b = draws(measure, a, seed), draws(measure, b, seed)
        drawn = drawn_b - drawn_a if len(drawn_a) and len(drawn_b) else np.empty(0)
        counting = int((a.any(1) | b.any(1)).sum())  # of an image that adds nothing to either, nothing is known
        limits = _interval(drawn[~np.isnan(drawn)], counting)
        differences.append(Difference(task.name, name, len(first), counting, value_a, value_b, *limits))
    return differences, notes


def _interval(drawn: Table, images: int) -> tuple[float, float, float] | tuple[None, None, None]:
    """Low, high and p of differences that were drawn."""
    if not len(drawn):
        return None, None, None
    low, high = interval(drawn)
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return low, high, float(min(1.0, max(2 * (tail + 1) / (len(drawn) + 1), 2.0 ** (1 - images))))


def as_table(differences: Sequence[Difference]) -> str:
    """A Markdown table; the differences are in percentage points."""
    lines = ["| task | measure | questions | A | B | B - A | 95 % | p |", "|---|---|---|---|---|---|---|---|"]
    for d in differences:
        limits = "–" if d.low is None or d.high is None else f"{100 * d.low:+.1f} to {100 * d.high:+.1f}"
        p = "–" if d.p is None else f"{d.p:.3f}"
        lines.append(
            f"| {d.task} | {d.measure} | {d.questions:,} | {100 * d.first:.1f} | {100 * d.second:.1f} "
            f"| {100 * d.difference:+.1f} | {limits} | {p} |"
        )
    return "\n".join(lines)
