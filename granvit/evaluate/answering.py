"""Answering: images in groups, every question once; answers are kept on disk as they come, to go on from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from granvit.errors import GranvitError
from granvit.evaluate.items import EvalImage, Item, Task
from granvit.files import open_regular
from granvit.geometry import View
from granvit.images import ImageError, decode
from granvit.predict import GranViT, ImageQuestions
from granvit.questions import ask_box

ANSWERS = "answers.jsonl"


class Journal:
    """A file of answers, one JSON object a line, the first one naming the checkpoint that gave them.

    An answer is used again where task, key and all that the model was shown and asked are the same; a line cut off by a
    crash is dropped.

    Raises:
        ValueError: the file holds another checkpoint's answers, or is no journal.
    """

    def __init__(self, path: Path, checkpoint: str) -> None:
        self.path = path
        self._known: dict[tuple[str, str, str], dict[str, Any]] = {}
        header = {"journal": "granvit-answers", "checkpoint": checkpoint}
        end = self._read(header) if path.exists() else 0
        self._file = path.open("r+b" if end else "wb")
        self._file.seek(end)
        self._file.truncate()
        if not end:
            self._write(header)

    def _read(self, header: dict[str, str]) -> int:
        """Reads what is there; returns where the last whole line ends."""
        end = 0
        with open_regular(self.path) as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    break
                row = self._row(line, number)
                if number == 1 and row.get("journal") != header["journal"]:
                    raise GranvitError(f"{self.path}: line 1 is not that of a file of answers")
                if number == 1 and row.get("checkpoint") != header["checkpoint"]:
                    raise GranvitError(
                        f"{self.path} holds another checkpoint's answers: choose another --out, or remove it"
                    )
                if number > 1:
                    self._known[row["task"], row["key"], row["asked"]] = row
                end += len(line)
        return end

    def _row(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise GranvitError(f"{self.path}: line {number}: {error}") from error
        if not isinstance(row, dict) or (number > 1 and not {"task", "key", "asked", "said", "size"} <= row.keys()):
            raise GranvitError(f"{self.path}: line {number} is not an answer")
        return row

    def recall(self, item: Item, task: Task, shown: str) -> bool:
        """Fills in the answer to a question, where it was given before; says whether it was. See `question_digest`."""
        row = self._known.get((item.task, item.key, question_digest(item, task, shown)))
        if row is None:
            return False
        item.said = row["said"]
        item.found = tuple(row["found"]) if row.get("found") else None
        item.size = (row["size"][0], row["size"][1])
        item.confidence = row.get("confidence")
        return True

    def write(self, items: Sequence[Item], tasks: dict[str, Task], shown: str) -> None:
        """Appends answers about one picture; they are on disk when this returns, as far as a killed process goes."""
        for item in items:
            asked = question_digest(item, tasks[item.task], shown)
            row: dict[str, Any] = {"task": item.task, "key": item.key, "asked": asked}
            answer = {"said": item.said, "found": item.found, "size": item.size, "confidence": item.confidence}
            self._write({**row, **answer})
        self._file.flush()

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def question_digest(item: Item, task: Task, shown: str) -> str:
    """Short for all that decides the answer besides the checkpoint: questions that share it are the same.

    Args:
        shown: what tells the picture's file from others; pictures of other data sets go by the same ids.
    """
    box = None if item.how == "phrase" or item.box is None else [float(v) for v in item.box]
    parts = [item.id, shown, item.how, item.asked, box, task.window if item.how == "box" else None, task.longest]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


_IMAGES_AT_ONCE = 64


def answer_all(
    model: GranViT,
    images: Iterable[EvalImage],
    tasks: Sequence[Task],
    journal: Journal | None = None,
    total: int | None = None,
    progress: bool = True,
    name: str = "evaluate",
    unusable: dict[str, str] | None = None,
    unasked: dict[str, list[str]] | None = None,
) -> list[Item]:
    """All items of all images, answered, in the order of the images.

    Questions that `journal` knows are not asked again, and images without others are not decoded. `total` is the
    number of images, for the progress bar. An image that cannot be opened, or whose boxes are of a picture of another
    size, goes to `unusable` with the reason, and what is asked about it is left out. A question that the model cannot
    read, such as one that is too long, stays as answered wrongly, and the reason is added to its task's in `unasked`,
    or printed.

    Raises:
        GranvitError: an image cannot be used, and there is no `unusable`; the message names it.
    """
    by_name = {task.name: task for task in tasks}
    refused: dict[str, list[str]] = {} if unasked is None else unasked
    answered: list[Item] = []
    with tqdm(total=total, desc=name, unit="img", disable=not progress) as bar:
        for some in batched(iter(images), _IMAGES_AT_ONCE):
            asked: list[_Asked] = []
            for image in some:
                try:
                    asked += _to_ask(image, by_name, journal)
                except GranvitError as error:
                    if unusable is None:
                        raise
                    unusable[image.id] = str(error)
                else:
                    answered += image.items
            unread = answer_some(model, [(each.picture, each.items) for each in asked], by_name)
            for task, reason in unread.values():
                refused.setdefault(task, []).append(reason)
            if journal is not None:
                for each in asked:
                    journal.write([item for item in each.items if id(item) not in unread], by_name, each.shown)
            bar.update(len(some))
    if unasked is None:
        for note in notes_of(refused):
            tqdm.write(note)
    return answered


def notes_of(unasked: dict[str, list[str]]) -> list[str]:
    """What is to be said of the questions that were not asked, a sentence for each task."""
    return [
        f"{task}: {len(reasons):,} questions can't be asked and count as answered wrongly, such as {reasons[0]}"
        for task, reasons in unasked.items()
    ]


@dataclass(frozen=True)
class _Asked:
    """A picture, what tells its file from others, and what is to be asked about it."""

    picture: Image.Image
    shown: str
    items: list[Item]


def _to_ask(image: EvalImage, tasks: dict[str, Task], journal: Journal | None) -> list[_Asked]:
    """The image with its unanswered questions, or nothing where there are none.

    Raises:
        GranvitError: it cannot be used.
    """
    if not image.items:
        return []
    data = _bytes_of(image)
    shown = hashlib.sha256(data).hexdigest()
    items = [item for item in image.items if journal is None or not journal.recall(item, tasks[item.task], shown)]
    if not items:
        return []
    picture = _decoded(image, data)
    others = {item.size for item in items} - {(0, 0), picture.size}
    if others:
        stated, found = ("{} x {}".format(*size) for size in (min(others), picture.size))
        raise GranvitError(f"{image.id}: its boxes are of a picture of {stated} pixels, and upright it has {found}")
    return [_Asked(picture, shown, items)]


def _bytes_of(image: EvalImage) -> bytes:
    try:
        return image.load()
    except OSError as error:
        raise GranvitError(f"{image.id}: {error}") from error


def _decoded(image: EvalImage, data: bytes) -> Image.Image:
    try:
        return decode(data)
    except (ImageError, OSError) as error:
        raise GranvitError(f"{image.id}: {error}") from error


def decode_named(image: EvalImage) -> Image.Image:
    """The upright picture of an image.

    Raises:
        GranvitError: it cannot be opened.
    """
    return _decoded(image, _bytes_of(image))


def answer_some(
    model: GranViT, asked: Sequence[tuple[Image.Image, list[Item]]], tasks: dict[str, Task]
) -> dict[int, tuple[str, str]]:
    """Fills in the answer to every item, and the picture's size. Questions with equal limits are asked together.

    Returns:
        Of the items (by `id`) that the model cannot be asked, and whose answer is empty: the task, and why.
    """
    unread: dict[int, tuple[str, str]] = {}
    for longest in dict.fromkeys(tasks[item.task].longest for _, items in asked for item in items):
        asks: list[ImageQuestions] = []
        waiting: list[list[Item]] = []
        for picture, items in asked:
            mine = [item for item in items if tasks[item.task].longest == longest]
            for view, some in _views(model, picture, mine, tasks):
                questions, kept = [], []
                for item in some:
                    question = _question(model, item, view)
                    try:
                        model.tokens_of(question)
                    except GranvitError as error:
                        unread[id(item)] = item.task, f"{item.id}: {error}"
                        item.size, item.said, item.found, item.confidence = picture.size, "", None, None
                    else:
                        questions.append(question)
                        kept.append(item)
                if kept:
                    asks.append(ImageQuestions(picture, view, questions, kept[0].id))
                    waiting.append(kept)
        for ask, some, answers in zip(asks, waiting, model.answer(asks, longest), strict=True):
            for item, said in zip(some, answers, strict=True):
                item.size, item.said, item.confidence = ask.image.size, str(said), said.confidence
                item.found = model.to_pixels(said, ask.view) if item.how == "phrase" else None
    return unread


def _views(
    model: GranViT, picture: Image.Image, items: Sequence[Item], tasks: dict[str, Task]
) -> Iterator[tuple[View, list[Item]]]:
    """The views of one picture: one of the whole for all questions, and one around each box that asks for a window."""
    whole: list[Item] = []
    for item in items:
        window = tasks[item.task].window
        if item.how == "box" and item.box is not None and window is not None:
            yield model.model.window(item.box, picture.size, window), [item]
        else:
            whole.append(item)
    if whole:
        yield model.model.view(picture.size), whole


def _question(model: GranViT, item: Item, view: View) -> str:
    if item.how == "box" and item.box is not None:
        return model.box_questions(view, item.box)[0]
    return ask_box(item.asked) if item.how == "phrase" else item.asked


def batched(images: Iterator[EvalImage], size: int) -> Iterator[list[EvalImage]]:
    while some := list(islice(images, size)):
        yield some
