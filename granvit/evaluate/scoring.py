"""From answered questions to scores: measures with their intervals, and what the best constant answer would reach."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from granvit import texts
from granvit.bootstrap import by_picture, enough_images, estimate, resampled_sums
from granvit.evaluate import metrics
from granvit.evaluate.items import Item, Task

Table = NDArray[np.float64]
Items = Sequence[Item]


def ratio(sums: Table) -> Table:
    """(..., 2) -> (...): what is counted over how much there is; NaN where there is nothing."""
    return np.divide(sums[..., 0], sums[..., 1], out=np.full(sums.shape[:-1], np.nan), where=sums[..., 1] > 0)


@dataclass(frozen=True)
class Measure:
    """A score as a function of sums over questions, so that it can be computed anew for any drawing of images.

    Attributes:
        each: (N questions) -> (N, K), what each contributes; zeros where the measure is not defined for it.
        value: (..., K) sums -> (...) scores; NaN where nothing counts.
        undefined: why there may be no value.
    """

    each: Callable[[Items], Table]
    value: Callable[[Table], Table] = ratio
    undefined: str = "nothing to count"


@dataclass(frozen=True)
class Scorer:
    """How a kind of task is scored.

    Attributes:
        main: the measure that stands for the task in a group's average.
        quality: the mean measure by which single cases are called good or bad.
        measures: by name; all in [0, 1] but for CIDEr, in [0, 10].
        constants: the measures that are also reported for the best constant answer.
    """

    main: str
    quality: str
    measures: dict[str, Measure]
    constants: tuple[str, ...] = ()


def mean(
    each: Callable[[Items], ArrayLike],
    defined: Callable[[Items], ArrayLike] | None = None,
    undefined: str = Measure.undefined,
) -> Measure:
    """The mean over questions of a score in [0, 1]; over those alone that `defined` has True for, where it is given."""

    def table(items: Items) -> Table:
        values = np.asarray(each(items), dtype=float)
        counts = np.ones_like(values) if defined is None else np.asarray(defined(items), dtype=float)
        return np.stack([values * counts, counts], axis=1)

    return Measure(table, undefined=undefined)


def _said(items: Items) -> list[str]:
    return [item.said for item in items]


def _truth(items: Items) -> list[list[str]]:
    return [item.truth for item in items]


def _iou(items: Items) -> Table:
    return metrics.paired_iou([item.found for item in items], [item.box for item in items if item.box is not None])


def _found(items: Items) -> list[bool]:
    return [item.found is not None for item in items]


def _bleu(items: Items) -> Table:
    words = metrics.caption_words
    counts = np.stack([metrics.bleu_counts(words(i.said), [words(text) for text in i.truth]) for i in items])
    long = any(len(words(text)) >= 4 for item in items for text in item.truth)
    return counts if long else np.zeros_like(counts)


def _bleu4(sums: Table) -> Table:
    return np.where(sums.any(axis=-1), metrics.bleu(sums), np.nan)


def _with_words(items: Items) -> list[bool]:
    return [texts.has_words(item.truth) for item in items]


def _costs(cost: Callable[[str, list[str]], tuple[int, int]], undefined: str) -> Measure:
    return Measure(
        lambda items: np.array([cost(item.said, item.truth) for item in items], dtype=float), undefined=undefined
    )


def _choice(item: Item) -> str | None:
    """The letter chosen; of a question without options, the text itself."""
    return metrics.choice_of(item.said, item.options) if item.options else item.said


def _right_choice(items: Items) -> list[bool]:
    """An open question among multiple choice (MMMU) is right where the text is equal."""
    return [_choice(i) in i.truth if i.options else texts.exact_each([i.said], [i.truth]) == [1.0] for i in items]


def _whole(items: Items) -> Table:
    """Each image's first question carries the image: 1 where all its questions are right."""
    right: dict[str, bool] = {}
    for item, hit in zip(items, _right_choice(items), strict=True):
        right[item.id] = right.get(item.id, True) and hit
    rows = []
    for item in items:
        rows.append([float(right.pop(item.id)), 1.0] if item.id in right else [0.0, 0.0])
    return np.array(rows)


def _yes_counts(items: Items) -> Table:
    """True yeses, said yeses, real yeses, questions."""
    said = np.array([metrics.yes_or_no(item.said) == "yes" for item in items])
    true = np.array([item.truth == ["yes"] for item in items])
    return np.stack([said & true, said, true, np.ones_like(said)], axis=1).astype(float)


