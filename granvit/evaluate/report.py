"""One self-contained HTML file about a run: scores, curves, held-out pictures, and how to make it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from PIL import Image

from granvit.coordinates import Box
from granvit.draw import colors_for, draw_boxes
from granvit.evaluate.metrics import paired_iou
from granvit.evaluate.plots import ACCENT, INK, plot_svg
from granvit.page import data_uri, percent, write_page
from granvit.texts import exact_match

STAGES = {"before": "Before", "stage1": "After stage 1", "stage2": "After stage 2"}
BASELINE = {"baseline": "Best constant answer"}
LONGEST_SIDE = 720

_BOX_METRICS = {
    "acc50": ("Acc@0.5", "boxes with an IoU of 0.5 or more with the true box"),
    "miou": ("Mean IoU", "overlap with the true box, on average"),
    "parse_rate": ("Parse rate", "answers that are a box at all"),
}
# task, what it is, then metric, its name, its meaning
TASKS: dict[str, tuple[str, dict[str, tuple[str, str]]]] = {
    "describe": (
        "Describe: given a box, say what is in it",
        {
            "rouge_l": ("ROUGE-L", "words shared with the true text"),
            "exact": ("Exact", "answers equal to the true text"),
        },
    ),
    "locate": ("Locate: given a text, say where it is", _BOX_METRICS),
    "read": (
        "Read: given a box, transcribe its text",
        {
            "exact": ("Exact", "lines without any error"),
            "cer": ("CER", "wrong characters; less is better"),
            "rouge_l": ("ROUGE-L", "words shared with the true text"),
        },
    ),
    "locate_text": ("Locate text: given a printed line, say where it stands", _BOX_METRICS),
    "caption": (
        "Caption: describe the whole picture",
        {"rouge_l": ("ROUGE-L", "words shared with the true caption")},
    ),
}
HEADLINES = {"describe": "rouge_l", "locate": "acc50", "caption": "rouge_l", "read": "exact", "locate_text": "acc50"}
LESS_IS_BETTER = {"cer"}


class ExampleRegion(NamedTuple):
    """A region of a held-out picture and what the model made of it.

    `true_box` and the boxes of `located` are (x1, y1, x2, y2) in pixels; `described` and `located` go by stage name, a
    box is None where the answer wasn't one.
    """

    true_box: Box
    true_text: str
    described: Mapping[str, str]
    located: Mapping[str, Box | None]


@dataclass
class Example:
    """A held-out picture (RGB, EXIF-upright) and its regions."""

    image: Image.Image
    regions: Sequence[ExampleRegion]


def write_report(
    path: str | Path,
    *,
    title: str,
    summary: str,
    metrics: Mapping[str, Any],
    curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    examples: Sequence[Example],
    facts: Mapping[str, str],
    commands: Sequence[str],
) -> None:
    """Writes the report to `path`, pictures and styles included; it needs no network to be read.

    Args:
        title, summary: what was run, and in a sentence or two what came of it.
        metrics: "before", "stage1", "stage2" and "baseline" (the best constant answer), each as task -> metric ->
            fraction in [0, 1], for the tasks and metrics of `TASKS`; "seconds" of the whole run. All are optional.
        curves: stage -> metric -> (step, value) pairs.
        examples: pictures the model never trained on.
        facts: corpus, model size, recipes, machine: what a reader needs in order to place the numbers.
        commands: shell commands to go on with.
    """
    columns = {name: label for name, label in {**STAGES, **BASELINE}.items() if name in metrics}
    write_page(
        path,
        "report.html.j2",
        title=title,
        summary=summary,
        columns=columns,
        headlines=_headlines(metrics),
        tables=_tables(metrics, list(columns)),
        curves={
            STAGES.get(stage, stage).removeprefix("After ").capitalize(): _panels(n) for stage, n in curves.items()
        },
        stages={name: label for name, label in STAGES.items() if name in metrics},
        examples=[_card(example) for example in examples],
        facts={**facts, **({"Time": _duration(metrics["seconds"])} if "seconds" in metrics else {})},
        commands=commands,
    )


# --- numbers ---------------------------------------------------------------------------------------------------------


def _value(metrics: Mapping[str, Any], column: str, task: str, metric: str) -> float | None:
    return metrics.get(column, {}).get(task, {}).get(metric)


def _headlines(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """The three numbers to see first, of the tasks that asked most: from the first to the last stage."""
    counts = {task: max(_value(metrics, stage, task, "count") or 0 for stage in STAGES) for task in HEADLINES}
    asked = [task for task in HEADLINES if any(task in metrics.get(stage, {}) for stage in STAGES)]
    most = sorted(asked, key=lambda task: -counts[task])[:3]
    cards = []
    for task, metric in HEADLINES.items():
        if task not in most:
            continue
        values = {s: v for s in STAGES if (v := _value(metrics, s, task, metric)) is not None}
        if len(values) < 2:
            continue
        first, last = list(values)[0], list(values)[-1]
        constant = _value(metrics, "baseline", task, metric)
        cards.append(
            {
                "name": TASKS[task][0].split(":")[0],
                "task": TASKS[task][0].split(": ")[1],
                "metric": TASKS[task][1][metric][0],
                "before": percent(values[first]),
                "after": percent(values[last]),
                "last": STAGES[last].lower(),
                "constant": "" if constant is None else percent(constant),
            }
        )
    return cards


def _tables(metrics: Mapping[str, Any], columns: list[str]) -> list[dict[str, Any]]:
    tables = []
    for task, (heading, names) in TASKS.items():
        rows = []
        for metric, (label, meaning) in names.items():
            # A constant answer always parses; to show that would crown it best.
            values = [
                None if (column, metric) == ("baseline", "parse_rate") else _value(metrics, column, task, metric)
                for column in columns
            ]
            known = [v for v in values if v is not None]
            if known:
                best = min(known) if metric in LESS_IS_BETTER else max(known)
                # What all columns share is no achievement of any of them.
                cells = [_cell(v, v == best and min(known) < max(known)) for v in values]
                rows.append({"label": label, "meaning": meaning, "cells": cells})
        if rows:
            tables.append({"heading": heading, "rows": rows})
    return tables


def _cell(value: float | None, best: bool) -> dict[str, Any]:
    if value is None:
        return {"text": "–", "width": 0, "best": False}
    return {"text": percent(value), "width": round(100 * min(max(value, 0), 1), 1), "best": best}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (0 if hours else rest, "s")]
    return " ".join(f"{n} {unit}" for n, unit in parts if n) or "0 s"


# --- curves ----------------------------------------------------------------------------------------------------------


def _panels(named: Mapping[str, Sequence[tuple[float, float]]]) -> list[dict[str, Any]]:
    return [{"name": name, "svg": _curve_svg(points)} for name, points in named.items() if points]


def _curve_svg(points: Sequence[tuple[float, float]]) -> Markup:
    steps, values = np.asarray(points, dtype=float).T

    def draw(axes: Any) -> None:
        window = max(1, len(values) // 20)
        smooth_steps, smooth = (np.convolve(v, np.ones(window) / window, mode="valid") for v in (steps, values))
        if window > 1:
            axes.plot(steps, values, color=ACCENT, linewidth=0.6, alpha=0.35)
        axes.plot(smooth_steps, smooth, color=ACCENT, linewidth=1.5, marker="o" if len(values) == 1 else "")
        axes.set_xlabel("step", color=INK)
        axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.5)

    return plot_svg(draw, (3.6, 2.0))


# --- pictures --------------------------------------------------------------------------------------------------------


def _card(example: Example) -> dict[str, Any]:
    """A picture with true boxes solid and located ones dashed, and the rows of the table below it."""
    image = example.image.copy()
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    scale = np.tile(np.divide(image.size, example.image.size), 2)
    colors = colors_for(len(example.regions))

    boxes, labels, frames, dashed, rows = [], [], [], [], []
    for number, (region, color) in enumerate(zip(example.regions, colors, strict=True), start=1):
        true_box, text, described, located = region
        boxes.append(np.multiply(true_box, scale))
        labels.append(str(number))
        frames.append(color)
        dashed.append(False)
        # The last stage's box only: three predictions for each region would hide the picture.
        last = [stage for stage in STAGES if stage in located][-1:]
        found = located[last[0]] if last else None
        if found is not None:
            boxes.append(np.multiply(found, scale))
            labels.append("")
            frames.append(color)
            dashed.append(True)
        said = {stage: (answer, exact_match([answer], [text]) == 1) for stage, answer in described.items()}
        rows.append(
            {"number": number, "color": color, "text": text, "said": said, "found": _found(last, found, true_box)}
        )
    picture = draw_boxes(image, np.reshape(boxes, (-1, 4)), labels, frames, dashed=dashed)
    return {"src": data_uri(picture), "width": picture.width, "height": picture.height, "rows": rows}


def _found(stage: list[str], box: Box | None, true_box: Box) -> dict[str, Any] | None:
    if not stage:
        return None
    if box is None:
        return {"text": "no readable box", "right": False}
    overlap = float(paired_iou([box], [true_box])[0])
    return {"text": f"IoU\N{NO-BREAK SPACE}{overlap:.2f}", "right": overlap >= 0.5}
