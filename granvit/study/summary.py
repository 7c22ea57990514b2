"""Everything that a study's results say, as plain values: what the page, the tables and study.json are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from granvit.bootstrap import Estimate
from granvit.study.definition import MEASURES, Arm, Comparison, Study
from granvit.study.jobs import Job
from granvit.study.results import Result
from granvit.study.statistics import Answer, Difference, answer, by_arm, compared, of_arm, to_json

Curve = list[tuple[int, float]]


@dataclass
class ArmRow:
    """What came of one arm.

    Attributes:
        seeds: those that have a result, of `wanted`.
        scores: by measure, the mean over seeds with its interval; None where it was not measured.
        points: by measure, each seed's own value.
        images, flops: the mean over seeds of what training took; `relative` is `flops` over that of the reference arm.
        curves: by stage and metric, each seed's curve.
    """

    arm: Arm
    wanted: int
    seeds: list[int]
    scores: dict[str, Estimate | None]
    points: dict[str, list[float]]
    images: float | None
    flops: float | None
    relative: float | None
    curves: dict[str, dict[str, list[Curve]]]


@dataclass
class Question:
    """A comparison and what was found."""

    comparison: Comparison
    difference: Difference
    answer: Answer
    sentence: str


@dataclass
class Summary:
    """A study's results.

    Attributes:
        rows: by arm, in the study's order; also those of which nothing has run.
        questions: in the study's order.
        measures: those of which some arm has a value.
        missing: by arm, the seeds without a result.
        facts: what was run on what, for people.
    """

    study: Study
    rows: dict[str, ArmRow]
    questions: list[Question]
    measures: list[str]
    missing: dict[str, list[int]] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def jobs_done(self) -> int:
        return sum(len(row.seeds) for row in self.rows.values())


def summarise(study: Study, jobs: Sequence[Job], results: Sequence[Result], reference: str) -> Summary:
    """The summary of all results that there are.

    Args:
        reference: the arm whose arithmetic others are related to.
    """
    arms = by_arm(results)
    measures = [m for m in MEASURES if any(r.value(m) is not None for r in results)]
    wanted = {arm.name: sorted(job.seed for job in jobs if job.arm.name == arm.name) for arm in study.arms}
    base = _mean([_flops(r) for r in arms.get(reference, [])])
    rows = {a.name: _row(a, len(wanted[a.name]), arms.get(a.name, []), measures, base) for a in study.arms}
    differences = compared(study.comparisons, arms)
    questions = [_question(c, d) for c, d in zip(study.comparisons, differences, strict=True)]
    missing = {
        name: [seed for seed in seeds if seed not in rows[name].seeds]
        for name, seeds in wanted.items()
        if len(rows[name].seeds) < len(seeds)
    }
    return Summary(study, rows, questions, measures, missing, _facts(jobs, results))


def _row(arm: Arm, wanted: int, results: Sequence[Result], measures: Sequence[str], base: float | None) -> ArmRow:
    curves: dict[str, dict[str, list[Curve]]] = {}
    for result in results:
        for stage, metrics in result.curves.items():
            for metric, points in metrics.items():
                curves.setdefault(stage, {}).setdefault(metric, []).append(points)
    flops = _mean([_flops(r) for r in results])
    return ArmRow(
        arm,
        wanted,
        [result.seed for result in results],
        {m: _possible(of_arm(results, m), MEASURES[m].percent) for m in measures},
        {m: [v for r in results if (v := r.value(m)) is not None] for m in measures},
        _mean([float(r.cost["images"]) for r in results if isinstance(r.cost.get("images"), int)]),
        flops,
        flops / base if flops is not None and base else None,
        curves,
    )


def _possible(found: Estimate | None, percent: bool) -> Estimate | None:
    """A score whose interval ends where a share does, at 0 and 1; t over few seeds knows of no such ends."""
    if not percent or found is None or found.low is None or found.high is None:
        return found
    return Estimate(found.value, max(0.0, found.low), min(1.0, found.high))


def _flops(result: Result) -> float | None:
    flops = result.cost.get("flops")
    return float(flops) if isinstance(flops, int | float) else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _question(comparison: Comparison, difference: Difference) -> Question:
    better = MEASURES[comparison.measure].more_is_better is not False
    said = answer(comparison, difference, better)
    return Question(comparison, difference, said, _sentence(comparison, difference, said))


def _sentence(comparison: Comparison, difference: Difference, said: Answer) -> str:
    """The answer for people, with its interval."""
    found, measure = difference.estimate, MEASURES[comparison.measure]
    if found is None:
        return "Not run yet: an arm of it has no result."
    size = f"{measure.title} {signed(found, measure.percent)}, {counted(difference.seeds, 'seed')}"
    if found.low is None or difference.seeds < 2:
        return f"Cannot be told from one seed: {size}."
    margin = f"{100 * comparison.margin:g} points" if measure.percent else f"{comparison.margin:g}"
    why = {
        ("better", "holds"): "Yes",
        ("better", "does not hold"): "No, it is the other way round",
        ("better", "no large gain"): f"No gain of {margin} in training of this length; less is not refuted",
        ("better", "cannot be told"): "Cannot be told at this size",
        ("not worse", "holds"): f"Yes, it costs less than {margin}",
        ("not worse", "does not hold"): "No, it costs something",
        ("not worse", "cannot be told"): "Cannot be told at this size",
    }[comparison.claim, said]
    return f"{why}: {size}."


def counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def signed(found: Estimate, percent: bool) -> str:
    """A difference with its interval: in points where the measure is a share."""
    scale, unit = (100, " points") if percent else (1, "")
    interval = (
        "" if found.low is None or found.high is None else f" [{scale * found.low:+.1f}, {scale * found.high:+.1f}]"
    )
    return f"{scale * found.value:+.1f}{interval}{unit}"


def shown(found: Estimate | None, percent: bool) -> str:
    """A score with its interval, in percent where the measure is a share."""
    if found is None:
        return "–"
    scale = 100 if percent else 1
    interval = (
        "" if found.low is None or found.high is None else f" [{scale * found.low:.1f}, {scale * found.high:.1f}]"
    )
    return f"{scale * found.value:.1f}{interval}"


def _facts(jobs: Sequence[Job], results: Sequence[Result]) -> dict[str, str]:
    if not results:
        return {}
    machines = sorted({f"{r.facts.get('machine', '?')}, {r.facts.get('device', '?')}" for r in results})
    seconds = sum(r.cost.get("seconds", 0) for r in results)
    images = results[0].images
    tiled = f" of {images['pictures']} pictures" if "pictures" in images else ""
    return {
        "Jobs": f"{len(results)} of {len(jobs)} done",
        "Held-out images": f"{images.get('count')}{tiled}, the same for all",
        "Training images": f"{jobs[0].data.images:,}" if jobs else "–",
        "Machines": "; ".join(machines),
        "Versions": ", ".join(sorted({r.facts.get("version", "?") for r in results})),
        "Time of all jobs": f"{seconds / 3600:.1f} hours",
    }


def summary_json(summary: Summary) -> dict[str, Any]:
    """The summary as plain values; shares are fractions in [0, 1]."""

    def scores(of: Mapping[str, Estimate | None]) -> dict[str, Any]:
        return {name: found and found.to_json() for name, found in of.items()}

    return {
        "study": summary.study.name,
        "title": summary.study.title,
        "facts": summary.facts,
        "missing": summary.missing,
        "questions": [
            {
                "question": q.comparison.question,
                "first": q.comparison.first,
                "second": q.comparison.second,
                "measure": q.comparison.measure,
                "claim": q.comparison.claim,
                "margin": q.comparison.margin,
                "paper": q.comparison.paper,
                "answer": q.answer,
                "sentence": q.sentence,
                **to_json(q.difference),
            }
            for q in summary.questions
        ],
        "measures": {name: vars(MEASURES[name]) for name in summary.measures},
        "arms": {
            name: {
                "title": row.arm.title,
                "seeds": row.seeds,
                "wanted": row.wanted,
                "scores": scores(row.scores),
                "points": row.points,
                "images": row.images,
                "flops": row.flops,
                "relative_flops": row.relative,
            }
            for name, row in summary.rows.items()
        },
    }
