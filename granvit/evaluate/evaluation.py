"""A whole evaluation: sets of questions asked one after the other, scored, averaged by group, and written down."""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from granvit.bootstrap import Estimate, estimate
from granvit.errors import GranvitError
from granvit.evaluate.answering import ANSWERS, Journal, answer_all, notes_of
from granvit.evaluate.calibration import Calibration, calibration
from granvit.evaluate.items import EvalSet, Item, Task
from granvit.evaluate.scores_log import SCORES_LOG, run_scores
from granvit.evaluate.scoring import SCORERS, Scores, score
from granvit.files import atomic_file, open_regular, read_json, read_regular
from granvit.loading.run_folder import METRICS, RECIPE
from granvit.model.settings import SETTINGS_FILE
from granvit.predict import GranViT
from granvit.texts import has_words, in_other_scripts

SCORES = "scores.json"
ITEMS = "items.jsonl"


@dataclass(frozen=True)
class GroupScore:
    """The average of a group: of its benchmarks' main scores, each the mean of its splits'."""

    average: Estimate
    parts: dict[str, float]


@dataclass
class Evaluation:
    """What came of it. `scores` by task in order of asking; `items` are all answered questions.

    `calibrations` are of the tasks in which an answer is right or wrong.
    """

    facts: dict[str, str]
    tasks: dict[str, Task] = field(default_factory=dict)
    scores: dict[str, Scores] = field(default_factory=dict)
    calibrations: dict[str, Calibration] = field(default_factory=dict)
    groups: dict[str, GroupScore] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)

    def of(self, task: str) -> list[Item]:
        """The questions of one task."""
        return [item for item in self.items if item.task == task]


def run_evaluation(
    model: GranViT,
    eval_sets: Sequence[EvalSet],
    facts: dict[str, str],
    journal: Journal | None = None,
    limit: int | None = None,
    progress: bool = True,
) -> Evaluation:
    """Ask and score up to `limit` images of each set.

    Raises:
        ValueError: two sets have a task of the same name, or there is nothing to ask.
    """
    names = [task.name for eval_set in eval_sets for task in eval_set.tasks]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise GranvitError(f"two sources would both be scored as {twice!r}: evaluate them one by one")
    result = Evaluation(facts, {task.name: task for eval_set in eval_sets for task in eval_set.tasks})
    for eval_set in eval_sets:
        total = eval_set.image_count if limit is None else min(limit, eval_set.image_count or limit)
        unusable: dict[str, str] = {}
        unasked: dict[str, list[str]] = {}
        first = islice(eval_set.images(), limit)
        items = answer_all(model, first, eval_set.tasks, journal, total, progress, eval_set.name, unusable, unasked)
        result.items += items
        result.notes += eval_set.notes + notes_of(unasked)
        if unusable:
            why = next(iter(unusable.values()))
            result.notes.append(f"{eval_set.name}: {len(unusable):,} pictures can't be used and are left out: {why}")
        images = list(dict.fromkeys(item.id for item in items))
        for task in eval_set.tasks:
            mine = [item for item in items if item.task == task.name]
            if mine:
                # Tasks of one set are drawn together, those of different sets independently.
                result.scores[task.name] = score(task, mine, images, seed=zlib.crc32(eval_set.name.encode()))
                if (calibrated := calibration(task, mine)) is not None:
                    result.calibrations[task.name] = calibrated
                result.notes += _incomplete(task, len(mine)) + _on_measures(task, result.scores[task.name], mine)
    if not result.items:
        raise GranvitError("; ".join([f"nothing to evaluate: no question for {', '.join(names)}", *result.notes]))
    result.groups = group_scores(result.tasks, result.scores)
    return result


def _incomplete(task: Task, asked: int) -> list[str]:
    if task.expected in (None, asked):
        return []
    return [f"{task.name}: {asked:,} questions; published are {task.expected:,}, so this is not comparable"]


