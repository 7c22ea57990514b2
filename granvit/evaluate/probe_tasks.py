"""What a probe is asked about regions: examples with their targets, from a region corpus."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from granvit.coordinates import Box
from granvit.errors import GranvitError
from granvit.geometry import elsewhere
from granvit.regions import Region, RegionImage
from granvit.texts import one_spaced

Task = Literal["label", "attribute", "is-text", "read"]
# A class, a word or a letter must stand on so many training regions; of classes and words, the most frequent are taken.
SEEN_OFTEN = {"label": 10, "attribute": 20, "read": 2}
MOST_TARGETS = 500
# Steps along a line of text; a line needs one for each letter and one more between equal neighbours.
READING_STEPS = 48
_FUNCTION_WORDS = frozenset(
    "a an and are as at by for from has her his in is it its of on or that the their to with".split()
)


@dataclass
class Question:
    """A region to look at: `image` counts the images of one part of the corpus, `box` is xyxy image pixels."""

    image: int
    box: Box
    target: Any


@dataclass
class Questions:
    """All questions about one part of a corpus; `left_out` counts regions without a usable target, by reason."""

    items: list[Question] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def ask(task: Task, records: Sequence[RegionImage], max_regions: int, seed: int) -> Questions:
    """The questions of a task about images, with raw targets: a text, a set of words, 0 or 1.

    "is-text" sets beside every text region a box of the same size from where the image has no region, so that it is not
    enough to know a document.
    """
    questions = Questions()
    for n, record in enumerate(records):
        rng = np.random.default_rng((seed, n))
        regions = [r for r in record.regions if not r.ignore][:max_regions]
        for region in regions:
            if task == "is-text":
                questions.items.append(Question(n, region.box, int(region.kind == "text")))
                other = elsewhere(region.box, record.width, record.height, [r.box for r in record.regions], rng)
                if region.kind == "text" and other is not None:
                    questions.items.append(Question(n, other, 0))
            elif region.kind == ("text" if task == "read" else "object"):
                questions.items.append(Question(n, region.box, _target(task, region)))
    return questions


def _target(task: Task, region: Region) -> Any:
    if task == "read":
        return one_spaced(unicodedata.normalize("NFC", region.text))
    text = one_spaced(region.text.casefold())
    return text if task == "label" else set(re.findall(r"\w+", text)) - _FUNCTION_WORDS


def vocabulary(task: Task, training: Questions) -> list[Any]:
    """The classes, words or letters that training questions name often enough, the most frequent first.

    Raises:
        ValueError: there are fewer than two.
    """
    if task == "is-text":
        return [0, 1]
    named: Iterable[Any] = (question.target for question in training.items)
    counts = Counter(named) if task == "label" else Counter(part for target in named for part in target)
    most = None if task == "read" else MOST_TARGETS
    known = [name for name, count in counts.most_common(most) if count >= SEEN_OFTEN[task]]
    if len(known) < 2:
        what = {"label": "texts", "attribute": "words", "read": "letters"}[task]
        raise GranvitError(
            f"{task}: {len(known)} {what} stand on {SEEN_OFTEN[task]} training regions or more, and two are needed; "
            f"there are {len(training.items)} such regions"
        )
    return known


def usable(task: Task, questions: Questions, known: Sequence[Any]) -> Questions:
    """The questions with a target that a probe can be taught or scored on.

    A region of a class never learned is left out, as is a line too long for the reader. Unknown letters are not: they
    are misread.
    """
    kept = Questions(left_out=questions.left_out.copy())
    classes = set(known)
    for question in questions.items:
        if task == "label" and question.target not in classes:
            kept.left_out["text is no class"] += 1
        elif task == "read" and not 0 < steps_needed(question.target) <= READING_STEPS:
            kept.left_out["line too long or empty"] += 1
        else:
            kept.items.append(question)
    return kept


def steps_needed(text: str) -> int:
    """How many steps a CTC reader needs for a text."""
    return len(text) + sum(a == b for a, b in zip(text, text[1:], strict=False))
