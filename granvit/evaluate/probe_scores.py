"""Scores of probes under any weighting of the images, so that the bootstrap redraws all encoders alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from granvit.bootstrap import Estimate, estimate, resampled_sums

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
    """The mean over V words of the average precision.

    That is the mean, over the questions that have the word, of the precision among all questions that score as high or
    higher; scores that tell nothing get the word's share of the questions.

    Args:
        scores, truth: (N, V). A word that stands on no question drawn is left out of the mean.
    """
    at = np.asarray(image)

    def score(weights: Floats) -> Floats:
        w_kn = weights[:, at]
        columns = [_average_precision(s, t, w_kn) for s, t in zip(scores.T, truth.T, strict=True)]
        return _mean_of_known(np.stack(columns, axis=1))

    return score


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


def _mean_of_known(values_kv: Floats) -> Floats:
    known = ~np.isnan(values_kv)
    counts = known.sum(1)
    sums = np.where(known, values_kv, 0).sum(1)
    return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)


def with_intervals(scores: Sequence[Score], images: int) -> tuple[list[Estimate | None], list[Estimate | None]]:
    """Each score with its 95 % interval, and its difference to the first on the same draws (None for the first)."""
    drawn = resampled_sums(np.eye(images)) if images > 1 else np.empty((0, images))
    weights = np.concatenate([np.ones((1, images)), drawn])
    values = [score(weights) for score in scores]
    changes: list[Estimate | None] = [_interval(v - values[0]) for v in values]
    return [_interval(v) for v in values], [None, *changes[1:]]


def _interval(values: Floats) -> Estimate | None:
    draws = values[1:]
    return estimate(float(values[0]), draws[~np.isnan(draws)])
