"""Intervals and tests over seeds and images at once.

The same images are asked in every run, so images and seeds are crossed, not nested: an image that is hard is hard in
all runs. A draw therefore takes seeds and images independently of each other, with replacement, and asks the drawn
images in every drawn run (the pigeonhole bootstrap; Owen 2007, who shows it to be conservative). Two arms are compared
on the same draws: seed by seed, since seed n gives both the same random choices, and image by image. Deviations of the
seeds from their mean are enlarged by sqrt(n / (n - 1)), without which a draw of few seeds knows too little spread; of
one seed nothing can be said of others, and the interval is over images alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from granvit.bootstrap import DRAWS, Estimate, estimate, resampled_sums
from granvit.errors import GranvitError
from granvit.study.definition import Comparison
from granvit.study.results import Result

Floats = NDArray[np.float64]
# The family-wise error that Holm's correction keeps to.
LEVEL = 0.05

Answer = Literal["holds", "does not hold", "cannot be told"]


@dataclass(frozen=True)
class Difference:
    """What two arms differ by in a measure: the second less the first.

    Attributes:
        estimate: with its 95 % interval; None where a measure is missing.
        p: two-sided, of the hypothesis that there is no difference; at least 2 / (draws + 1).
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
    if not len(values):
        return None
    return estimate(float(values.mean()), _over_seeds(values, drawn) if drawn is not None else np.empty(0))


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
    values = b - a
    if drawn_a is None or drawn_b is None:
        return Difference(estimate(float(values.mean()), np.empty(0)), None, len(seeds))
    draws = _over_seeds(values, drawn_b - drawn_a)
    return Difference(estimate(float(values.mean()), draws), p_value(draws), len(seeds))


def _check_images(results: Sequence[Result]) -> None:
    digests = {result.images.get("digest") for result in results}
    if len(digests) > 1:
        names = ", ".join(sorted({r.arm for r in results}))
        raise GranvitError(f"{names}: measured on different images, which cannot be compared")


def _drawn(results: Sequence[Result], measure: str) -> tuple[Floats, Floats | None]:
    """A measure of each result (S,), and in each drawing of images (draws, S).

    A measure that is no ratio over images is the same in every drawing; of one such result there is no drawing at all.
    """
    known = [result for result in results if result.value(measure) is not None]
    values = np.array([result.value(measure) for result in known], float)
    if all(measure in result.tables for result in known) and known:
        # (images, S, 2): the same draws for all runs, and, by the same seed and length, for all arms.
        sums = resampled_sums(np.stack([result.tables[measure] for result in known], axis=1))
        with np.errstate(divide="ignore", invalid="ignore"):
            return values, sums[..., 0] / sums[..., 1]
    return values, np.tile(values, (DRAWS, 1)) if len(values) > 1 else None


def _over_seeds(values: Floats, drawn_ds: Floats) -> Floats:
    """Draws of the mean over seeds (draws,), of what each seed gave (S,) and gave on each drawing of images."""
    count = len(values)
    if count == 1:
        return _finite(drawn_ds[:, 0])
    # Seeds are drawn by a generator of their own, else they would follow the images.
    chosen = np.random.default_rng(1).integers(count, size=(len(drawn_ds), count))
    mean_d = drawn_ds.mean(1)
    taken_d = np.take_along_axis(drawn_ds, chosen, axis=1).mean(1)
    return _finite(mean_d + math.sqrt(count / (count - 1)) * (taken_d - mean_d))


def _finite(draws: Floats) -> Floats:
    return draws[np.isfinite(draws)]


def p_value(draws: Floats) -> float | None:
    """How easily a difference of none would look like these draws: twice the share on the lesser side of 0."""
    if not len(draws):
        return None
    lesser = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return min(1.0, 2 * (lesser + 1) / (len(draws) + 1))


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

    "better" holds where the second arm is better and Holm's p is below 0.05; it does not hold where it is worse by that
    test, or where the interval ends below `margin`: no gain that would matter. "not worse" holds where the interval
    ends above -margin, and does not where it lies below 0 by the test. Anything else cannot be told: of one seed
    nothing can.
    """
    found = difference.estimate
    if found is None or found.low is None or found.high is None or difference.seeds < 2:
        return "cannot be told"
    low, high = (found.low, found.high) if more_is_better else (-found.high, -found.low)
    certain = difference.adjusted is not None and difference.adjusted < LEVEL
    gained, lost = certain and low > 0, certain and high < 0
    if comparison.claim == "better":
        return "holds" if gained else "does not hold" if lost or high < comparison.margin else "cannot be told"
    return "holds" if low > -comparison.margin else "does not hold" if lost else "cannot be told"


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
