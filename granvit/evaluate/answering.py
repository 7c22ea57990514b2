"""Answering: images in groups, every question once; answers are kept on disk as they come, to go on from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
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
                if number == 1 and row["checkpoint"] != header["checkpoint"]:
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

    def recall(self, item: Item, task: Task) -> bool:
        """Fills in the answer to a question, where it was given before; says whether it was."""
        row = self._known.get((item.task, item.key, question_digest(item, task)))
        if row is None:
            return False
        item.said = row["said"]
        item.found = tuple(row["found"]) if row.get("found") else None
        item.size = (row["size"][0], row["size"][1])
        item.confidence = row.get("confidence")  # a version wrote none
        return True

    def write(self, items: Sequence[Item], tasks: dict[str, Task]) -> None:
        """Appends answers; they are on disk when this returns, as far as a killed process is concerned."""
        for item in items:
            row: dict[str, Any] = {"task": item.task, "key": item.key, "asked": question_digest(item, tasks[item.task])}
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


def question_digest(item: Item, task: Task) -> str:
    """Short for all that decides the answer besides checkpoint and image: questions that share it are the same."""
    box = None if item.how == "phrase" or item.box is None else [float(v) for v in item.box]
    parts = [item.id, item.how, item.asked, box, task.window if item.how == "box" else None, task.longest]
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
    unreadable: dict[str, str] | None = None,
) -> list[Item]:
    """All items of all images, answered, in the order of the images.

    Questions that `journal` knows are not asked again, and images without others are not even opened. `total` is the
    number of images, for the progress bar. An image that cannot be opened goes to `unreadable` with the reason, and
    what is asked about it is left out.

    Raises:
        GranvitError: an image cannot be opened, and there is no `unreadable`; the message names it.
    """
    by_name = {task.name: task for task in tasks}
    answered: list[Item] = []
    with tqdm(total=total, desc=name, unit="img", disable=not progress) as bar:
        for some in batched(iter(images), _IMAGES_AT_ONCE):
            open_items = [(image, _unanswered(image, by_name, journal)) for image in some]
            asked = []
            for image, items in open_items:
                if items and (picture := _opened(image, unreadable)) is not None:
                    asked.append((picture, items))
            some = [image for image in some if image.id not in (unreadable or {})]
            answer_some(model, asked, by_name)
            if journal is not None:
                journal.write([item for _, items in asked for item in items], by_name)
            answered += [item for image in some for item in image.items]
            bar.update(len(open_items))
    return answered


def _opened(image: EvalImage, unreadable: dict[str, str] | None) -> Image.Image | None:
    try:
        return decode_named(image)
    except GranvitError as error:
        if unreadable is None:
            raise
        unreadable[image.id] = str(error)
        return None


def _unanswered(image: EvalImage, tasks: dict[str, Task], journal: Journal | None) -> list[Item]:
    return [item for item in image.items if journal is None or not journal.recall(item, tasks[item.task])]


def decode_named(image: EvalImage) -> Image.Image:
    """The upright picture of an image.

    Raises:
        ValueError: it cannot be opened.
    """
    try:
        return decode(image.load())
    except (ImageError, OSError) as error:
        raise GranvitError(f"{image.id}: {error}") from error


def answer_some(model: GranViT, asked: Sequence[tuple[Image.Image, list[Item]]], tasks: dict[str, Task]) -> None:
    """Fills in the answer to every item, and the picture's size. Questions with equal limits are asked together."""
    for longest in dict.fromkeys(tasks[item.task].longest for _, items in asked for item in items):
        asks: list[ImageQuestions] = []
        waiting: list[list[Item]] = []
        for picture, items in asked:
            mine = [item for item in items if tasks[item.task].longest == longest]
            for view, some in _views(model, picture, mine, tasks):
                asks.append(ImageQuestions(picture, view, [_question(model, item, view) for item in some], some[0].id))
                waiting.append(some)
        for ask, some, answers in zip(asks, waiting, model.answer(asks, longest), strict=True):
            for item, said in zip(some, answers, strict=True):
                item.size, item.said, item.confidence = ask.image.size, str(said), said.confidence
                item.found = model.to_pixels(said, ask.view) if item.how == "phrase" else None


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
