"""An evaluation as people read it: rows of scores for terminal, Markdown and page; the worst and median answers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from granvit.draw import draw_boxes
from granvit.errors import GranvitError
from granvit.evaluate.answering import decode_named
from granvit.evaluate.calibration import Calibration, reliability_svg
from granvit.evaluate.evaluation import Evaluation
from granvit.evaluate.items import EvalImage, EvalSet, Item
from granvit.evaluate.measures import MEASURES
from granvit.evaluate.scoring import SCORERS
from granvit.page import data_uri, percent, write_page

GROUPS = {
    "fine-grained": "Fine-grained",
    "vqa": "VQA",
    "reasoning": "Reasoning",
    "ocr": "OCR",
}


@dataclass(frozen=True)
class Row:
    """One measure of one task, in words."""

    measure: str
    meaning: str
    value: str
    interval: str
    constant: str
    share: float


def rows_of(result: Evaluation, task: str) -> list[Row]:
    """The measures of a task, main ones first as its scorer has them."""
    scores = result.scores[task]
    rows = []
    for name in SCORERS[result.tasks[task].scorer].measures:
        value = scores.values.get(name)
        low, high = scores.intervals.get(name, (None, None))
        rows.append(
            Row(
                *MEASURES[name],
                "–" if value is None else percent(value),
                "" if low is None or high is None else f"{100 * low:.1f}–{100 * high:.1f}",
                percent(scores.constant[name]) if name in scores.constant else "",
                min(max(value or 0, 0), 1),
            )
        )
    return rows


def heading(result: Evaluation, task: str) -> str:
    """The task's name, and how many questions about how many images."""
    images = len({item.id for item in result.of(task)})
    return f"{task}: {int(result.scores[task].values['count']):,} questions about {images:,} images"


def markdown(result: Evaluation) -> str:
    """The whole result as a Markdown text, without pictures."""
    lines = ["# Evaluation", "", *(f"- {name}: {text}" for name, text in result.facts.items()), ""]
    if result.groups:
        lines += ["| group | average | 95 % | of |", "|---|---|---|---|"]
        for name, group in result.groups.items():
            value, low, high = group.average
            interval = "" if low is None or high is None else f"{100 * low:.1f}–{100 * high:.1f}"
            parts = ", ".join(f"{part} {percent(score)}" for part, score in group.parts.items())
            lines.append(f"| {GROUPS[name]} | {percent(value)} | {interval} | {parts} |")
        lines.append("")
    for task in result.scores:
        lines += [f"## {heading(result, task)}", ""]
        lines += ["| measure | value | 95 % | best constant answer |", "|---|---|---|---|"]
        lines += [f"| {r.measure} | {r.value} | {r.interval} | {r.constant} |" for r in rows_of(result, task)]
        lines.append("")
    lines += _calibrations(result)
    if result.notes:
        lines += ["Notes:", "", *(f"- {note}" for note in result.notes), ""]
    lines.append("Intervals: 95 %, bootstrap over images, 1,000 drawings.")
    return "\n".join(lines) + "\n"


def _calibrations(result: Evaluation) -> list[str]:
    """Of each calibrated task the error, and what a threshold keeps."""
    lines: list[str] = []
    for task, found in result.calibrations.items():
        lines += [f"## {task}: confidence", "", f"{calibration_words(found)}. Right: {found.right}.", ""]
        lines += ["| least confidence | answers kept | precision | recall |", "|---|---|---|---|"]
        lines += [
            f"| {t.confidence:.1f} | {t.kept:,} | {'–' if t.precision is None else percent(t.precision)} "
            f"| {percent(t.recall)} |"
            for t in found.thresholds
        ]
        lines.append("")
    return lines


def calibration_words(found: Calibration) -> str:
    """The numbers of a calibration in one line."""
    order = "" if found.auroc is None else f", a right answer is surer than a wrong one in {percent(found.auroc)}"
    return f"expected calibration error {percent(found.ece)} of {found.count:,} answers{order}"


SHOWN = 3
LONGEST_SIDE = 640
_TRUE, _FOUND = "#059669", "#d97706"


@dataclass(frozen=True)
class Case:
    """One answer with its score in [0, 1]."""

    item: Item
    quality: float


