"""What is known of a checkpoint for its card: how its run went, what it learned from, how good it is.

All of it is read as untrusted: files may have been edited, and the card's template relies on what is checked here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from granvit.errors import CheckpointError
from granvit.evaluate.scores_log import SCORES_LOG, RunScores, run_scores
from granvit.files import checked_field, read_json
from granvit.loading.run_folder import DATA, METRICS, RECIPE, checkpoint_id, checkpoint_of

# Of the facts of an evaluation those that say nothing of whose machine it ran on.
_CIRCUMSTANCES = ("Benchmarks", "Limit", "Reading")

# task -> metric -> value.
Table = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class KnownScores:
    """Scores on held-out pictures, by task and metric, each task with its "count" of questions.

    Attributes:
        intervals: 95 % of each, where they were computed.
        before, baseline: of the model before training, and of the best constant answer, where they are known.
        told: where they come from and of which step they are, a sentence.
        circumstances: what else decides them, by name.
    """

    values: Table
    told: str
    intervals: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    before: Table = field(default_factory=dict)
    baseline: Table = field(default_factory=dict)
    circumstances: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ExportSource:
    """What is exported, and what is known of how it came about.

    Attributes:
        checkpoint: the folder with the weights.
        recipe, data: contents of recipe.json and data.json; None where there is none.
        scores: None where there are none.
    """

    checkpoint: Path
    recipe: dict[str, Any] | None = None
    data: list[dict[str, Any]] | None = None
    scores: KnownScores | None = None


def read_source(folder: Path, metrics: Path | None = None) -> ExportSource:
    """A run folder with its facts, or a bare checkpoint.

    Args:
        metrics: what `granvit eval --out` wrote, in place of the scores that a run noted of its checkpoint.

    Raises:
        CheckpointError: a file that is there is damaged, which the message names with its field; or `metrics` is
            missing or holds no scores.
    """
    checkpoint = checkpoint_of(folder)
    recipe, data = _of_run(folder) if checkpoint != folder else (None, None)
    if metrics is None:
        return ExportSource(checkpoint, recipe, data, _own_scores(folder))
    if not metrics.exists():
        raise CheckpointError(f"{metrics}: no such file")
    scores = _scores(metrics, checkpoint)
    if scores is None:
        raise CheckpointError(
            f"{metrics}: no scores are in it; a scores.json that `granvit eval --out` wrote is expected"
        )
    return ExportSource(checkpoint, recipe, data, scores)


def _read(path: Path, kind: type) -> Any:
    if not path.exists():
        return None
    content = read_json(path, CheckpointError)
    if not isinstance(content, kind):
        raise CheckpointError(f"{path}: expected a JSON {'object' if kind is dict else 'array'}")
    return content


# --- how it was made -------------------------------------------------------------------------------------------------


def _of_run(folder: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]] | None]:
    """Contents of recipe.json and data.json, where they are there, with all that the card takes of them checked."""
    recipe, data = _read(folder / RECIPE, dict), _read(folder / DATA, list)
    if recipe is not None:
        _check_recipe(folder / RECIPE, recipe)
    for n, corpus in enumerate(data or []):
        path, where = folder / DATA, f"[{n}]."
        _member(corpus, "images", int, path, where)
        _number(path, f"{where}weight", _member(corpus, "weight", object, path, where))
        if not all(isinstance(digest, str) for digest in _member(corpus, "shards", list, path, where)):
            raise CheckpointError(f"{path}: damaged: {where}shards is not a list of texts")
    return recipe, data


def _check_recipe(path: Path, recipe: dict[str, Any]) -> None:
    for name in ("name", "encoder", "language"):
        _member(recipe, name, str, path)
    _member(recipe, "seed", int, path)
    if "processes" in recipe:
        _member(recipe, "processes", int, path)
    if recipe.get("init") is not None:
        _member(recipe, "init", str, path)
    for n, stage in enumerate(_member(recipe, "stages", list, path)):
        where = f"stages[{n}]."
        for name in ("kind", "name"):
            _member(stage, name, str, path, where)
        loop = _member(stage, "loop", dict, path, where)
        for name in ("steps", "batch_size", "accumulate"):
            _member(loop, name, int, path, f"{where}loop.")
        _number(path, f"{where}loop.lr", _member(loop, "lr", object, path, f"{where}loop."))
        sample = _member(stage, "sample", dict, path, where)
        _member(sample, "questions", dict, path, f"{where}sample.")
        if stage.get("lora"):
            lora = _member(stage, "lora", dict, path, where)
            _member(lora, "rank", int, path, f"{where}lora.")
            if not all(isinstance(name, str) for name in _member(lora, "targets", list, path, f"{where}lora.")):
                raise CheckpointError(f"{path}: damaged: {where}lora.targets is not a list of texts")


def _member(row: Any, name: str, kind: type, path: Path, inside: str = "") -> Any:
    return checked_field(row, name, kind, path, inside, CheckpointError)


def _number(path: Path, where: str, value: Any) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise OverflowError
    except OverflowError:  # what is too large for a float is none either
        shown = json.dumps(value)[:60]
        raise CheckpointError(f"{path}: damaged: {where} is {shown}, it should be a number") from None
    return float(value)


# --- how good it is --------------------------------------------------------------------------------------------------


def _own_scores(folder: Path) -> KnownScores | None:
    """What a run noted of its checkpoint: in its log, or the demo's metrics.json, which knows the last stage alone."""
    found = run_scores(folder)
    if found is None or not found.exact:
        of_last_stage = _scores(folder / METRICS)
        if of_last_stage is not None:
            return of_last_stage
    return None if found is None else _of_log(found)