def _on_measures(task: Task, scores: Scores, items: Sequence[Item]) -> list[str]:
    """What a reader of the scores must know about texts that a measure is not made for."""
    measures = SCORERS[task.scorer].measures
    notes = [f"{task.name}: {name} has no value: {why}" for name, why in scores.undefined.items()]
    by_words = [name for name in ("rouge_l", "shared_words", "bleu4", "cider", "wer") if name in measures]
    if not by_words:
        return notes
    wordless = sum(not has_words(item.truth) for item in items)
    if wordless and {"rouge_l", "shared_words"} & set(by_words):
        notes.append(f"{task.name}: {wordless:,} true texts have no word, such as %; {by_words[0]} is of the others")
    other = sum(any(in_other_scripts(text) for text in item.truth) for item in items)
    if other:
        notes.append(
            f"{task.name}: {other:,} true texts are in other than Latin letters; for {', '.join(by_words)} their words "
            "are runs of letters, and every character where no blanks part words (the reference packages see no words)"
        )
    return notes


def group_scores(tasks: dict[str, Task], scores: dict[str, Scores]) -> dict[str, GroupScore]:
    """The paper's groups that have scores.

    Splits of one benchmark (a name up to "-") are averaged first, so that three of them don't outweigh another.
    """
    by_benchmark: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in scores:
        if tasks[name].group and SCORERS[tasks[name].scorer].main in scores[name].values:
            by_benchmark[tasks[name].group][name.partition("-")[0]].append(name)
    groups = {}
    for group, benchmarks in by_benchmark.items():
        parts = {b: float(np.mean([_main(tasks[n], scores[n]) for n in names])) for b, names in benchmarks.items()}
        drawn = [[scores[n].drawn for n in names] for names in benchmarks.values()]
        whole = all(len(d) for splits in drawn for d in splits)
        draws = np.mean([np.mean(splits, axis=0) for splits in drawn], axis=0) if whole else np.empty(0)
        average = estimate(float(np.mean(list(parts.values()))), draws[~np.isnan(draws)])
        assert average is not None, "of main scores that have a value"
        groups[group] = GroupScore(average, parts)
    return groups


def _main(task: Task, scores: Scores) -> float:
    return scores.values[SCORERS[task.scorer].main]


# --- files -----------------------------------------------------------------------------------------------------------


def write_scores(result: Evaluation, out: Path) -> None:
    """`scores.json` and, beside it, every single answer as `items.jsonl`; each appears whole."""
    content = {
        "facts": result.facts,
        "tasks": {name: asdict(task) for name, task in result.tasks.items() if name in result.scores},
        "scores": {name: s.values for name, s in result.scores.items()},
        "intervals": {name: s.intervals for name, s in result.scores.items()},
        "baseline": {name: s.constant for name, s in result.scores.items()},
        "calibration": {name: c.to_json() for name, c in result.calibrations.items()},
        "groups": {name: {**g.average.to_json(), "parts": g.parts} for name, g in result.groups.items()},
        "notes": result.notes,
    }
    _write(out / ITEMS, (json.dumps(vars(item), ensure_ascii=False) + "\n" for item in result.items))
    _write(out / SCORES, [json.dumps(content, indent=1, ensure_ascii=False) + "\n"])


def _write(path: Path, lines: Iterable[str]) -> None:
    with atomic_file(path) as unfinished, unfinished.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(lines)


def read_scores(place: Path) -> tuple[dict[str, Any], list[Item]]:
    """What `write_scores` wrote: `place` is the folder, or a file in it.

    Raises:
        GranvitError: `place` or one of the two files is missing, or not what was written.
    """
    if not place.exists():
        raise GranvitError(f"{place}: no such file or folder; give the folder that `granvit eval --out` wrote")
    folder = place if place.is_dir() else place.parent
    if not has_answers(place):
        wanted = f"compared are the single answers, which the folder of `granvit eval --out` holds ({SCORES}, {ITEMS})"
        below = next((path.parent for path in sorted(folder.glob(f"*/{SCORES}"))), None)
        way = "" if below is None else f": give {below}"
        if not way and any((folder / name).exists() for name in (RECIPE, SETTINGS_FILE)):
            way = f": make one with granvit eval {folder} --corpus DIR --out {folder / 'eval'}"
        raise GranvitError(f"{place}: no evaluation; {wanted}{way}")
    content, items = _read_tasks(folder / SCORES), _read_items(folder / ITEMS)
    located = {name for name, task in content["tasks"].items() if task.scorer == "boxes"}
    if any(item.box is None for item in items if item.task in located):
        raise GranvitError(f"{folder / ITEMS}: an answer of {', '.join(sorted(located))} has no true box")
    return content, items