def _of(*columns: int) -> Callable[[Table], Table]:
    top, bottom = columns
    return lambda sums: ratio(sums[..., [top, bottom]])


def _f1(sums: Table) -> Table:
    return ratio(np.stack([2 * sums[..., 0], sums[..., 1] + sums[..., 2]], axis=-1))


_ROUGE_L = mean(lambda items: texts.rouge_l_each(_said(items), _truth(items)), _with_words, "no true text has a word")
_EXACT = mean(lambda items: texts.exact_each(_said(items), _truth(items)))
_BLEU4 = Measure(_bleu, _bleu4, "no true caption has four words")
_CIDER = mean(
    lambda items: metrics.cider_each(_said(items), _truth(items)),
    lambda items: np.full(len(items), metrics.cider_is_defined(_truth(items))),
    "it weighs words by how few true captions have them, and there are no two different ones",
)
_ANLS = mean(lambda items: metrics.anls_each(_said(items), _truth(items)))
_CHOICE = mean(_right_choice)
_CHOSEN = mean(lambda items: [_choice(item) is not None for item in items])

SCORERS: dict[str, Scorer] = {
    "boxes": Scorer(
        main="acc50",
        quality="miou",
        measures={
            "acc50": mean(lambda items: _iou(items) >= 0.5),
            "acc75": mean(lambda items: _iou(items) >= 0.75),
            "miou": mean(_iou),
            "parse_rate": mean(_found),
        },
        constants=("acc50", "acc75", "miou"),
    ),
    "texts": Scorer("rouge_l", "rouge_l", {"rouge_l": _ROUGE_L, "exact": _EXACT}, ("rouge_l", "exact")),
    "captions": Scorer(
        main="rouge_l",
        quality="rouge_l",
        measures={"rouge_l": _ROUGE_L, "bleu4": _BLEU4, "cider": _CIDER, "exact": _EXACT},
        constants=("rouge_l", "exact"),
    ),
    "reading": Scorer(
        main="exact",
        quality="rouge_l",
        measures={
            "rouge_l": _ROUGE_L,
            "exact": _EXACT,
            "cer": _costs(texts.edit_cost, "all true texts are empty"),
            "wer": _costs(texts.word_edit_cost, "all true texts are empty"),
        },
        constants=("rouge_l", "exact", "cer", "wer"),
    ),
    "labels": Scorer(
        main="exact",
        quality="shared_words",
        measures={
            "exact": _EXACT,
            "shared_words": mean(
                lambda items: texts.shared_words_each(_said(items), _truth(items)),
                _with_words,
                "no true text has a word",
            ),
        },
        constants=("exact", "shared_words"),
    ),
    "anls": Scorer("anls", "anls", {"anls": _ANLS, "exact": _EXACT}, ("anls", "exact")),
    "vqa": Scorer("vqa", "vqa", {"vqa": mean(lambda items: metrics.vqa_each(_said(items), _truth(items)))}, ("vqa",)),
    "relaxed": Scorer(
        "relaxed",
        "relaxed",
        {"relaxed": mean(lambda items: metrics.relaxed_each(_said(items), _truth(items))), "exact": _EXACT},
        ("relaxed", "exact"),
    ),
    "contains": Scorer(
        "contains",
        "contains",
        {"contains": mean(lambda items: metrics.contains_each(_said(items), _truth(items), [i.kind for i in items]))},
        ("contains",),
    ),
    "choice": Scorer("accuracy", "accuracy", {"accuracy": _CHOICE, "parse_rate": _CHOSEN}, ("accuracy",)),
    "circular": Scorer(
        main="circular",
        quality="accuracy",
        measures={"circular": Measure(_whole), "accuracy": _CHOICE, "parse_rate": _CHOSEN},
        constants=("circular", "accuracy"),
    ),
    "yes_no": Scorer(
        main="accuracy",
        quality="accuracy",
        measures={
            "accuracy": mean(lambda items: [metrics.yes_or_no(i.said) in i.truth for i in items]),
            "f1": Measure(_yes_counts, _f1, "nothing was answered yes, and nothing should be"),
            "precision": Measure(_yes_counts, _of(0, 1), "nothing was answered yes"),
            "recall": Measure(_yes_counts, _of(0, 2), "no right answer is yes"),
            "yes_rate": Measure(_yes_counts, _of(1, 3)),
            "parse_rate": mean(lambda items: [metrics.yes_or_no(item.said) is not None for item in items]),
        },
        constants=("accuracy", "f1"),
    ),
}
LESS_IS_BETTER = frozenset({"cer", "wer"})