def _of_log(found: RunScores) -> KnownScores:
    path, last = Path(SCORES_LOG), found.last
    told = f"From the run's `{SCORES_LOG}`: {found.told}. A small sample, to watch a run by."
    before = {} if found.before is None else _table(path, found.before.stage, found.before.scores)
    return KnownScores(
        _counted(path, last.stage, last.scores), told, before=before, baseline=_table(path, "baseline", last.baseline)
    )


def _scores(path: Path, checkpoint: Path | None = None) -> KnownScores | None:
    """The scores of a scores.json of `granvit eval`, or of the demo's metrics.json; None where it holds none.

    Both layouts are read: "scores", "intervals" and "baseline" of an evaluation, which may be of another checkpoint;
    and a column for each stage, of which the last counts, beside "before" and "baseline".
    """
    content = _read(path, dict)
    if content is None:
        return None
    if "scores" in content:
        values = _counted(path, "scores", content["scores"])
        told = f"From `{path.name}` of `granvit eval`: {_questions(values)}{_of_another(path, content, checkpoint)}."
    else:
        stages = [name for name, v in content.items() if name not in ("before", "baseline") and isinstance(v, dict)]
        if not stages:
            return None
        values = _counted(path, stages[-1], content[stages[-1]])
        told = f"From `{path.name}`: {_questions(values)}, asked after the last step of {stages[-1]}."
    if not any(name != "count" for scores in values.values() for name in scores):
        return None
    before, baseline = (_table(path, name, content.get(name, {})) for name in ("before", "baseline"))
    return KnownScores(values, told, _intervals(path, content), before, baseline, _circumstances(path, content))


def _of_another(path: Path, content: dict[str, Any], checkpoint: Path | None) -> str:
    """Of an evaluation that names its checkpoint: what is to be said where that is another one."""
    named = _member({"facts": {}, **content}, "facts", dict, path).get("Checkpoint")
    if checkpoint is None or not isinstance(named, str) or not named.startswith("sha256 "):
        return ""
    mine = f"sha256 {checkpoint_id(checkpoint)[: len(named) - len('sha256 ')]}"
    return "" if mine == named else f", asked of another checkpoint ({named}) than this one ({mine})"


def _circumstances(path: Path, content: dict[str, Any]) -> dict[str, str]:
    facts = _member({"facts": {}, **content}, "facts", dict, path)
    return {name: _member(facts, name, str, path, "facts.") for name in _CIRCUMSTANCES if name in facts}


def _questions(values: Table) -> str:
    return f"{int(sum(scores['count'] for scores in values.values())):,} questions"


def _counted(path: Path, where: str, given: Any) -> Table:
    table = _table(path, where, given)
    for task, scores in table.items():
        if "count" not in scores:
            raise CheckpointError(f"{path}: damaged: {where}.{task}.count is missing")
    return table


def _table(path: Path, where: str, given: Any) -> Table:
    """A table of numbers, by task and metric."""
    tasks = _member({where: given}, where, dict, path)
    return {
        task: {name: _number(path, f"{where}.{task}.{name}", value) for name, value in scores.items()}
        for task in tasks
        for scores in (_member(tasks, task, dict, path, f"{where}."),)
    }


def _intervals(path: Path, content: dict[str, Any]) -> dict[str, dict[str, tuple[float, float]]]:
    found: dict[str, dict[str, tuple[float, float]]] = {}
    tasks = _member({"intervals": {}, **content}, "intervals", dict, path)
    for task in tasks:
        for name, limits in _member(tasks, task, dict, path, "intervals.").items():
            where = f"intervals.{task}.{name}"
            if not isinstance(limits, list) or len(limits) != 2:
                raise CheckpointError(
                    f"{path}: damaged: {where} is {json.dumps(limits)[:60]}, it should be two numbers"
                )
            low, high = (_number(path, where, limit) for limit in limits)
            found.setdefault(task, {})[name] = low, high
    return found
