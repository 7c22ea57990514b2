"""What a job leaves: one small JSON file, by which it counts as done on every machine, with or without its weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from granvit.errors import GranvitError
from granvit.files import checked_field, read_json, write_text
from granvit.study.jobs import Job
from granvit.train.identity import difference

FOLDER = "results"
_FORMAT = 1
# Numbers are kept to so many digits behind the point.
_DIGITS = 4
_CURVE_POINTS = 40


@dataclass
class Result:
    """What came of a job.

    Attributes:
        images: the ids of the held-out images, as a digest, and their number; where some are tiles of one picture, of
            how many "pictures" they are.
        tables: by measure, (pictures, 2): what each picture adds to the measure's numerator and denominator.
        numbers: measures that are no such ratio, a number each.
        curves: by stage, metric -> (step, value) pairs, thinned.
        cost: "images" seen in training, "flops" (None where uncounted), "steps" by stage, "seconds" of the last
            attempt.
        facts: of the machine and the version.
    """

    arm: str
    seed: int
    identity: str
    settings: dict[str, Any]
    images: dict[str, Any]
    tables: dict[str, np.ndarray]
    numbers: dict[str, float]
    curves: dict[str, dict[str, list[tuple[int, float]]]]
    cost: dict[str, Any]
    facts: dict[str, str] = field(default_factory=dict)

    def value(self, measure: str) -> float | None:
        """The measure over all images; None where it was not measured, or there was nothing to count."""
        if measure in self.numbers:
            return self.numbers[measure]
        if measure not in self.tables:
            return None
        top, bottom = self.tables[measure].sum(0)
        return float(top / bottom) if bottom > 0 else None


def path_of(out: Path, job: Job) -> Path:
    return out / FOLDER / f"{job.name}.json"


def write_result(out: Path, job: Job, result: Result) -> None:
    tables = {
        name: {"sums": _short(table[:, 0]), "counts": _short(table[:, 1])} for name, table in result.tables.items()
    }
    content = {
        "format": _FORMAT,
        "arm": result.arm,
        "seed": result.seed,
        "identity": result.identity,
        "images": result.images,
        "numbers": {name: round(value, 6) for name, value in result.numbers.items()},
        "cost": result.cost,
        "facts": result.facts,
        "curves": {stage: {m: thinned(points) for m, points in c.items()} for stage, c in result.curves.items()},
        "settings": result.settings,
    }
    # A line for each entry and each measure: small, and readable in a diff.
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in content.items()]
    rows = [f"  {json.dumps(name)}: {json.dumps(table, separators=(',', ':'))}" for name, table in tables.items()]
    text = "{\n" + ",\n".join(lines) + ',\n "tables": {\n' + ",\n".join(rows) + "\n }\n}\n"
    write_text(path_of(out, job), text)


def _short(column: np.ndarray) -> list[float | int]:
    return [int(v) if v == int(v) else round(float(v), _DIGITS) for v in column]


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most so many points as a plot needs, each the mean of its neighbours, at the last one's step."""
    parts = np.array_split(np.asarray(points, float).reshape(-1, 2), min(len(points), _CURVE_POINTS) or 1)
    return [(int(part[-1, 0]), round(float(part[:, 1].mean()), _DIGITS)) for part in parts if len(part)]


def find_result(out: Path, job: Job) -> Result | None:
    """The result of a job, None where there is none yet.

    Raises:
        GranvitError: it is damaged, or of other settings; the message names the file and the setting.
    """
    path = path_of(out, job)
    if not path.exists():
        return None
    result = read_result(path)
    if result.identity != job.identity:
        now = json.loads(json.dumps(job.settings))
        reason = difference(_flat(result.settings), _flat(now)) or "the identities differ"
        raise GranvitError(f"{path}: the result of another definition: {reason}; choose another --out, or remove it")
    return result


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def read_result(path: Path) -> Result:
    """A result as `write_result` wrote it.

    Raises:
        GranvitError: it is not; the message names file and field.
    """
    content = read_json(path)
    if checked_field(content, "format", int, path) != _FORMAT:
        raise GranvitError(f"{path}: format {content['format']} is not the one that this version reads, {_FORMAT}")
    texts = {name: checked_field(content, name, str, path) for name in ("arm", "identity")}
    seed = checked_field(content, "seed", int, path)
    objects = {
        name: checked_field(content, name, dict, path)
        for name in ("settings", "images", "numbers", "curves", "cost", "facts")
    }
    count = checked_field(objects["images"], "count", int, path, "images.")
    if "pictures" in objects["images"]:
        count = checked_field(objects["images"], "pictures", int, path, "images.")
    tables = {}
    for name, columns in checked_field(content, "tables", dict, path).items():
        both = [checked_field(columns, column, list, path, f"tables.{name}.") for column in ("sums", "counts")]
        tables[name] = _table(both, count, f"{path}: damaged: tables.{name}")
    curves: Any = {
        stage: {
            metric: _curve(points, f"{path}: damaged: curves.{stage}.{metric}")
            for metric, points in checked_field(objects["curves"], stage, dict, path, "curves.").items()
        }
        for stage in objects["curves"]
    }
    numbers = {f"numbers.{name}": value for name, value in objects["numbers"].items()}
    numbers |= {f"cost.{name}": value for name, value in objects["cost"].items() if name != "steps"}
    for name, value in numbers.items():
        if type(value) not in (int, float):
            raise GranvitError(f"{path}: damaged: {name} is {json.dumps(value)[:60]}, not a number")
    return Result(**texts, seed=seed, tables=tables, **{**objects, "curves": curves})


def _curve(points: Any, where: str) -> list[tuple[int, float]]:
    try:
        return [(int(step), float(value)) for step, value in points]
    except (ValueError, TypeError) as error:
        raise GranvitError(f"{where}: pairs of step and value are expected ({error})") from error


def _table(columns: list[list[Any]], count: int, where: str) -> np.ndarray:
    try:
        table = np.array(columns, dtype=float).T
    except (ValueError, TypeError) as error:
        raise GranvitError(f"{where}: {error}") from error
    if table.shape != (count, 2) or not np.isfinite(table).all():
        raise GranvitError(f"{where}: {count} finite numbers are expected in sums and in counts")
    return table
