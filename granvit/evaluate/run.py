"""Asking: images in groups, every question once, answers kept as they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from PIL import Image
from tqdm import tqdm

from granvit.errors import GranvitError
from granvit.evaluate.items import Item, Look, Task
from granvit.evaluate.journal import Journal
from granvit.geometry import View
from granvit.images import ImageError, decode
from granvit.predict import Ask, GranViT
from granvit.questions import ask_box

_IMAGES_AT_ONCE = 64


def answer_all(
    model: GranViT,
    looks: Iterable[Look],
    tasks: Sequence[Task],
    journal: Journal | None = None,
    total: int | None = None,
    progress: bool = True,
    name: str = "evaluate",
    unreadable: dict[str, str] | None = None,
) -> list[Item]:
    """All items of all looks, answered; their order is that of the looks.

    Questions that `journal` knows are not asked again, and images without others are not even opened. `total` is the
    number of images, for the progress bar. An image that cannot be opened goes to `unreadable` with the reason, and
    what is asked about it is left out.

    Raises:
        GranvitError: an image cannot be opened, and there is no `unreadable`; the message names it.
    """
    by_name = {task.name: task for task in tasks}
    answered: list[Item] = []
    with tqdm(total=total, desc=name, unit="img", disable=not progress) as bar:
        for some in batched(iter(looks), _IMAGES_AT_ONCE):
            open_items = [(look, _unanswered(look, by_name, journal)) for look in some]
            asked = []
            for look, items in open_items:
                if items and (picture := _opened(look, unreadable)) is not None:
                    asked.append((picture, items))
            some = [look for look in some if look.id not in (unreadable or {})]
            answer_some(model, asked, by_name)
            if journal is not None:
                journal.write([item for _, items in asked for item in items], by_name)
            answered += [item for look in some for item in look.items]
            bar.update(len(open_items))
    return answered


def _opened(look: Look, unreadable: dict[str, str] | None) -> Image.Image | None:
    try:
        return decode_named(look)
    except GranvitError as error:
        if unreadable is None:
            raise
        unreadable[look.id] = str(error)
        return None


def _unanswered(look: Look, tasks: dict[str, Task], journal: Journal | None) -> list[Item]:
    return [item for item in look.items if journal is None or not journal.recall(item, tasks[item.task])]


def decode_named(look: Look) -> Image.Image:
    """The upright picture of a look.

    Raises:
        ValueError: it cannot be opened.
    """
    try:
        return decode(look.load())
    except (ImageError, OSError) as error:
        raise GranvitError(f"{look.id}: {error}") from error


def answer_some(model: GranViT, asked: Sequence[tuple[Image.Image, list[Item]]], tasks: dict[str, Task]) -> None:
    """Fills in `said`, `found` and `size` of every item. Questions with equal limits are asked together."""
    for longest in dict.fromkeys(tasks[item.task].longest for _, items in asked for item in items):
        asks: list[Ask] = []
        waiting: list[list[Item]] = []
        for picture, items in asked:
            mine = [item for item in items if tasks[item.task].longest == longest]
            for view, some in _views(model, picture, mine, tasks):
                asks.append(Ask(picture, view, [_question(model, item, view) for item in some], some[0].id))
                waiting.append(some)
        for ask, some, answers in zip(asks, waiting, model.answer(asks, longest), strict=True):
            for item, said in zip(some, answers, strict=True):
                item.size, item.said = ask.image.size, said
                item.found = model.to_pixels(said, ask.view) if item.how == "phrase" else None


def _views(
    model: GranViT, picture: Image.Image, items: Sequence[Item], tasks: dict[str, Task]
) -> Iterator[tuple[View, list[Item]]]:
    """The looks at one picture: one at the whole for all questions, and one around each box that asks for a window."""
    whole: list[Item] = []
    for item in items:
        window = tasks[item.task].window
        if item.how == "box" and item.box is not None and window is not None:
            yield View.window_around(item.box, picture.size, window, model.model.canvas), [item]
        else:
            whole.append(item)
    if whole:
        yield model.model.view(picture.size), whole


def _question(model: GranViT, item: Item, view: View) -> str:
    if item.how == "box" and item.box is not None:
        return model.box_questions(view, item.box)[0]
    return ask_box(item.asked) if item.how == "phrase" else item.asked


def batched(looks: Iterator[Look], size: int) -> Iterator[list[Look]]:
    while some := list(islice(looks, size)):
        yield some