@dataclass
class Scores:
    """The scores of one task: values, 95 % intervals over images, and what the best single answer would reach.

    `drawn` holds the main measure in every drawing of images, (DRAWS,); empty where there is but one image. `undefined`
    says why a measure has no value here.
    """

    values: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    constant: dict[str, float] = field(default_factory=dict)
    drawn: Table = field(default_factory=lambda: np.empty(0))
    undefined: dict[str, str] = field(default_factory=dict)


def score(task: Task, items: Items, images: Sequence[str] | None = None, seed: int = 0) -> Scores:
    """All measures of a task, with "count" among the values.

    A measure that has no value here (precision where nothing was answered yes) is left out of the values.

    Args:
        images: the ids to draw from; those of `items` by default. Tasks with the same ones and seed are drawn together.

    Raises:
        ValueError: there are no items.
    """
    scorer = SCORERS[task.scorer]
    scores = Scores()
    images = images or list(dict.fromkeys(item.id for item in items))
    for name, measure in scorer.measures.items():
        table_ik = by_picture(by_image(measure.each(items), items, images), images)
        drawn = draws(measure, table_ik, seed)
        estimated = estimate(float(measure.value(table_ik.sum(0))), drawn[~np.isnan(drawn)])
        if estimated is not None:
            scores.values[name] = estimated.value
            if estimated.low is not None and estimated.high is not None:
                scores.intervals[name] = (estimated.low, estimated.high)
        else:
            scores.undefined[name] = measure.undefined
        if name == scorer.main:
            scores.drawn = drawn
    scores.values["count"] = float(len(items))
    scores.constant = constant(scorer, items)
    return scores


def draws(measure: Measure, table: Table, seed: int) -> Table:
    """A measure in every drawing of images, (DRAWS,): of a table (images, K), equal tables drawn alike by a seed.

    Nothing where fewer than two images count.
    """
    if not enough_images(table.any(axis=1)):
        return np.empty(0)
    return measure.value(resampled_sums(table, seed))


def by_image(table: Table, items: Items, images: Sequence[str]) -> Table:
    """(N questions, K) -> (images, K)."""
    order = {name: i for i, name in enumerate(images)}
    sums = np.zeros((len(order), table.shape[1]))
    np.add.at(sums, [order[item.id] for item in items], table)
    return sums


def constant(scorer: Scorer, items: Items) -> dict[str, float]:
    """What the best single answer to all questions scores, measure by measure.

    Candidates are the 50 most frequent right answers; for boxes see `metrics.best_constant_box`.
    """
    if scorer is SCORERS["boxes"]:
        scale = np.array([[*item.size, *item.size] for item in items], dtype=float)
        return metrics.best_constant_box(np.array([item.box for item in items]) / scale, thresholds=(0.5, 0.75))
    best: dict[str, float] = {}
    # Questions with equal right answers are scored once.
    groups = list(Counter(_Same.of(item) for item in items).items())
    unique = [replace(group.item) for group, _ in groups]
    times = np.array([[count] for _, count in groups], dtype=float)
    for answer, _ in Counter(item.truth[0] for item in items).most_common(50):
        for item in unique:
            item.said = answer
        for name in scorer.constants:
            measure = scorer.measures[name]
            value = float(measure.value((times * measure.each(unique)).sum(0)))
            if math.isnan(value):  # no true text is one that the measure is made for
                continue
            better = min if name in LESS_IS_BETTER else max
            best[name] = better(best.get(name, value), value)
    return best


@dataclass(frozen=True)
class _Same:
    """Questions that any answer scores alike on."""

    truth: tuple[str, ...]
    options: tuple[str, ...]
    kind: str
    image: str
    item: Item = field(compare=False)

    @classmethod
    def of(cls, item: Item) -> _Same:
        # What is chosen from options may count image by image.
        return cls(tuple(item.truth), tuple(item.options), item.kind, item.id if item.options else "", item)
