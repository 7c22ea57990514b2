"""Describe, locate, read, caption: scored on any region corpus, with the best constant answer beside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from granvit.errors import GranvitError
from granvit.evaluate.answering import answer_all
from granvit.evaluate.items import EvalImage, Item, Task
from granvit.evaluate.scoring import score
from granvit.predict import LONGEST_BOX, LONGEST_CAPTION, LONGEST_DESCRIPTION, GranViT
from granvit.questions import ask_global
from granvit.regions import Region, RegionImage, first_round

TASKS = ("describe", "locate", "read", "locate_text", "caption")
# Asked in the words of "describe", where the texts of a corpus are known to be captions, or the names of classes.
# "answer" asks what conversations begin with.
ALL_TASKS = (*TASKS, "region_caption", "label", "answer")
MAX_REGIONS = 32


@dataclass
class Report:
    """Scores by task and metric with 95 % intervals, the best constant answer's scores, and every single answer."""

    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    baseline: dict[str, dict[str, float]] = field(default_factory=dict)
    items: list[Item] = field(default_factory=list)
    intervals: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)


def evaluate(
    model: GranViT,
    records: Iterable[RegionImage],
    tasks: Sequence[str] = TASKS,
    limit: int | None = None,
    max_regions: int = MAX_REGIONS,
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
    known = region_tasks(tasks, window)
    images = region_images(islice(iter(records), limit), known, max_regions)
    items = answer_all(model, images, known, total=limit, progress=progress)
    if not items:
        raise GranvitError(f"nothing to evaluate: the corpus has no region or caption for {', '.join(tasks)}")
    return scored(known, items)


def scored(tasks: Sequence[Task], items: list[Item]) -> Report:
    """The scores of all tasks that have items."""
    report = Report(items=items)
    images = list(dict.fromkeys(item.id for item in items))
    for task in tasks:
        mine = [item for item in items if item.task == task.name]
        if mine:
            scores = score(task, mine, images)
            report.scores[task.name] = scores.values
            report.baseline[task.name] = scores.constant
            report.intervals[task.name] = scores.intervals
    return report


def region_tasks(names: Sequence[str], window: int | None = None) -> list[Task]:
    """The tasks of `ALL_TASKS` by name.

    Raises:
        ValueError: an unknown one.
    """
    unknown = sorted(set(names) - set(ALL_TASKS))
    if unknown:
        raise GranvitError(f"unknown task(s) {', '.join(unknown)}; known are {', '.join(ALL_TASKS)}")
    known = {
        "describe": Task("describe", "texts", "fine-grained", LONGEST_DESCRIPTION),
        "locate": Task("locate", "boxes", "fine-grained", LONGEST_BOX),
        "read": Task("read", "reading", "ocr", LONGEST_DESCRIPTION, window=window),
        "locate_text": Task("locate_text", "boxes", "ocr", LONGEST_BOX),
        "caption": Task("caption", "texts", "", LONGEST_CAPTION),
        "region_caption": Task("region_caption", "captions", "fine-grained", LONGEST_DESCRIPTION),
        "label": Task("label", "labels", "fine-grained", LONGEST_DESCRIPTION),
        "answer": Task("answer", "texts", "", LONGEST_CAPTION),
    }
    return [known[name] for name in names]


def region_images(records: Iterable[RegionImage], tasks: Sequence[Task], max_regions: int) -> Iterator[EvalImage]:
    """What is asked about each record."""
    for record in records:
        if record.text_only:
            continue
        regions = [r for r in record.regions if not r.ignore][:max_regions]
        items = [item for task in tasks for item in _QUESTIONS[task.name](task.name, record, regions)]
        yield EvalImage(record.id, lambda record=record: record.image or b"", items)  # type: ignore[misc]


def _describe_objects(task: str, record: RegionImage, regions: list[Region]) -> list[Item]:
    return _describe(task, record, regions, "object")


def _read(task: str, record: RegionImage, regions: list[Region]) -> list[Item]:
    return _describe(task, record, regions, "text")


def _describe(task: str, record: RegionImage, regions: list[Region], kind: str) -> list[Item]:
    return [
        Item(record.id, task, _size(record), [r.text, *r.alternatives], r.box, key=f"{record.id}#{i}", how="box")
        for i, r in enumerate(regions)
        if r.kind == kind
    ]


def _locate_objects(task: str, record: RegionImage, regions: list[Region]) -> list[Item]:
    return _locate(task, record, regions, "object")


def _locate_text(task: str, record: RegionImage, regions: list[Region]) -> list[Item]:
    return _locate(task, record, regions, "text")


def _locate(task: str, record: RegionImage, regions: list[Region], kind: str) -> list[Item]:
    texts = Counter(r.text.casefold() for r in record.regions)
    return [
        Item(record.id, task, _size(record), [r.text], r.box, key=f"{record.id}#{i}", how="phrase", asked=r.text)
        for i, r in enumerate(regions)
        if r.kind == kind and texts[r.text.casefold()] == 1
    ]


def _caption(task: str, record: RegionImage, regions: list[Region]) -> list[Item]:
    if not record.caption:
        return []
    return [Item(record.id, task, _size(record), [record.caption], key=record.id, asked=ask_global())]


def _answer(task: str, record: RegionImage, regions: list[Region]) -> list[Item]:
    """The first question of each conversation, as it is trained on; later ones hang on the answers before them."""
    items = []
    for i, said in enumerate(record.conversations):
        question, answer = first_round(said)
        items.append(Item(record.id, task, _size(record), [answer], key=f"{record.id}#{i}", asked=question))
    return items


def _size(record: RegionImage) -> tuple[int, int]:
    return record.width, record.height


_QUESTIONS: dict[str, Callable[[str, RegionImage, list[Region]], list[Item]]] = {
    "describe": _describe_objects,
    "locate": _locate_objects,
    "read": _read,
    "locate_text": _locate_text,
    "caption": _caption,
    "region_caption": _describe_objects,
    "label": _describe_objects,
    "answer": _answer,
}
