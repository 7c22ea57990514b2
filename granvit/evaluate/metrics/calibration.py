"""How far confidences can be believed: reliability, expected calibration error, and what a threshold keeps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class ReliabilityBin:
    """Answers whose confidence is above `low` (in the first bin: at least) and at most `high`, out of [0, 1].

    Attributes:
        count: how many there are.
        confidence: their mean confidence; right: the share of them that are right. Both 0 where there are none.
    """

    low: float
    high: float
    count: int
    confidence: float
    right: float


@dataclass(frozen=True)
class Threshold:
    """What is left where answers below a confidence are none.

    Attributes:
        confidence: the threshold; answers that have just as much are kept.
        kept: answers that are left.
        precision: the share of these that are right; None where none are left.
        recall: right answers that are left, over all questions.
    """

    confidence: float
    kept: int
    precision: float | None
    recall: float


def _checked(confidences: ArrayLike, right: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    confidences_n, right_n = np.asarray(confidences, dtype=float), np.asarray(right, dtype=bool)
    if confidences_n.shape != right_n.shape or confidences_n.ndim != 1 or not len(confidences_n):
        raise ValueError("as many confidences as answers are expected, and at least one")
    return confidences_n, right_n


def reliability(confidences: ArrayLike, right: ArrayLike, bins: int = 10) -> list[ReliabilityBin]:
    """The reliability diagram: `bins` bins of equal width over [0, 1] (Guo et al. 2017, section 2).

    Args:
        confidences: (N,) in [0, 1]; right: (N,), which answers are right.
    """
    confidences_n, right_n = _checked(confidences, right)
    edges = np.linspace(0, 1, bins + 1)
    # The bin whose upper edge is the first that is not below the confidence.
    bin_n = np.clip(np.searchsorted(edges, confidences_n, side="left") - 1, 0, bins - 1)
    made = []
    for b in range(bins):
        inside = bin_n == b
        count = int(inside.sum())
        mean, share = (float(v[inside].mean()) if count else 0.0 for v in (confidences_n, right_n))
        made.append(ReliabilityBin(float(edges[b]), float(edges[b + 1]), count, mean, share))
    return made


def expected_calibration_error(bins: list[ReliabilityBin]) -> float:
    """How far a bin's confidence is from its share of right answers, on average over answers (Guo et al. 2017)."""
    total = sum(b.count for b in bins)
    return sum(b.count * abs(b.right - b.confidence) for b in bins) / total


def auroc(confidences: ArrayLike, right: ArrayLike) -> float | None:
    """The chance that a right answer has a higher confidence than a wrong one, equal ones counting half.

    None where all answers are right, or all wrong.
    """
    confidences_n, right_n = _checked(confidences, right)
    wrong = np.sort(confidences_n[~right_n])
    if not right_n.any() or not len(wrong):
        return None
    below = np.searchsorted(wrong, confidences_n[right_n], side="left")
    not_above = np.searchsorted(wrong, confidences_n[right_n], side="right")
    return float((below + not_above).mean() / (2 * len(wrong)))


def thresholds(confidences: ArrayLike, right: ArrayLike, given: ArrayLike, at: ArrayLike) -> list[Threshold]:
    """Precision and recall of the answers that are left at each of the thresholds `at`.

    `given` (N,) says which answers are answers at all: where a box was asked for and none was said, nothing is kept.
    """
    confidences_n, right_n = _checked(confidences, right)
    given_n = np.asarray(given, dtype=bool)
    made = []
    for threshold in np.asarray(at, dtype=float):
        kept = given_n & (confidences_n >= threshold)
        hits, count = int((kept & right_n).sum()), int(kept.sum())
        made.append(Threshold(float(threshold), count, hits / count if count else None, hits / len(right_n)))
    return made
