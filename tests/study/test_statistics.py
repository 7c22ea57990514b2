"""Intervals over seeds and images, tests and their correction, against cases worked out by hand."""

import numpy as np
import pytest
from scipy.stats import ttest_rel

import granvit.bootstrap
from granvit.bootstrap import Estimate, ratios, resampled_sums
from granvit.errors import GranvitError
from granvit.study.definition import Comparison
from granvit.study.results import Result
from granvit.study.statistics import Difference, answer, by_arm, compared, holm, of_arm, of_pair


def result(arm, seed, hits, counts=None, digest="d", numbers=None):
    hits = np.asarray(hits, float)
    counts = np.ones(len(hits)) if counts is None else np.asarray(counts, float)
    images = {"count": len(hits), "digest": digest}
    return Result(arm, seed, "i", {}, images, {"describe": np.stack([hits, counts], 1)}, numbers or {}, {}, {})


def noisy(arm, seed, mean, images=200, spread=0.2, at=0):
    """An image's own difficulty is the same in all runs."""
    difficulty = np.random.default_rng(at).normal(0, spread, images)
    return result(arm, seed, mean + difficulty)


def test_holm_steps_down():
    # 3 x 0.01; then 2 x 0.03; then 1 x 0.04, but never less than the one before.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_p_of_one_seed_is_twice_the_share_of_draws_beyond_zero():
    hits = np.random.default_rng(0).normal(0.03, 0.2, 200)
    found = of_pair([result("a", 0, np.zeros(200))], [result("b", 0, hits)], "describe")
    beyond = (resampled_sums(np.stack([hits, np.ones(200)], 1))[:, 0] <= 0).mean()
    assert found.p == pytest.approx(2 * beyond, abs=0.004) and 0.01 < found.p < 0.1


def test_p_of_several_seeds_is_that_of_students_t():
    """Where images do not differ: p of the paired t test."""
    first, second = [0.2, 0.5, 0.6], [0.3, 0.65, 0.66]
    runs = [[result(arm, n, [v] * 50) for n, v in enumerate(each)] for arm, each in (("a", first), ("b", second))]
    assert of_pair(*runs, "describe").p == pytest.approx(ttest_rel(second, first).pvalue, rel=1e-3)


def test_no_difference_at_all_has_a_p_of_one():
    runs = [[result(arm, n, [v] * 50) for n, v in enumerate((0.2, 0.5))] for arm in "ab"]
    assert of_pair(*runs, "describe").p == 1.0


def test_one_seed_is_the_bootstrap_over_images():
    hits, counts = [1, 0, 2, 3], [2, 1, 2, 4]
    expected = ratios(np.array([hits]).T, np.array([counts]).T)[0]
    assert of_arm([result("a", 0, hits, counts)], "describe") == pytest.approx(expected)


def test_the_mean_is_over_seeds_and_not_over_questions():
    few, many = result("a", 0, [1, 1], [1, 1]), result("a", 1, [0, 0], [50, 50])
    assert of_arm([few, many], "describe").value == 0.5


@pytest.mark.parametrize(("values", "quantile"), [([0.2, 0.5], 12.706), ([0.2, 0.5, 0.6], 4.303)])
def test_the_interval_over_seeds_is_students(values, quantile):
    """Where images do not differ: t s / sqrt(n) to both sides, s with n - 1; quantiles from a table."""
    found = of_arm([result("a", n, [v] * 50) for n, v in enumerate(values)], "describe")
    half = quantile * np.std(values, ddof=1) / np.sqrt(len(values))
    assert found == pytest.approx((np.mean(values), np.mean(values) - half, np.mean(values) + half), rel=1e-3)


@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize(("of_seed", "of_image"), [(0.05, 0.1), (0.0, 0.3)])
def test_intervals_hold_the_truth_as_often_as_they_say(seeds, of_seed, of_image, monkeypatch):
    """Whatever differs most: 95 of 100 should; 4 deviations of 160 simulated studies below that is 88."""
    monkeypatch.setattr(granvit.bootstrap, "DRAWS", 200)
    rng = np.random.default_rng(seeds)
    held = 0
    for _ in range(160):
        image = rng.normal(0, of_image, 40)
        second = [result("b", seed, image + rng.normal(0, of_seed)) for seed in range(seeds)]
        found = of_pair([result("a", seed, np.zeros(40)) for seed in range(seeds)], second, "describe")
        held += found.estimate.low <= 0 <= found.estimate.high
    assert held / 160 > 0.88


def test_an_image_is_drawn_in_all_runs_at_once():
    """Three runs that agree on every image tell no more of other images than one does."""
    one, three = [noisy("a", 0, 0.5)], [noisy("a", seed, 0.5) for seed in range(3)]
    assert of_arm(three, "describe") == pytest.approx(of_arm(one, "describe"))