def chosen(items: Sequence[Item], scorer: str, count: int = SHOWN) -> dict[str, list[Case]]:
    """The `count` worst answers and those around the median, each of another image; equals in an order by hash."""
    measure = SCORERS[scorer].measures[SCORERS[scorer].quality]
    table = measure.each(items)
    scored = np.flatnonzero(table[:, 1])  # of others the measure says nothing
    quality = np.divide(table[:, 0], table[:, 1], out=np.zeros(len(table)), where=table[:, 1] > 0)
    order = sorted(scored.tolist(), key=lambda i: (quality[i], hashlib.sha256(items[i].key.encode()).digest()))
    half = np.argsort(np.abs(np.arange(len(order)) - (len(order) - 1) / 2), kind="stable")
    cases: dict[str, list[Case]] = {}
    used: set[str] = set()
    for name, ranks in (("worst", range(len(order))), ("median", half.tolist())):
        cases[name] = []
        for rank in ranks:
            item = items[order[rank]]
            if len(cases[name]) < count and item.id not in used:
                used.add(item.id)
                cases[name].append(Case(item, float(quality[order[rank]])))
    return cases


def write_report(result: Evaluation, eval_sets: Sequence[EvalSet], path: Path) -> None:
    """One self-contained HTML page: group averages, all scores, and cases with pictures, read from `eval_sets`."""
    cases = {task: chosen(result.of(task), result.tasks[task].scorer) for task in result.scores}
    wanted = {(case.item.task, case.item.id) for some in cases.values() for kind in some.values() for case in kind}
    pictures = dict(_pictures(eval_sets, wanted))
    write_page(
        path,
        "evaluation.html.j2",
        title="Evaluation",
        summary=f"{len(result.items):,} questions in {len(result.scores)} tasks, asked of {result.facts['Model']}.",
        groups=[_group(result, name) for name in result.groups],
        tables=[{"heading": heading(result, task), "rows": rows_of(result, task)} for task in result.scores],
        notes=result.notes,
        calibrations=[
            {
                "heading": task,
                "words": calibration_words(found),
                "right": found.right,
                "svg": reliability_svg(found),
                "thresholds": [
                    {
                        "confidence": f"{t.confidence:.1f}",
                        "kept": f"{t.kept:,}",
                        "precision": "–" if t.precision is None else percent(t.precision),
                        "recall": percent(t.recall),
                    }
                    for t in found.thresholds
                ],
            }
            for task, found in result.calibrations.items()
        ],
        cases=[
            {
                "heading": task,
                "measure": MEASURES[SCORERS[result.tasks[task].scorer].quality][0].removeprefix("Mean "),
                "kinds": {
                    name: [_card(case, pictures[task, case.item.id]) for case in some] for name, some in kinds.items()
                },
            }
            for task, kinds in cases.items()
        ],
        facts=result.facts,
    )


def _group(result: Evaluation, name: str) -> dict[str, object]:
    group = result.groups[name]
    value, low, high = group.average
    return {
        "name": GROUPS[name],
        "value": percent(value),
        "interval": "" if low is None or high is None else f"{100 * low:.1f}–{100 * high:.1f}",
        "parts": {part: percent(score) for part, score in group.parts.items()},
    }


def _pictures(
    eval_sets: Sequence[EvalSet], wanted: set[tuple[str, str]]
) -> Iterable[tuple[tuple[str, str], Image.Image]]:
    """The wanted pictures by task and image, small, with the scale left to the card: full size is not kept."""
    for eval_set in eval_sets:
        names = {task.name for task in eval_set.tasks}
        left = {image for task, image in wanted if task in names}
        images = eval_set.images() if left else iter(())
        for image in images:
            if image.id in left:
                left.discard(image.id)
                picture = _picture(image)
                picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
                yield from (((name, image.id), picture) for name in names)
            if not left:
                break


def _picture(image: EvalImage) -> Image.Image:
    """The picture of an image; grey where it was answered in an earlier run and can't be opened any more."""
    try:
        return decode_named(image)
    except GranvitError:
        return Image.new("RGB", image.items[0].size if image.items[0].size[0] else (LONGEST_SIDE, LONGEST_SIDE), "grey")


def _card(case: Case, picture: Image.Image) -> dict[str, object]:
    item = case.item
    scale = np.tile(np.divide(picture.size, item.size), 2)
    boxes = [(item.box, _TRUE, False), (item.found, _FOUND, True)]
    shown = [(np.multiply(box, scale), color, dashed) for box, color, dashed in boxes if box is not None]
    if shown:
        corners, colors, dashes = zip(*shown, strict=True)
        picture = draw_boxes(picture, np.array(corners), [""] * len(shown), colors, dashed=dashes)
    asked = "" if item.how == "box" else item.asked
    right = "" if item.how == "phrase" else " / ".join(dict.fromkeys(item.truth))
    return {
        "src": data_uri(picture),
        "width": picture.width,
        "height": picture.height,
        "asked": asked,
        "right": right,
        "said": item.said,
        "quality": percent(case.quality),
    }
