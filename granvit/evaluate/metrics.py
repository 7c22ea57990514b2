"""Scores of located boxes, and what a constant answer would score; scores of texts are in `granvit.texts`.

Pure functions over lists. All raise `ValueError` where nothing is to be scored, or where there are not as many
predictions as references.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from granvit.coordinates import Box
from granvit.geometry import iou
from granvit.texts import check_pairs

Answer = TypeVar("Answer", str, Box)


# --- boxes -----------------------------------------------------------------------------------------------------------


def paired_iou(predictions: Sequence[Box | None], references: Sequence[Box]) -> NDArray[np.float64]:
    """IoU of each prediction with its own reference, shape (N,); None (an answer that isn't a box) has IoU 0.

    Boxes are (x1, y1, x2, y2), pixels or relative alike: scaling an axis leaves the IoU as it is.
    """
    check_pairs(predictions, references)
    predicted_n4 = np.array([(0, 0, 0, 0) if p is None else p for p in predictions], dtype=float)
    true_n4 = np.asarray(references, dtype=float)
    # `iou` is pairwise; in blocks, its diagonal costs little more than the pairs alone.
    blocks = [np.diagonal(iou(predicted_n4[i : i + 128], true_n4[i : i + 128])) for i in range(0, len(true_n4), 128)]
    return np.concatenate(blocks)


def box_scores(
    predictions: Sequence[Box | None], references: Sequence[Box], thresholds: Sequence[float] = (0.5,)
) -> dict[str, float]:
    """Localisation scores in [0, 1]: "acc50" (and so on for `thresholds`), "miou" and "parse_rate".

    "acc50" is the share of references whose prediction has an IoU of at least 0.5. An answer that isn't a box counts
    as a miss and as IoU 0; "parse_rate", the share of answers that are boxes, tells such misses from wrong places.
    """
    iou_n = paired_iou(predictions, references)
    accuracies = {f"acc{round(100 * t)}": float((iou_n >= t).mean()) for t in thresholds}
    parsed = sum(p is not None for p in predictions) / len(predictions)
    return {**accuracies, "miou": float(iou_n.mean()), "parse_rate": parsed}


# --- baseline --------------------------------------------------------------------------------------------------------


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
