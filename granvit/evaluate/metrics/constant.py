"""What a constant answer would score: the floor that a model has to leave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from granvit.coordinates import Box

Answer = TypeVar("Answer", str, Box)


def best_constant_answer(
    train_answers: Sequence[Answer],
    references: Sequence[Any],
    metric: Callable[[Sequence[Answer], Sequence[Any]], float],
) -> tuple[Answer, float]:
    """The one answer that, given to every question, scores best: what a model reaches without looking.

    Candidate texts are the 50 most frequent ones of `train_answers`. Candidate boxes, relative (x1, y1, x2, y2) in
    [0, 1], are the median and the mean of `train_answers`, their 50 most frequent after rounding to eighths, and all
    boxes on a grid of quarters. The winner is chosen on `references` themselves, so the baseline is generous: a model
    that beats it has seen something.

    Args:
        metric: (predictions, references) -> score, more is better.

    Returns:
        The answer and its score.
    """
    if not train_answers:
        raise ValueError("no training answers to choose from")
    candidates: list[Any] = (
        [text for text, _ in Counter(train_answers).most_common(50)]
        if isinstance(train_answers[0], str)
        else _candidate_boxes(train_answers)
    )
    scores = [metric([candidate] * len(references), references) for candidate in candidates]
    best = int(np.argmax(scores))
    return candidates[best], scores[best]


def _candidate_boxes(train_boxes: Sequence[Any]) -> list[Box]:
    boxes_n4 = np.asarray(train_boxes, dtype=float)
    eighths = Counter(map(tuple, (np.round(boxes_n4 * 8) / 8).tolist()))
    frequent = [box for box, _ in eighths.most_common(50) if box[0] < box[2] and box[1] < box[3]]
    spans = [(low / 4, high / 4) for low in range(4) for high in range(low + 1, 5)]
    grid = [(x1, y1, x2, y2) for x1, x2 in spans for y1, y2 in spans]
    centres = [tuple(np.median(boxes_n4, axis=0).tolist()), tuple(boxes_n4.mean(axis=0).tolist())]
    return centres + frequent + grid