def test_pairs_share_their_images_and_seeds():
    first = [noisy("a", seed, 0.5 + 0.1 * seed) for seed in range(3)]
    second = [noisy("b", seed, 0.53 + 0.1 * seed) for seed in range(3)]
    found = of_pair(first, second, "describe")
    # What is hard for both, and what a seed does to both, cancels.
    assert found.estimate == pytest.approx((0.03, 0.03, 0.03))
    assert found.p == pytest.approx(2 / 1001) and found.seeds == 3


def test_only_seeds_of_both_arms_are_compared():
    found = of_pair([noisy("a", 0, 0.1), noisy("a", 1, 0.9)], [noisy("b", 1, 1.0), noisy("b", 2, 0.0)], "describe")
    assert found.seeds == 1 and found.estimate.value == pytest.approx(0.1)


def test_an_arm_without_results_gives_nothing():
    found = of_pair([], [noisy("b", 0, 1.0)], "describe")
    assert found == Difference(None, None, 0)


def test_of_one_picture_nothing_is_said_of_others():
    """As of many tiles of one: drawing it again gives it again."""
    runs = [
        [result(arm, n, [v, 0], [1, 0]) for n, v in enumerate(values)] for arm, values in (("a", (0, 1)), ("b", (1, 1)))
    ]
    assert of_arm(runs[0], "describe") == Estimate(0.5, None, None)
    assert of_pair(*runs, "describe").p is None


def test_different_images_are_not_compared():
    with pytest.raises(GranvitError, match="a, b: measured on different images"):
        of_pair([result("a", 0, [1, 0])], [result("b", 0, [1, 0], digest="other")], "describe")


def test_numbers_that_are_no_ratio_are_drawn_over_seeds():
    runs = [result("a", n, [1, 0], numbers={"rank": v}) for n, v in enumerate((10.0, 12.0, 14.0))]
    # t of two degrees of freedom, 4.303, times the standard error of 2 / sqrt(3).
    assert of_arm(runs, "rank") == pytest.approx((12, 12 - 4.968, 12 + 4.968), rel=1e-3)
    assert of_arm(runs[:1], "rank") == (10.0, None, None)


def comparison(**changes):
    names = {"question": "?", "first": "a", "second": "b", "measure": "describe", "claim": "better", "paper": ""}
    return Comparison(**{**names, **changes})


def test_all_named_comparisons_count_in_the_correction_also_those_not_run():
    runs = by_arm([noisy("a", s, 0.5) for s in range(2)] + [noisy("b", s, 0.6) for s in range(2)])
    differences = compared([comparison(), comparison(second="c"), comparison(second="d")], runs)
    assert differences[0].adjusted == pytest.approx(3 * 2 / 1001)
    assert differences[1].estimate is None and differences[1].adjusted is None


def test_results_of_an_arm_are_in_order_of_their_seeds():
    assert [r.seed for r in by_arm([noisy("a", 2, 0.1), noisy("a", 0, 0.1)])["a"]] == [0, 2]


@pytest.mark.parametrize(
    ("claim", "low", "high", "adjusted", "said"),
    [
        ("better", 0.01, 0.05, 0.01, "holds"),
        ("better", 0.01, 0.05, 0.2, "cannot be told"),
        ("better", -0.01, 0.05, 0.01, "cannot be told"),
        ("better", -0.05, -0.01, 0.01, "does not hold"),
        ("better", -0.01, 0.015, 0.9, "no large gain"),  # of two points
        ("better", -0.05, 0.01, 0.9, "no large gain"),
        ("not worse", -0.01, 0.05, 0.9, "holds"),
        ("not worse", -0.05, -0.03, 0.01, "does not hold"),
        ("not worse", -0.05, -0.03, 0.2, "cannot be told"),
        ("not worse", -0.03, 0.05, 0.9, "cannot be told"),
    ],
)
def test_what_an_interval_says_of_a_claim(claim, low, high, adjusted, said):
    difference = Difference(Estimate((low + high) / 2, low, high), 0.01, 3, adjusted)
    assert answer(comparison(claim=claim), difference) == said
    less = Difference(Estimate(-(low + high) / 2, -high, -low), 0.01, 3, adjusted)
    assert answer(comparison(claim=claim), less, more_is_better=False) == said


def test_one_seed_tells_nothing():
    assert answer(comparison(), Difference(Estimate(0.5, 0.4, 0.6), 0.001, 1, 0.001)) == "cannot be told"
    assert answer(comparison(), Difference(None, None, 0)) == "cannot be told"
