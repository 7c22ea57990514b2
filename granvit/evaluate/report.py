"""One self-contained HTML file about a run: scores, curves, held-out pictures, and how to make it again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from PIL import Image

from granvit.coordinates import Box
from granvit.draw import colors_for, draw_boxes
from granvit.evaluate.measures import MEASURES
from granvit.evaluate.metrics import paired_iou
from granvit.evaluate.plots import ACCENT, INK, plot_svg
from granvit.evaluate.scoring import LESS_IS_BETTER
from granvit.page import data_uri, percent, write_page
from granvit.texts import exact_match, without_repeats
from granvit.train.debug.first_batch import GAP, PICTURE, TEXT, Sheet, stack

BASELINE = {"baseline": "Best constant answer"}
LONGEST_SIDE = 720

# task, and what it is; its measures
TASKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "describe": ("Describe: given a box, say what is in it", ("rouge_l", "exact")),
    "locate": ("Locate: given a text, say where it is", ("acc50", "miou", "parse_rate")),
    "read": ("Read: given a box, transcribe its text", ("exact", "cer", "rouge_l")),
    "locate_text": ("Locate text: given a printed line, say where it stands", ("acc50", "miou", "parse_rate")),
    "caption": ("Caption: describe the whole picture", ("rouge_l",)),
    "answer": ("Answer: given a question, answer it", ("rouge_l", "exact")),
}
HEADLINES = {
    "describe": "rouge_l",
    "locate": "acc50",
    "caption": "rouge_l",
    "read": "exact",
    "locate_text": "acc50",
    "answer": "rouge_l",
}
_PLACES = re.compile(r"<loc\d+>(?:[\s,]*<loc\d+>)*")
# What a curve of training is, for people.
CURVES = {
    "loss": "what training lowers, over answer tokens (nats): the terms below by their weights",
    "caption": "how unlikely the right answers are, per token; 0 would be certain of each",
    "distill": "how far the features of a region are from those of its crop alone, as the teacher sees it",
}


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
    commands: Mapping[str, Sequence[str]],
    speed: Sequence[Mapping[str, str]] = (),
    first_batches: Mapping[str, Image.Image] | None = None,
    recipe: str = "",
) -> None:
    """Writes the report to `path`, pictures and styles included; it needs no network to be read.

    Args:
        title, summary: what was run, and in a sentence or two what came of it.
        metrics: "before", each stage in order, and "baseline" (the best constant answer), each as task -> metric ->
            fraction in [0, 1], for the tasks and metrics of `TASKS`. All are optional.
        curves: stage -> metric -> (step, value) pairs.
        examples: pictures the model never trained on.
        facts: corpus, model size, recipes, machine: what a reader needs in order to place the numbers.
        commands: shell commands to go on with, by what they are for.
        speed: a row of each stage, by column; alike for all stages.
        first_batches: by stage, as it was drawn.
        recipe: the resolved recipe, as text.
    """
    stages = {name: label_of(name) for name in metrics if name not in ("baseline", "seconds")}
    columns = {**stages, **{name: label for name, label in BASELINE.items() if name in metrics}}
    write_page(
        path,
        "report.html.j2",
        title=title,
        summary=summary,
        columns=columns,
        headlines=_headlines(metrics, list(stages)),
        tables=_tables(metrics, list(columns)),
        curves={title_of(stage): _panels(named) for stage, named in curves.items()},
        stages=stages,
        examples=[_card(example, list(stages)) for example in examples],
        facts=facts,
        commands=commands,
        speed=speed,
        first_batches={title_of(stage): _shown(picture) for stage, picture in (first_batches or {}).items()},
        recipe=recipe,
    )


def title_of(stage: str) -> str:
    """A stage's folder as a heading: "stage1" is "Stage 1"."""
    return re.sub(r"^stage(?=\d)", "stage ", stage).capitalize()


def label_of(stage: str) -> str:
    """The heading of a column: "before", or what stage it is after."""
    if stage == "before":
        return "Before"
    title = title_of(stage)
    return f"After {title[:1].lower()}{title[1:]}"


def meaning_of(task: str, metric: str) -> tuple[str, str] | None:
    """What a score is called, and what it means; None where the task has no such score."""
    return MEASURES[metric] if metric in TASKS.get(task, ("", ()))[1] else None


