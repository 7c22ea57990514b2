"""The plots of a study: every seed as a point, means with their intervals, curves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from granvit.bootstrap import Estimate
from granvit.evaluate.plots import ACCENT, INK
from granvit.study.definition import MEASURES, Series
from granvit.study.summary import ArmRow, Curve, Summary

_DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))


def dots(summary: Summary, measure: str) -> Figure | None:
    """Arms below each other: each seed a ring, the mean a dot with its interval; None where nothing was measured."""
    rows = [row for row in summary.rows.values() if row.points.get(measure)]
    if not rows:
        return None
    shown = MEASURES[measure]
    scale = 100 if shown.percent else 1
    figure = Figure(figsize=(6.4, 0.6 + 0.24 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for y, row in enumerate(rows):
        points = [scale * value for value in row.points[measure]]
        axes.plot(points, [y] * len(points), "o", color=INK, fillstyle="none", markersize=4, alpha=0.6, linewidth=0)
        found = row.scores[measure]
        if found is not None:
            _interval(axes, found, y, scale, vertical=False)
    axes.set_yticks(range(len(rows)), [row.arm.title for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(shown.title + (", %" if shown.percent else ""))
    axes.grid(axis="x", color=INK, alpha=0.15, linewidth=0.5)
    return figure


def along(summary: Summary, series: Series, measures: Sequence[str]) -> Figure | None:
    """One setting from left to right, a panel for each measure; None where fewer than two values have run."""
    rows = [(label, summary.rows[arm]) for label, arm in series.points]
    wanted = [m for m in measures if sum(bool(row.points.get(m)) for _, row in rows) > 1]
    if not wanted:
        return None
    figure = Figure(figsize=(2.4 * len(wanted), 2.1), layout="constrained")
    for axes, measure in zip(figure.subplots(1, len(wanted), squeeze=False)[0], wanted, strict=True):
        _along(axes, rows, measure)
        axes.set_xlabel(series.title, fontsize=7)
    return figure


def _along(axes: Axes, rows: Sequence[tuple[str, ArmRow]], measure: str) -> None:
    scale = 100 if MEASURES[measure].percent else 1
    means = []
    for x, (_, row) in enumerate(rows):
        points = [scale * value for value in row.points.get(measure, [])]
        axes.plot([x] * len(points), points, "o", color=INK, fillstyle="none", markersize=4, alpha=0.6, linewidth=0)
        found = row.scores.get(measure)
        if found is not None:
            _interval(axes, found, x, scale, vertical=True)
            means.append((x, scale * found.value))
    axes.plot(*np.array(means).T, color=ACCENT, linewidth=1)
    axes.set_xticks(range(len(rows)), [label for label, _ in rows])
    axes.set_xlim(-0.5, len(rows) - 0.5)
    axes.set_title(MEASURES[measure].title, fontsize=8)
    axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.5)


def _interval(axes: Axes, found: Estimate, at: float, scale: float, vertical: bool) -> None:
    ends = [found.value if end is None else end for end in (found.low, found.value, found.high)]
    low, mean, high = (scale * end for end in ends)
    if vertical:
        axes.plot([at, at], [low, high], color=ACCENT, linewidth=1.5)
        axes.plot([at], [mean], "o", color=ACCENT, markersize=4)
    else:
        axes.plot([low, high], [at, at], color=ACCENT, linewidth=1.5)
        axes.plot([mean], [at], "o", color=ACCENT, markersize=4)


def curves(rows: Sequence[ArmRow], stage: str, metric: str, title: str) -> Figure | None:
    """A metric of a stage over its steps, a line for each arm: the mean of its seeds; None where no arm has it."""
    having = [(row, row.curves.get(stage, {}).get(metric)) for row in rows]
    known = [(row, found) for row, found in having if found]
    if not known:
        return None
    figure = Figure(figsize=(3.6, 2.4), layout="constrained")
    axes = figure.subplots()
    for n, (row, of_seeds) in enumerate(known):
        color, dashes = (ACCENT, INK)[n % 2], _DASHES[n // 2 % len(_DASHES)]
        axes.plot(*_mean(of_seeds), color=color, linestyle=dashes, linewidth=1.1, label=row.arm.title)
    axes.set_xlabel("step")
    axes.set_title(title, fontsize=8)
    axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.5)
    axes.legend(fontsize=6, frameon=False, labelcolor=INK)
    return figure


def _mean(of_seeds: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """The mean of the seeds' curves over the steps that all of them have."""
    steps = sorted(set.intersection(*({step for step, _ in curve} for curve in of_seeds)))
    values = np.mean([[dict(curve)[step] for step in steps] for curve in of_seeds], axis=0)
    return np.array(steps), values
