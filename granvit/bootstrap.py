"""Confidence intervals by drawing whole images again, since the regions of one image are right or wrong together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from granvit.regions import picture_id

DRAWS = 1_000


class Estimate(NamedTuple):
    """A ratio with its 95 % interval; no interval where there are fewer than two images to draw from."""

    value: float
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, Any]:
        return self._asdict()


def ratios(
    numerators: ArrayLike, denominators: ArrayLike, seed: int = 0, ids: Sequence[str] | None = None
) -> list[Estimate | None]:
    """Sums over images divided by sums over images, each with the 95 % interval of the percentile bootstrap.

    Args:
        numerators, denominators: (images, K): what each image contributes to K ratios.
        ids: the images' ids, by which tiles of one are drawn together.

    Returns:
        K estimates; None where the denominators sum to 0.
    """
    table_n2k = np.stack([np.asarray(numerators, float), np.asarray(denominators, float)], axis=1)
    if ids is not None:
        table_n2k = by_picture(table_n2k, ids)
    values_k = _divide(table_n2k.sum(axis=0))
    draws = [_divide(sums) for sums in resampled_sums(table_n2k, seed)] if len(table_n2k) > 1 else []
    drawn_dk = np.array(draws).reshape(len(draws), len(values_k))
    drawn_dk[:, ~enough_images(table_n2k[:, 1])] = np.nan
    return [estimate(value, column[~np.isnan(column)]) for value, column in zip(values_k, drawn_dk.T, strict=True)]


def by_picture(table: np.ndarray, ids: Sequence[str]) -> np.ndarray:
    """(images, ...) -> (pictures, ...): the sums of rows whose ids are of tiles of one picture, in their order."""
    names = [picture_id(name) for name in ids]
    number = {name: n for n, name in enumerate(dict.fromkeys(names))}
    sums = np.zeros((len(number), *table.shape[1:]))
    np.add.at(sums, [number[name] for name in names], table)
    return sums


def enough_images(counts: ArrayLike) -> np.ndarray:
    """Whether two images or more count, (images, K) -> (K,): one drawn again tells nothing of others."""
    return np.asarray(np.count_nonzero(np.asarray(counts), axis=0) >= 2)


def resampled_sums(table: np.ndarray, seed: int = 0) -> np.ndarray:
    """The sums of a table's rows, `DRAWS` times over as many rows drawn with replacement.

    Args:
        table: (images, ...), what each image contributes; tables of equal length are drawn alike by the same seed.

    Returns:
        (DRAWS, ...).
    """
    images = len(table)
    rng = np.random.default_rng(seed)
    sums = np.empty((DRAWS, *table.shape[1:]))
    for draw in range(DRAWS):
        times_n = np.bincount(rng.integers(images, size=images), minlength=images)
        sums[draw] = np.tensordot(times_n, table, axes=1)
    return sums


def _divide(sums_2k: np.ndarray) -> np.ndarray:
    empty = np.full(sums_2k.shape[1], np.nan)
    return np.divide(sums_2k[0], sums_2k[1], out=empty, where=sums_2k[1] > 0)


def estimate(value: float, drawn: np.ndarray) -> Estimate | None:
    """A value with the interval of what the draws (D,) gave; None where the value is not a number."""
    if np.isnan(value):
        return None
    if not len(drawn):
        return Estimate(float(value), None, None)
    return Estimate(float(value), *interval(drawn))


def interval(drawn: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of what the draws (D,) gave."""
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)
