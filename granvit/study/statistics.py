"""Intervals and tests over seeds and images at once.

The same images are asked in every run, so images and seeds are crossed, not nested: an image that is hard is hard in
all runs. The mean over seeds would have come out otherwise on other images, and with other seeds, and each of the two
gets the interval that fits it. Images are many: they are drawn again, tiles of one picture together, all runs being
asked about the drawn ones (the percentile bootstrap). Seeds are two to five, of which a bootstrap knows far too little:
Student's t of their mean, with n - 1 degrees of freedom, as though what a run gives were normally distributed over
seeds. The distances from the mean to the two ends are added in quadrature, end by end (Howe 1974; MOVER, Zou and Donner
2008). What an image and a seed do together counts in both, which errs to the wide side. Two arms are compared on the
same draws: seed by seed, since seed n gives both the same random choices, and image by image. Of one seed nothing can
be said of others: its interval is over images alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from granvit.bootstrap import DRAWS, Estimate, enough_images, resampled_sums
from granvit.errors import GranvitError
from granvit.study.definition import Comparison
from granvit.study.results import Result

Floats = NDArray[np.float64]
# The error of an interval, and of a family of tests by Holm's correction.
LEVEL = 0.05

Answer = Literal["holds", "does not hold", "no large gain", "cannot be told"]


@dataclass(frozen=True)
class Difference:
    """What two arms differ by in a measure: the second less the first.

    Attributes:
        estimate: with its 95 % interval; None where a measure is missing.
        p: two-sided, of the hypothesis that there is no difference: the level at which the interval would just reach
            0; at least 2 / (draws + 1).
        adjusted: the same after Holm's correction over all comparisons of the study; None where there is no p.
        seeds: how many there are of both.
    """

    estimate: Estimate | None
    p: float | None
    seeds: int
    adjusted: float | None = None


def of_arm(results: Sequence[Result], measure: str) -> Estimate | None:
    """The mean over an arm's seeds with its interval; None where it was not measured."""
    values, drawn = _drawn(results, measure)
    return _Mean.of(values, drawn).estimate() if len(values) else None


def of_pair(first: Sequence[Result], second: Sequence[Result], measure: str) -> Difference:
    """The difference of two arms over the seeds that both have.

    Raises:
        GranvitError: they were measured on different images.
    """
    seeds = sorted({r.seed for r in first} & {r.seed for r in second})
    ours, theirs = ([r for seed in seeds for r in arm if r.seed == seed] for arm in (first, second))
    _check_images([*ours, *theirs])
    (a, drawn_a), (b, drawn_b) = _drawn(ours, measure), _drawn(theirs, measure)
    if not len(a) or len(a) != len(b):
        return Difference(None, None, len(seeds))
    drawn = None if drawn_a is None or drawn_b is None else drawn_b - drawn_a
    mean = _Mean.of(b - a, drawn)
    return Difference(mean.estimate(), mean.p_value(), len(seeds))


def _check_images(results: Sequence[Result]) -> None:
    measured = {tuple(result.images.get(name) for name in ("digest", "count", "pictures")) for result in results}
    if len(measured) > 1:
        names = ", ".join(sorted({r.arm for r in results}))
        raise GranvitError(f"{names}: measured on different images, which cannot be compared")


def _drawn(results: Sequence[Result], measure: str) -> tuple[Floats, Floats | None]:
    """A measure of each result (S,), and in each drawing of images (draws, S).

    A measure that is no ratio over images is the same in every drawing; of one such result there is no drawing at all,
    nor where in some run fewer than two pictures count.

    Raises:
        GranvitError: the results are of different images.
    """
    _check_images(results)
    known = [result for result in results if result.value(measure) is not None]
    values = np.array([result.value(measure) for result in known], float)
    if all(measure in result.tables for result in known) and known:
        # (pictures, S, 2): the same draws for all runs, and, by the same seed and length, for all arms.
        table = np.stack([result.tables[measure] for result in known], axis=1)
        if not enough_images(table[..., 1]).all():
            return values, None
        sums = resampled_sums(table)
        with np.errstate(divide="ignore", invalid="ignore"):
            return values, sums[..., 0] / sums[..., 1]
    return values, np.tile(values, (DRAWS, 1)) if len(values) > 1 else None


