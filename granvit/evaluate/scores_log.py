"""`scores.jsonl` of a run, a line for each validation, and which of them is of a checkpoint that the run left."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from granvit.coordinates import Box
from granvit.errors import CheckpointError
from granvit.files import checked_field, read_json, read_regular
from granvit.loading.run_folder import CHECKPOINT, RECIPE

SCORES_LOG, BEST, BEST_SCORE = "scores.jsonl", "best", "score.json"
BEFORE = "before"
_LARGEST_LOG = 1 << 30


class Answer(NamedTuple):
    """What was said of a region of a picture that the report shows; `box` and `found` are xyxy pixels of the picture.

    `found` is None where another thing was asked for than a box, or none was said.
    """

    id: str
    task: str
    box: Box
    said: str
    found: Box | None


@dataclass(frozen=True)
class Scored:
    """One validation.

    Attributes:
        stage: the stage's folder, or "before".
        step: after which of its steps; `end` says that it was the last.
        asked: tells the questions from others.
        scores, baseline: task -> metric -> value, of the model and of the best constant answer.
        seconds: how long it took.
        shown: answers about the pictures that the report shows.
    """

    stage: str
    step: int
    end: bool
    asked: str
    scores: dict[str, dict[str, float]]
    baseline: dict[str, dict[str, float]]
    seconds: float
    shown: list[Answer]


def line_of(scored: Scored) -> str:
    """A validation as its line."""
    return json.dumps({**asdict(scored), "shown": [list(answer) for answer in scored.shown]}) + "\n"


def read_log(out: Path) -> list[Scored]:
    """The validations of a run.

    Raises:
        CheckpointError: a line is not what was written.
    """
    path = out / SCORES_LOG
    if not path.exists():
        return []
    lines = read_regular(path, _LARGEST_LOG).splitlines()
    return [_scored(path, number, line) for number, line in enumerate(lines, start=1)]


def _scored(path: Path, number: int, line: bytes) -> Scored:
    try:
        row = json.loads(line)
        row["shown"] = [Answer(i, t, box_of(b), s, None if f is None else box_of(f)) for i, t, b, s, f in row["shown"]]
        scored = Scored(**row)
        texts = [scored.stage, scored.asked, *(text for a in scored.shown for text in (a.id, a.task, a.said))]
        tables = (scored.scores, scored.baseline)
        values = [value for table in tables for scores in table.values() for value in scores.values()]
        if not all(isinstance(text, str) for text in texts) or not isinstance(scored.end, bool):
            raise ValueError("a text is none")
        if not all(isinstance(value, int | float) for value in [scored.step, scored.seconds, *values]):
            raise ValueError("a number is none")
        if type(scored.step) is not int or not all(map(math.isfinite, values)):
            raise ValueError("a number is none")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise CheckpointError(f"{path}: line {number} is not what was written ({error}): remove the file") from error
    return scored


def best_score(folder: Path) -> dict[str, Any]:
    """By which "score" the model of a folder was the best, its "value", and after which "step".

    Raises:
        CheckpointError: that is not what was written.
    """
    path = folder / BEST_SCORE
    found = read_json(path, CheckpointError) if path.exists() else None
    if not isinstance(found, dict) or not isinstance(found.get("value"), int | float):
        raise CheckpointError(f"{path}: not what was written: remove {folder}")
    return {"score": str(found.get("score")), "value": float(found["value"]), "step": found.get("step")}


def box_of(box: Sequence[float]) -> Box:
    """A box of any kind of numbers, xyxy pixels."""
    x1, y1, x2, y2 = map(float, box)
    return (x1, y1, x2, y2)


# --- the scores of a checkpoint --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunScores:
    """What a run's log has of a checkpoint.

    Attributes:
        last: the validation; of another step than the checkpoint's where `exact` is False.
        before: that of the same questions before the run, where there is one.
        exact: whether `last` is of the checkpoint itself.
        steps: after how many steps of its stage `last` was; what a stage's last one is, the recipe says.
        checkpoint: the step and stage of the checkpoint, for people.
    """

    last: Scored
    before: Scored | None
    exact: bool
    steps: int
    checkpoint: str

    @property
    def questions(self) -> int:
        return int(sum(scores.get("count", 0) for scores in self.last.scores.values()))

    @property
    def told(self) -> str:
        """Whose scores these are, a sentence without its full stop."""
        place = f"{self.questions:,} questions, asked after step {self.steps:,} of {self.last.stage}"
        if self.last.stage == BEFORE:
            place = f"{self.questions:,} questions, asked before the run"
        if self.exact:
            return f"{place}, which is this checkpoint"
        return f"{place}, and not of this checkpoint, which is {self.checkpoint}"


def run_scores(folder: Path) -> RunScores | None:
    """The scores that a run noted of the checkpoint that is meant by its `folder`, or by STAGE/model or STAGE/best in
    it; of the newest validation where that one was not scored, and None where nothing was.

    Raises:
        CheckpointError: a file of the run is not what was written; the message names file and field.
    """
    place = _place(folder)
    if place is None or not (log := read_log(place.run)):
        return None
    stages = _steps_of(place.run)
    # A run that is being gone on with, by more stages than it had, still has the checkpoint of the last one that ended.
    ended = [name for name in stages if (place.run / name / "model").exists()]
    stage = place.stage or (ended or list(stages))[-1]
    mine = [one for one in log if one.stage == stage]
    of_it = [one for one in mine if (one.end if place.step is None else one.step == place.step)]
    last = (of_it or mine or log)[-1]
    before = next((one for one in reversed(log) if one.stage == BEFORE and one.asked == last.asked), None)
    # A stage that was scored after it, not within it, has no step in its line.
    steps = stages.get(last.stage, last.step) if last.end else last.step
    step = stages.get(stage) if place.step is None else place.step
    checkpoint = f"that after step {step:,} of {stage}" if step is not None else f"that after {stage}"
    return RunScores(last, before if before is not last else None, bool(of_it), steps, checkpoint)


class _Place(NamedTuple):
    """A run, and of a checkpoint in it the stage (the last one if None) and the step (the stage's last one if None)."""

    run: Path
    stage: str | None = None
    step: int | None = None


def _place(folder: Path) -> _Place | None:
    if (folder / RECIPE).exists() and (folder / SCORES_LOG).exists():
        return _Place(folder)
    folder = folder.absolute()
    run = folder.parent if folder.name == CHECKPOINT else folder.parent.parent
    if not ((run / RECIPE).exists() and (run / SCORES_LOG).exists()):
        return None
    if folder.name == CHECKPOINT:
        return _Place(run)
    if folder.name == BEST:
        step = best_score(folder)["step"]
        return _Place(run, folder.parent.name, step) if type(step) is int else None
    return _Place(run, folder.parent.name) if folder.name == "model" else None


def _steps_of(run: Path) -> dict[str, int]:
    """The steps of each stage of a run, by the stage's folder, in order."""
    path, error = run / RECIPE, CheckpointError
    found = {}
    for n, stage in enumerate(checked_field(read_json(path, error), "stages", list, path, error=error)):
        where = f"stages[{n}]."
        name = checked_field(stage, "name", str, path, where, error) or checked_field(
            stage, "kind", str, path, where, error
        )
        loop = checked_field(stage, "loop", dict, path, where, error)
        found[name] = checked_field(loop, "steps", int, path, f"{where}loop.", error)
    if not found:
        raise CheckpointError(f"{path}: damaged: stages is empty")
    return found