def has_answers(place: Path) -> bool:
    """Whether `place` is an evaluation with its single answers: the folder, or a file in it."""
    folder = place if place.is_dir() else place.parent
    return (folder / SCORES).is_file() and (place.is_dir() or place.name in (SCORES, ITEMS))


@dataclass(frozen=True)
class Means:
    """Scores without the single answers.

    Attributes:
        scores: by task and measure, each task with its "count" of questions.
        asked: what tells the questions from others, where it is known.
        note: what a reader must know; empty if nothing.
    """

    scores: dict[str, dict[str, float]]
    asked: str | None = None
    note: str = ""


def read_means(place: Path) -> Means:
    """The scores of an evaluation, of a run's checkpoint (`scores_log.run_scores`), or of the metrics.json of the demo,
    of which the last stage's count.

    Raises:
        GranvitError: `place` is missing, or none of these.
    """
    if has_answers(place):
        content, items = read_scores(place)
        asked = Counter(item.task for item in items)
        means = {task: {**_numbers(scores), "count": asked[task]} for task, scores in content["scores"].items()}
        return Means(means)
    found = run_scores(place.parent if place.name == SCORES_LOG else place)
    if found is not None:
        means = {task: _numbers(scores) for task, scores in found.last.scores.items()}
        return Means(means, found.last.asked, "" if found.exact else f"{place}: {found.told}")
    file = place / METRICS if place.is_dir() and (place / METRICS).is_file() else place
    if not file.is_file():
        read_scores(place)  # says what is missing, and what to give in its place
    content = read_json(file)
    if not isinstance(content, dict):
        raise GranvitError(f"{file}: an object is expected")
    stages = [scores for name, scores in content.items() if name != "baseline" and isinstance(scores, dict)]
    means = {task: _numbers(scores) for task, scores in (stages[-1] if stages else {}).items() if scores}
    if not means or not all("count" in scores for scores in means.values()):
        raise GranvitError(f"{file}: neither an evaluation nor a run's {METRICS}: no stage with scores and counts")
    told = content.get("asked")
    return Means(means, told if isinstance(told, str) else None)


def _numbers(scores: Any) -> dict[str, float]:
    """The measures that have a value."""
    entries = scores.items() if isinstance(scores, dict) else ()
    return {name: float(v) for name, v in entries if isinstance(v, int | float) and math.isfinite(v)}


def _read_tasks(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_regular(path, 1 << 30))
        tasks = {name: Task(**task) for name, task in content["tasks"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise GranvitError(f"{path}: not the scores of an evaluation: {error}") from error
    if unknown := next((task.scorer for task in tasks.values() if task.scorer not in SCORERS), None):
        raise GranvitError(f"{path}: not the scores of an evaluation: no scorer {unknown!r} is known")
    return {**content, "tasks": tasks}


def _read_items(path: Path) -> list[Item]:
    items: list[Item] = []
    try:
        with open_regular(path) as lines:
            for line in lines:
                items.append(_item(json.loads(line)))
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise GranvitError(f"{path}: answer {len(items) + 1}: {type(error).__name__}: {error}") from error
    return items


def _item(row: dict[str, Any]) -> Item:
    """One line of what was written, with its fields of the kinds that scoring counts on."""
    box, found = ((tuple(map(float, row[name])) if row[name] else None) for name in ("box", "found"))
    confidence = None if row.get("confidence") is None else float(row["confidence"])
    size = tuple(map(int, row["size"]))
    item = Item(**{**row, "size": size, "box": box, "found": found, "confidence": confidence})
    texts = [item.id, item.task, item.said, item.key, item.kind, *item.truth, *item.options]
    wrong = not all(isinstance(text, str) for text in texts) or {len(b) for b in (box, found) if b} - {4}
    if wrong or not isinstance(item.truth, list) or not item.truth or len(item.size) != 2:
        raise ValueError("not what was written")
    return item


def open_journal(out: Path, checkpoint: str) -> Journal:
    """The answers of an evaluation in `out`, so far."""
    out.mkdir(parents=True, exist_ok=True)
    return Journal(out / ANSWERS, checkpoint)