@dataclass(frozen=True)
class _Mean:
    """A mean over seeds, and what is known of how it varies.

    Attributes:
        value: the mean.
        drawn: (draws,), the mean on each drawing of images; None where one seed gave a number that is no ratio.
        error: the standard error of the mean over seeds; 0 where there is but one.
        seeds: how many.
    """

    value: float
    drawn: Floats | None
    error: float
    seeds: int

    @classmethod
    def of(cls, values: Floats, drawn_ds: Floats | None) -> _Mean:
        """Of what each seed gave (S,), and gave on each drawing of images (draws, S)."""
        count = len(values)
        error = float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0
        means = None if drawn_ds is None else drawn_ds.mean(1)
        return cls(float(values.mean()), None if means is None else means[np.isfinite(means)], error, count)

    def interval(self, level: float) -> tuple[float, float]:
        """Where the mean of all seeds, on all images, lies but for a share `level` of the times."""
        assert self.drawn is not None
        low, high = np.quantile(self.drawn, [level / 2, 1 - level / 2])
        of_seeds = self.error * float(student_t.isf(level / 2, self.seeds - 1)) if self.error else 0.0
        return (
            self.value - math.hypot(max(0.0, self.value - low), of_seeds),
            self.value + math.hypot(max(0.0, high - self.value), of_seeds),
        )

    def estimate(self) -> Estimate:
        if self.drawn is None or not len(self.drawn):
            return Estimate(self.value, None, None)
        return Estimate(self.value, *self.interval(LEVEL))

    def p_value(self) -> float | None:
        """The level at which the interval would just reach 0: by bisection, since it narrows as the level rises."""
        if self.drawn is None or not len(self.drawn):
            return None
        reached, left_out = 2 / (len(self.drawn) + 1), 1.0
        if not self._reaches_zero(reached):
            return reached
        for _ in range(30):
            level = (reached + left_out) / 2
            reached, left_out = (level, left_out) if self._reaches_zero(level) else (reached, level)
        return left_out

    def _reaches_zero(self, level: float) -> bool:
        low, high = self.interval(level)
        return low <= 0 <= high


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down correction: adjusted p values, in the order given."""
    order = np.argsort(p_values, kind="stable")
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def compared(comparisons: Sequence[Comparison], results: Mapping[str, Sequence[Result]]) -> list[Difference]:
    """All comparisons of a study, p values corrected over as many as the study names, done or not.

    `results` are those of each arm. One that has not run yet counts in the correction with a p of 1, so that nothing
    becomes less certain when it has.
    """
    found = [of_pair(results.get(c.first, ()), results.get(c.second, ()), c.measure) for c in comparisons]
    adjusted = holm([1.0 if d.p is None else d.p for d in found])
    return [
        d if d.p is None else Difference(d.estimate, d.p, d.seeds, value)
        for d, value in zip(found, adjusted, strict=True)
    ]


def answer(comparison: Comparison, difference: Difference, more_is_better: bool = True) -> Answer:
    """What the difference says of the claim.

    "better" holds where the second arm is better and Holm's p is below 0.05, and does not where it is worse by that
    test. Where neither is so and the interval ends below `margin` there is "no large gain", which does not refute one
    of less. "not worse" holds where the interval ends above -margin, and does not where it lies below 0 by the test.
    Anything else cannot be told: of one seed nothing can.
    """
    found = difference.estimate
    if found is None or found.low is None or found.high is None or difference.seeds < 2:
        return "cannot be told"
    low, high = (found.low, found.high) if more_is_better else (-found.high, -found.low)
    certain = difference.adjusted is not None and difference.adjusted < LEVEL
    better = comparison.claim == "better"
    if (certain and low > 0) if better else low > -comparison.margin:
        return "holds"
    if certain and high < 0:
        return "does not hold"
    return "no large gain" if better and high < comparison.margin else "cannot be told"


def by_arm(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results of each arm, in order of their seeds."""
    arms: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda r: r.seed):
        arms.setdefault(result.arm, []).append(result)
    return arms


def to_json(difference: Difference) -> dict[str, Any]:
    found = difference.estimate
    return {
        "difference": None if found is None else found.to_json(),
        "p": difference.p,
        "holm": difference.adjusted,
        "seeds": difference.seeds,
    }
