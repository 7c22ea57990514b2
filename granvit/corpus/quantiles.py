"""Medians of a stream: exact while few different numbers come, within 1 % of the true one after that, in little memory.

Beyond `_MOST` different numbers each is counted in a bin of a geometric series, which holds the relative error of any
quantile, however skewed the numbers are (DDSketch: Masson, Rim and Lee, VLDB 2019, arXiv 1908.10693). The bins are
fixed, so nothing depends on the order of the numbers or on how the stream was cut.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The largest error of a quantile, as a share of it.
ERROR = 0.01
_GAMMA = (1 + ERROR) / (1 - ERROR)
_MOST = 4_096
# Added to the number of a bin, so that those of positive numbers are positive: floats begin at 5e-324.
_OFFSET = 50_000


class Quantiles:
    """Counts numbers, and says below which one a share of them lies.

    Holds at most `_MOST` numbers, or some 2,000 bins for numbers that are up to 1e18 times each other.
    """

    def __init__(self) -> None:
        self._exact: Counter[float] | None = Counter()
        self._bins: Counter[int] = Counter()

    def add(self, values: NDArray[np.float64]) -> None:
        """Count numbers (N,), none of them NaN."""
        different, counts = np.unique(values, return_counts=True)
        if self._exact is not None:
            self._exact.update(dict(zip(different.tolist(), counts.tolist(), strict=True)))
            if len(self._exact) <= _MOST:
                return
            different, counts = (np.array(list(some)) for some in (self._exact.keys(), self._exact.values()))
            self._exact = None
        for number, count in zip(_bins_of(different).tolist(), counts.tolist(), strict=True):
            self._bins[number] += count

    def at(self, share: float) -> float:
        """The smallest number than which at least `share` of the numbers are no larger; exact, or within `ERROR` of it.

        Raises:
            ValueError: no number was counted.
        """
        counted: Mapping[Any, int] = self._bins if self._exact is None else self._exact
        places = sorted(counted)
        if not places:
            raise ValueError("no number was counted")
        ends = np.cumsum([counted[place] for place in places])
        place = places[min(int(np.searchsorted(ends, share * ends[-1])), len(places) - 1)]
        return float(place) if self._exact is not None else _middle(int(place))


def _bins_of(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Bin i holds what lies in (gamma^(i-1), gamma^i]; negative numbers are mirrored, and 0 is alone."""
    sizes = np.minimum(np.abs(values), np.finfo(float).max)
    numbers = np.ceil(np.log(np.where(sizes > 0, sizes, 1.0)) / math.log(_GAMMA)).astype(np.int64) + _OFFSET
    return np.where(sizes > 0, np.sign(values).astype(np.int64) * numbers, 0)


def _middle(number: int) -> float:
    """What no number of the bin is further from than `ERROR` of it."""
    if not number:
        return 0.0
    return math.copysign(2 * _GAMMA ** (abs(number) - _OFFSET) / (_GAMMA + 1), number)
