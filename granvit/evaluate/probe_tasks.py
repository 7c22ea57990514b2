"""What a probe is asked about regions of a corpus, and how its answers are scored under any weighting of the images."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from granvit.bootstrap import Estimate, estimate, resampled_sums
from granvit.coordinates import Box
from granvit.errors import GranvitError
from granvit.geometry import free_box
from granvit.regions import Region, RegionImage
from granvit.texts import one_spaced

Task = Literal["label", "attribute", "is-text", "read"]
# A class, a word or a letter must stand on so many training regions; of classes and words, the most frequent are taken.
SEEN_OFTEN = {"label": 10, "attribute": 20, "read": 2}
MOST_TARGETS = 500
# A word's score from fewer held-out images than these is one picture's luck, of which no draw tells the spread.
LEAST_IMAGES = 3
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


def probe_questions(task: Task, records: Sequence[RegionImage], max_regions: int, seed: int) -> Questions:
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
                other = free_box(region.box, record.width, record.height, [r.box for r in record.regions], rng)
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
    """The questions with a target that a probe can be trained or scored on.

    A region of a class never learned is left out, as is a line too long for the reader. Unknown letters are not: they
    are misread.
    """
    kept = Questions(left_out=questions.left_out.copy())
    classes = set(known)
    for question in questions.items:
        if task == "label" and question.target not in classes:
            kept.left_out["text is no class"] += 1
        elif task == "read" and not 0 < ctc_steps(question.target) <= READING_STEPS:
            kept.left_out["line too long or empty"] += 1
        else:
            kept.items.append(question)
    return kept


def ctc_steps(text: str) -> int:
    """How many steps a CTC reader needs for a text."""
    return len(text) + sum(a == b for a, b in zip(text, text[1:], strict=False))


Floats = NDArray[np.float64]


class Score(Protocol):
    """A score in [0, 1] of all held-out questions, images counted as often as `weights` (K, images) say: (K,)."""

    def __call__(self, weights: Floats) -> Floats: ...


def ratio(numerators: Sequence[float], denominators: Sequence[float], image: Sequence[int], images: int) -> Score:
    """A sum over questions divided by another; `image` tells each question's image."""
    top, bottom = (np.bincount(image, weights=values, minlength=images) for values in (numerators, denominators))

    def score(weights: Floats) -> Floats:
        below = weights @ bottom
        return np.divide(weights @ top, below, out=np.full(len(weights), np.nan), where=below > 0)

    return score


def mean_average_precision(scores: Floats, truth: NDArray[np.bool_], image: Sequence[int]) -> Score:
    """The mean over words of the average precision, of the words that stand on `LEAST_IMAGES` images or more.

    Which words these are is fixed by all questions together: a draw without a word leaves its value as it is, else easy
    words would count more in some draws than in others. Of a word on c images the draws spread sqrt((c - 1) / c) times
    too little, as a deviation does that is divided by c and not c - 1; that is made good word by word.

    Args:
        scores, truth: (N, V).
    """
    at = np.asarray(image)
    images = images_of(truth, image)
    counted = images >= LEAST_IMAGES
    spread = np.sqrt(images[counted] / (images[counted] - 1))
    precisions = average_precisions(scores[:, counted], truth[:, counted], image)
    whole_1v = precisions(np.ones((1, at.max() + 1)))

    def score(weights: Floats) -> Floats:
        if not counted.any():
            return np.full(len(weights), np.nan)
        drawn_kv = precisions(weights)
        changes = np.where(np.isnan(drawn_kv), 0.0, drawn_kv - whole_1v)
        means: Floats = (whole_1v + spread * changes).mean(1)
        return means

    return score


def images_of(truth: NDArray[np.bool_], image: Sequence[int]) -> NDArray[np.int64]:
    """On how many images each word stands, (V,); `truth` (N, V) says on which questions, `image` of which images."""
    found = np.zeros((max(image) + 1, truth.shape[1]), dtype=bool)
    np.logical_or.at(found, np.asarray(image), truth)
    counts: NDArray[np.int64] = found.sum(0)
    return counts


def average_precisions(scores: Floats, truth: NDArray[np.bool_], image: Sequence[int]) -> Callable[[Floats], Floats]:
    """The average precision of each word, of weights (K, images): (K, V).

    That is the mean, over the questions that have the word, of the precision among all questions that score as high or
    higher; scores that tell nothing get the word's share of the questions. NaN where no question with the word counts.

    Args:
        scores, truth: (N, V).
    """
    at = np.asarray(image)

    def precisions(weights: Floats) -> Floats:
        w_kn = weights[:, at]
        columns = [_average_precision(s, t, w_kn) for s, t in zip(scores.T, truth.T, strict=True)]
        return np.stack(columns, axis=1) if columns else np.empty((len(weights), 0))

    return precisions


def _average_precision(score_n: Floats, truth_n: NDArray[np.bool_], w_kn: Floats) -> Floats:
    order = np.argsort(-score_n, kind="stable")
    descending = -score_n[order]
    w_kn = w_kn[:, order]
    right_kn = w_kn * truth_n[order]
    last = np.searchsorted(descending, descending, side="right") - 1  # of those that score alike
    found, seen = right_kn.cumsum(1)[:, last], w_kn.cumsum(1)[:, last]
    precision = np.divide(found, seen, out=np.zeros_like(found), where=seen > 0)
    positives = right_kn.sum(1)
    return np.divide((right_kn * precision).sum(1), positives, out=np.full(len(w_kn), np.nan), where=positives > 0)


def with_intervals(
    scores: Sequence[Score], images: int, centred: bool = False
) -> tuple[list[Estimate | None], list[Estimate | None]]:
    """Each score with its 95 % interval, and its difference to the first on the same draws (None for the first).

    Args:
        centred: move the draws so that their mean is the score. Of few questions with a word, those drawn twice lift
            the average precision, so that the draws' mean lies above the score: what the bootstrap estimates the bias
            to be (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 10). Taken from the draws and not
            from the score, that leaves the score as it is, within its interval. The interval is of what the same words
            would score in the mean on other held-out images, as many as here.
    """
    drawn = resampled_sums(np.eye(images)) if images > 1 else np.empty((0, images))
    weights = np.concatenate([np.ones((1, images)), drawn])
    values = [score(weights) for score in scores]
    changes: list[Estimate | None] = [_interval(v - values[0], centred, (-1.0, 1.0)) for v in values]
    return [_interval(v, centred, (0.0, 1.0)) for v in values], [None, *changes[1:]]


def _interval(values: Floats, centred: bool, possible: tuple[float, float]) -> Estimate | None:
    draws = values[1:]
    draws = draws[~np.isnan(draws)]
    if centred and len(draws):
        draws = np.clip(draws + (values[0] - draws.mean()), *possible)
    return estimate(float(values[0]), draws)
