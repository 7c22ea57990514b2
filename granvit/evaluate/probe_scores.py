"""Scores of probes under any weighting of the images, so that the bootstrap redraws all encoders alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from granvit.corpus.audit.bootstrap import Estimate, estimate, resampled_sums

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
    """The mean over V words of the average precision, the area below the steps of precision over recall.

    Args:
        scores, truth: (N, V). A word that stands on no question drawn is left out of the mean.
    """
    at = np.asarray(image)

    def score(weights: Floats) -> Floats:
        columns = [
            _average_precision(order, truth[:, v], weights[:, at])
            for v, order in enumerate(np.argsort(-scores, axis=0, kind="stable").T)
        ]
        return _mean_of_known(np.stack(columns, axis=1))

    return score


def prevalence(truth: NDArray[np.bool_], image: Sequence[int]) -> Score:
    """The mean over words of the share of questions that have it: the average precision of scores that tell nothing."""
    at = np.asarray(image)

    def score(weights: Floats) -> Floats:
        w_kn = weights[:, at]
        shares_kv = w_kn @ truth / np.maximum(w_kn.sum(1, keepdims=True), 1)
        return _mean_of_known(np.where(shares_kv > 0, shares_kv, np.nan))

    return score


def _average_precision(order: NDArray[np.int64], truth: NDArray[np.bool_], w_kn: Floats) -> Floats:
    w_kn = w_kn[:, order]
    right_kn = w_kn * truth[order]
    found, seen = right_kn.cumsum(1), w_kn.cumsum(1)
    precision = np.divide(found, seen, out=np.zeros_like(found), where=seen > 0)
    positives = found[:, -1]
    area = (right_kn * precision).sum(1)
    return np.divide(area, positives, out=np.full(len(area), np.nan), where=positives > 0)


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
