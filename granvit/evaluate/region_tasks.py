"""Describe, locate, read, caption: scored on any region corpus, with the best constant answer beside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from tqdm import tqdm

from granvit.coordinates import Box
from granvit.evaluate import metrics
from granvit.geometry import View
from granvit.images import decode
from granvit.predict import LONGEST_BOX, LONGEST_CAPTION, LONGEST_DESCRIPTION, Ask, GranViT
from granvit.questions import ask_box, ask_global
from granvit.regions import Region, RegionImage
from granvit.texts import character_error_rate, exact_match, rouge_l

TASKS = ("describe", "locate", "read", "locate_text", "caption")
_IMAGES_AT_ONCE = 64


@dataclass
class Item:
    """One scored question: where it was asked, what was right, what was said.

    `box` is xyxy image pixels (None for captions), `size` the image's (width, height). `said` is the answer's text,
    `found` the box it states (image pixels), for the locating tasks.
    """

    id: str
    task: str
    size: tuple[int, int]
    truth: list[str]
    box: Box | None = None
    said: str = ""
    found: Box | None = None


@dataclass
class Report:
    """Scores by task and metric, the best constant answer's scores, and every single answer."""

    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    baseline: dict[str, dict[str, float]] = field(default_factory=dict)
    items: list[Item] = field(default_factory=list)


def evaluate(
    model: GranViT,
    records: Iterable[RegionImage],
    tasks: Sequence[str] = TASKS,
    limit: int | None = None,
    max_regions: int = 32,
    window: int | None = None,
    progress: bool = True,
) -> Report:
    """Ask every eligible region of up to `limit` images, and score.

    "describe" and "locate" ask about objects, "read" and "locate_text" about text. A text that stands on two regions
    of an image has no one right box and is not located. Of images with more than `max_regions` regions the first
    are taken. With `window` (pixels) text is read in a window around its box.

    Raises:
        ValueError: an unknown task, or nothing in the corpus that any of the tasks can ask.
    """
    unknown = sorted(set(tasks) - set(TASKS))
    if unknown:
        raise ValueError(f"unknown task(s) {', '.join(unknown)}; known are {', '.join(TASKS)}")
    items: list[Item] = []
    bar = tqdm(total=limit, desc="evaluate", unit="img", disable=not progress)
    for some in _batched(islice(iter(records), limit), _IMAGES_AT_ONCE):
        asked = [(record, decode(record.image or b""), _regions(record, max_regions)) for record in some]
        for task in tasks:
            items += _ASK[task](model, asked, window)
        bar.update(len(some))
    bar.close()
    if not items:
        raise ValueError(f"nothing to evaluate: the corpus has no region or caption for {', '.join(tasks)}")
    report = Report(items=items)
    for task in tasks:
        mine = [item for item in items if item.task == task]
        if mine:
            report.scores[task] = score(task, mine)
            report.baseline[task] = constant(task, mine)
    return report


def score(task: str, items: Sequence[Item]) -> dict[str, float]:
    """The metrics of one task, fractions in [0, 1], and "count"."""
    if task in ("locate", "locate_text"):
        boxes = [item.box for item in items if item.box is not None]
        scores = metrics.box_scores([item.found for item in items], boxes)
    else:
        said, truth = [item.said for item in items], [item.truth for item in items]
        scores = {"rouge_l": rouge_l(said, truth), "exact": exact_match(said, truth)}
        if task == "read":
            scores["cer"] = character_error_rate(said, truth)
    return {**scores, "count": float(len(items))}


def constant(task: str, items: Sequence[Item]) -> dict[str, float]:
    """What the best single answer to all questions scores, metric by metric."""
    if task in ("locate", "locate_text"):
        scale = np.array([[*item.size, *item.size] for item in items], dtype=float)
        relative = [tuple(row) for row in (np.array([item.box for item in items]) / scale).tolist()]
        return {
            name: metrics.best_constant_answer(relative, relative, _box_metric(name))[1] for name in ("acc50", "miou")
        }
    truth = [item.truth for item in items]
    answers = [texts[0] for texts in truth]
    best: dict[str, float] = {}
    for name, metric in (("rouge_l", rouge_l), ("exact", exact_match)):
        best[name] = metrics.best_constant_answer(answers, truth, metric)[1]
    if task == "read":
        best["cer"] = -metrics.best_constant_answer(
            answers, truth, lambda said, true: -character_error_rate(said, true)
        )[1]
    return best