def duration(seconds: float) -> str:
    """As people say it: "9 min 5 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (0 if hours else rest, "s")]
    return " ".join(f"{n} {unit}" for n, unit in parts if n) or "0 s"


# --- numbers ---------------------------------------------------------------------------------------------------------


def _value(metrics: Mapping[str, Any], column: str, task: str, metric: str) -> float | None:
    return metrics.get(column, {}).get(task, {}).get(metric)


def _headlines(metrics: Mapping[str, Any], stages: Sequence[str]) -> list[dict[str, str]]:
    """The three numbers to see first, of the tasks that asked most: from the first to the last stage."""
    counts = {task: max((_value(metrics, s, task, "count") or 0 for s in stages), default=0) for task in HEADLINES}
    asked = [task for task in HEADLINES if any(task in metrics[stage] for stage in stages)]
    most = sorted(asked, key=lambda task: -counts[task])[:3]
    cards = []
    for task, metric in HEADLINES.items():
        if task not in most:
            continue
        values = {s: v for s in stages if (v := _value(metrics, s, task, metric)) is not None}
        if len(values) < 2:
            continue
        first, last = list(values)[0], list(values)[-1]
        constant = _value(metrics, "baseline", task, metric)
        cards.append(
            {
                "name": TASKS[task][0].split(":")[0],
                "task": TASKS[task][0].split(": ")[1],
                "metric": MEASURES[metric][0],
                "meaning": MEASURES[metric][1],
                "before": percent(values[first]),
                "after": percent(values[last]),
                "last": label_of(last).lower(),
                "constant": "" if constant is None else percent(constant),
            }
        )
    return cards


def _tables(metrics: Mapping[str, Any], columns: list[str]) -> list[dict[str, Any]]:
    tables = []
    for task, (heading, names) in TASKS.items():
        rows = []
        for metric in names:
            label, meaning = MEASURES[metric]
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


# --- curves ----------------------------------------------------------------------------------------------------------


def _panels(named: Mapping[str, Sequence[tuple[float, float]]]) -> list[dict[str, Any]]:
    return [
        {"name": name, "meaning": CURVES.get(name, ""), "svg": _curve_svg(points)}
        for name, points in named.items()
        if points
    ]


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


def drawn_examples(examples: Sequence[Example], stage: str) -> Image.Image:
    """Pictures beside what was said of them after a stage, as one picture for the trackers."""
    panels = []
    for example in examples:
        picture, colors, _ = _drawn(example, [stage])
        picture.thumbnail((PICTURE, PICTURE))
        sheet = Sheet(TEXT)
        for number, (region, color) in enumerate(zip(example.regions, colors, strict=True), start=1):
            said = [_answer(region.described[stage])] if stage in region.described else []
            found = _found([stage] if stage in region.located else [], region.located.get(stage), region.true_box)
            sheet.write("  →  ".join([region.true_text, *said, *([found["text"]] if found else [])]), color, number)
        text = sheet.cut()
        panel = Image.new("RGB", (PICTURE + TEXT + 3 * GAP, max(PICTURE, text.height) + GAP), "white")
        panel.paste(picture, (GAP, 0))
        panel.paste(text, (PICTURE + 2 * GAP, 0))
        panels.append(panel)
    return stack(panels)


def _card(example: Example, stages: Sequence[str]) -> dict[str, Any]:
    """A picture with true boxes solid and located ones dashed, and the rows of the table below it."""
    picture, colors, founds = _drawn(example, stages)
    rows = []
    for number, (region, color, found) in enumerate(zip(example.regions, colors, founds, strict=True), start=1):
        said = {
            stage: (_answer(answer), exact_match([answer], [region.true_text]) == 1)
            for stage, answer in region.described.items()
        }
        rows.append({"number": number, "color": color, "text": region.true_text, "said": said, "found": found})
    return {**_shown(picture), "rows": rows}


def _drawn(example: Example, stages: Sequence[str]) -> tuple[Image.Image, list[str], list[dict[str, Any] | None]]:
    """The picture with its boxes, the colour of each region, and how well it was located after the last stage."""
    image = example.image.copy()
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    scale = np.tile(np.divide(image.size, example.image.size), 2)
    colors = colors_for(len(example.regions))
    boxes, labels, frames, dashed, founds = [], [], [], [], []
    for number, (region, color) in enumerate(zip(example.regions, colors, strict=True), start=1):
        boxes.append(np.multiply(region.true_box, scale))
        labels.append(str(number))
        frames.append(color)
        dashed.append(False)
        # The last stage's box only: three predictions for each region would hide the picture.
        last = [stage for stage in stages if stage in region.located][-1:]
        found = region.located[last[0]] if last else None
        if found is not None:
            boxes.append(np.multiply(found, scale))
            labels.append("")
            frames.append(color)
            dashed.append(True)
        founds.append(_found(last, found, region.true_box))
    return draw_boxes(image, np.reshape(boxes, (-1, 4)), labels, frames, dashed=dashed), colors, founds


def _answer(said: str) -> str:
    """An answer for people; the location tokens that a text has no place for are one sign."""
    return without_repeats(_PLACES.sub("<loc…>", said))


def _shown(picture: Image.Image) -> dict[str, Any]:
    return {"src": data_uri(picture), "width": picture.width, "height": picture.height}


def _found(stage: Sequence[str], box: Box | None, true_box: Box) -> dict[str, Any] | None:
    if not stage:
        return None
    if box is None:
        return {"text": "no readable box", "right": False}
    overlap = float(paired_iou([box], [true_box])[0])
    return {"text": f"IoU\N{NO-BREAK SPACE}{overlap:.2f}", "right": overlap >= 0.5}
