"""Scores of located boxes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from granvit import geometry
from granvit.coordinates import Box
from granvit.texts import check_pairs


def paired_iou(predictions: Sequence[Box | None], references: Sequence[Box]) -> NDArray[np.float64]:
    """IoU of each prediction with its own reference, shape (N,); None (an answer that isn't a box) has IoU 0.

    Boxes are (x1, y1, x2, y2), pixels or relative alike: scaling an axis leaves the IoU as it is.
    """
    check_pairs(predictions, references)
    return geometry.paired_iou([(0, 0, 0, 0) if p is None else p for p in predictions], references)


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
