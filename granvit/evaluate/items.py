"""Questions with their right answers, image by image: what every evaluation asks, keeps and scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from granvit.coordinates import Box

How = Literal["box", "phrase", "text"]
Group = Literal["fine-grained", "vqa", "reasoning", "ocr", ""]


@dataclass
class Item:
    """One scored question: what was asked where, what was right, what was said.

    Attributes:
        id: the image's id. Questions of one image stand or fall together, and are drawn together in intervals.
        task: the task it counts for, such as "locate" or "refcoco-testA".
        size: the image's (width, height) in pixels; (0, 0) until the image has been opened.
        truth: the texts that are equally right; for "yes_no" and choices the one right word or letter.
        box: xyxy image pixels: the box that is asked about, or the right one where it is asked for; else None.
        said: the answer's text.
        found: the box that `said` states, xyxy image pixels, where one was asked for.
        key: unique among the task's questions.
        how: "box" asks what is in `box` (Bbox2Caption), "phrase" where `asked` is (Caption2Bbox), "text" asks `asked`.
        asked: the phrase, or the question.
        options: what can be chosen from, in order of its letters.
        kind: what the data set calls this question's kind, where scores need it.
        confidence: of the answer (`granvit.predict.Text`); None where it is not known.
    """

    id: str
    task: str
    size: tuple[int, int]
    truth: list[str]
    box: Box | None = None
    said: str = ""
    found: Box | None = None
    key: str = ""
    how: How = "text"
    asked: str = ""
    options: list[str] = field(default_factory=list)
    kind: str = ""
    confidence: float | None = field(default=None, compare=False)  # in batches of another size it is rounded otherwise


@dataclass
class EvalImage:
    """An image and what is asked about it. `load` gives the image file's bytes."""

    id: str
    load: Callable[[], bytes]
    items: list[Item]


@dataclass(frozen=True)
class Task:
    """What a name in `Item.task` means.

    Attributes:
        scorer: a key of `granvit.evaluate.scoring.SCORERS`.
        group: where its main score counts in, after the paper's tables.
        longest: the most tokens an answer may have.
        expected: the published number of its questions, where there is one.
        window: "box" questions are asked in a window of that many pixels around the box.
        note: what a reader must know about how it is asked here.
    """

    name: str
    scorer: str
    group: Group = ""
    longest: int = 32
    expected: int | None = None
    window: int | None = None
    note: str = ""


@dataclass
class EvalSet:
    """A benchmark, or the held-out part of a corpus: its tasks, and its images with their questions.

    `images()` goes through them, each time from the start; `image_count` is their number, where it is known beforehand.
    `notes` say what was left out; filled while they are read.
    """

    name: str
    tasks: Sequence[Task]
    images: Callable[[], Iterator[EvalImage]]
    image_count: int | None = None
    notes: list[str] = field(default_factory=list)