def _box_metric(name: str) -> Callable[[Sequence[Any], Sequence[Any]], float]:
    return lambda predictions, references: metrics.box_scores(predictions, references)[name]


Asked = list[tuple[RegionImage, Any, list[Region]]]


def _describe(model: GranViT, asked: Asked, window: int | None) -> list[Item]:
    return _texts(model, asked, "describe", "object", None)


def _read(model: GranViT, asked: Asked, window: int | None) -> list[Item]:
    return _texts(model, asked, "read", "text", window)


def _texts(model: GranViT, asked: Asked, task: str, kind: str, window: int | None) -> list[Item]:
    asks: list[Ask] = []
    items: list[Item] = []
    for record, picture, regions in asked:
        mine = [r for r in regions if r.kind == kind]
        items += [Item(record.id, task, picture.size, [r.text, *r.alternatives], r.box) for r in mine]
        whole = model.model.view(picture.size)
        if window is None:
            asks.append(Ask(picture, whole, model.box_questions(whole, [r.box for r in mine])))
            continue
        for region in mine:
            view = View.window_around(region.box, picture.size, window, model.model.canvas)
            asks.append(Ask(picture, view, model.box_questions(view, region.box)))
    said = [answer for answers in model.answer(asks, LONGEST_DESCRIPTION) for answer in answers]
    for item, answer in zip(items, said, strict=True):
        item.said = answer
    return items


def _locate(model: GranViT, asked: Asked, window: int | None) -> list[Item]:
    return _boxes(model, asked, "locate", "object")


def _locate_text(model: GranViT, asked: Asked, window: int | None) -> list[Item]:
    return _boxes(model, asked, "locate_text", "text")


def _boxes(model: GranViT, asked: Asked, task: str, kind: str) -> list[Item]:
    asks: list[Ask] = []
    items: list[Item] = []
    for record, picture, regions in asked:
        texts = Counter(r.text.casefold() for r in record.regions)
        mine = [r for r in regions if r.kind == kind and texts[r.text.casefold()] == 1]
        items += [Item(record.id, task, picture.size, [r.text], r.box) for r in mine]
        asks.append(Ask(picture, model.model.view(picture.size), [ask_box(r.text) for r in mine]))
    answers = [(a, ask.view) for ask, said in zip(asks, model.answer(asks, LONGEST_BOX), strict=True) for a in said]
    for item, (answer, view) in zip(items, answers, strict=True):
        item.said, item.found = answer, model.to_pixels(answer, view)
    return items


def _caption(model: GranViT, asked: Asked, window: int | None) -> list[Item]:
    captioned = [(record, picture) for record, picture, _ in asked if record.caption]
    asks = [Ask(picture, model.model.view(picture.size), [ask_global()]) for _, picture in captioned]
    said = [answers[0] for answers in model.answer(asks, LONGEST_CAPTION)]
    return [
        Item(record.id, "caption", picture.size, [record.caption or ""], said=answer)
        for (record, picture), answer in zip(captioned, said, strict=True)
    ]


_ASK: dict[str, Callable[[GranViT, Asked, int | None], list[Item]]] = {
    "describe": _describe,
    "locate": _locate,
    "read": _read,
    "locate_text": _locate_text,
    "caption": _caption,
}


def _regions(record: RegionImage, most: int) -> list[Region]:
    return [r for r in record.regions if not r.ignore][:most]


def _batched(records: Iterator[RegionImage], size: int) -> Iterator[list[RegionImage]]:
    while some := list(islice(records, size)):
        yield some
