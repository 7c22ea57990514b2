import numpy as np
import pytest

from granvit.bootstrap import Estimate, interval, ratios, resampled_sums


def test_sums_are_divided_not_ratios_averaged():
    [estimate] = ratios([[1], [0]], [[1], [9]])
    assert estimate.value == pytest.approx(0.1)


def test_the_interval_is_that_of_the_mean_over_images():
    rng = np.random.default_rng(5)
    right = rng.binomial(10, 0.7, size=(400, 1))
    [estimate] = ratios(right, np.full((400, 1), 10))
    # The normal approximation of the same: 1.96 standard errors of the mean over images.
    half = 1.96 * (right / 10).std() / 20
    assert estimate.low == pytest.approx(estimate.value - half, abs=0.1 * half + 0.001)
    assert estimate.high == pytest.approx(estimate.value + half, abs=0.1 * half + 0.001)


def test_regions_of_one_image_stand_or_fall_together():
    """100 regions in 4 images tell less than 100 regions in 100 images."""
    few, many = ratios([[25], [0], [25], [0]], [[25]] * 4)[0], ratios([[1], [0]] * 50, [[1]] * 100)[0]
    assert few.value == many.value == 0.5
    assert few.high - few.low > 2 * (many.high - many.low)


def test_the_same_seed_gives_the_same_interval():
    rows = [[i % 3] for i in range(20)]
    assert ratios(rows, [[2]] * 20, seed=3) == ratios(rows, [[2]] * 20, seed=3)
    assert ratios(rows, [[2]] * 20, seed=3) != ratios(rows, [[2]] * 20, seed=4)


def test_what_cannot_be_estimated():
    assert ratios([[3, 1]], [[4, 0]]) == [Estimate(0.75, None, None), None]


def test_the_interval_leaves_two_and_a_half_percent_on_either_side():
    assert interval(np.arange(1001.0)) == (25.0, 975.0)


def test_an_interval_needs_two_images_that_count():
    both, one = ratios([[1, 1], [0, 0]], [[1, 1], [1, 0]])
    assert both == Estimate(0.5, 0.0, 1.0) and one == Estimate(1.0, None, None)


def test_sums_below_one_are_divided_too():
    [estimate] = ratios([[0.25], [0.0]], [[0.25], [0.5]])
    assert estimate.value == pytest.approx(1 / 3)


def test_every_draw_takes_as_many_images_as_there_are():
    sums = resampled_sums(np.eye(5))
    assert sums.shape == (1000, 5) and (sums.sum(1) == 5).all() and sums.min() == 0
    assert sums.mean(0) == pytest.approx(np.ones(5), abs=0.1)
