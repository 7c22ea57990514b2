"""Distributions of a stream in constant memory: histograms, and the most frequent of many texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


class Histogram:
    """Counts of numbers between fixed edges, with their mean and extremes.

    Args:
        edges: ascending; bin i holds edges[i] <= value < edges[i + 1]. What lies outside goes to the first or last bin.
    """

    def __init__(self, edges: Sequence[float]) -> None:
        self.edges = np.asarray(edges, dtype=float)
        self.counts = np.zeros(len(self.edges) - 1, dtype=np.int64)
        self.sum = 0.0
        self.min, self.max = np.inf, -np.inf

    def add(self, values: ArrayLike) -> None:
        """Count numbers, an array of any shape."""
        array = np.asarray(values, dtype=float).ravel()
        if not array.size:
            return
        bins = np.searchsorted(self.edges, array, side="right") - 1
        self.counts += np.bincount(np.clip(bins, 0, len(self.counts) - 1), minlength=len(self.counts))
        self.sum += float(array.sum())
        self.min, self.max = min(self.min, float(array.min())), max(self.max, float(array.max()))

    @property
    def total(self) -> int:
        """How many numbers were counted."""
        return int(self.counts.sum())

    def quantile(self, share: float) -> float | None:
        """The value below which `share` of the numbers lie, interpolated within its bin; None where there are none."""
        if not self.total:
            return None
        ends = np.concatenate([[0], np.cumsum(self.counts)])
        value = float(np.interp(share * self.total, ends, self.edges))
        return min(max(value, self.min), self.max)

    def to_json(self) -> dict[str, Any]:
        """Edges, counts, count, mean, extremes and three quantiles."""
        found = self.total > 0
        return {
            "edges": self.edges.tolist(),
            "counts": self.counts.tolist(),
            "count": self.total,
            # Six digits, since further ones depend on how the stream was cut into batches.
            "mean": float(f"{self.sum / self.total:.6g}") if found else None,
            "min": self.min if found else None,
            "max": self.max if found else None,
            "p5": self.quantile(0.05),
            "median": self.quantile(0.5),
            "p95": self.quantile(0.95),
        }


class Frequent:
    """How often each text occurs, exact while there are at most `capacity` different ones.

    Beyond that the rarest are forgotten now and then, so `distinct` becomes a lower bound and so do the counts; a
    text that is a noticeable share of all is never lost.
    """

    def __init__(self, capacity: int = 50_000) -> None:
        self.capacity = capacity
        self.counts: Counter[str] = Counter()
        self.total = 0
        self.exact = True
        self._forgotten = 0

    def update(self, texts: Iterable[str]) -> None:
        """Count texts."""
        before = self.counts.total()
        self.counts.update(texts)
        self.total += self.counts.total() - before
        if len(self.counts) > 2 * self.capacity:
            self.exact = False
            self._forgotten = max(self._forgotten, len(self.counts))
            self.counts = Counter(dict(self.counts.most_common(self.capacity)))

    @property
    def distinct(self) -> int:
        """How many different texts there are, or at least are where `exact` is False."""
        return max(len(self.counts), self._forgotten)

    def to_json(self, top: int = 20) -> dict[str, Any]:
        """Total, distinct, whether that is exact, and the `top` most frequent with their counts."""
        # Equal counts in the order of the texts: the same report for every order of the records.
        common = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))[:top]
        return {"total": self.total, "distinct": self.distinct, "exact": self.exact, "top": common}
