"""Intervals of the mean average precision over rare words, held against draws from where the truth is known."""

import numpy as np
import pytest

from granvit import bootstrap
from granvit.evaluate.probe_tasks import (
    LEAST_IMAGES,
    average_precisions,
    images_of,
    mean_average_precision,
    with_intervals,
)

IMAGES, EACH, WORDS = 60, 3, 16
SHARES = np.geomspace(0.2, 1 / (IMAGES * EACH), WORDS)  # the rarest stands on one question in the mean


def drawn(rng, signal):
    """Scores and truths (N, V) of held-out questions, alike within an image, and the image of each."""
    image = np.repeat(np.arange(IMAGES), EACH)
    truth = rng.random((len(image), WORDS)) < SHARES
    luck = 0.5 * rng.normal(size=(IMAGES, 1))[image]
    return truth * (signal + luck) + rng.normal(size=truth.shape), truth, image


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch):
    monkeypatch.setattr(bootstrap, "DRAWS", 120)


@pytest.mark.parametrize("signal", [0.0, 1.5])
def test_ninety_five_of_a_hundred_intervals_hold_what_the_words_score_in_the_mean(signal):
    """What the same words score in the mean over data sets like this one; chance is a signal of 0."""
    rng = np.random.default_rng(3)
    ones = np.ones((1, IMAGES))
    scored = np.full((400, WORDS), np.nan)
    for row in scored:
        scores, truth, image = drawn(rng, signal)
        enough = images_of(truth, image) >= LEAST_IMAGES
        row[enough] = average_precisions(scores[:, enough], truth[:, enough], image)(ones)[0]
    expected = np.nanmean(scored, axis=0)
    covered, repeats = 0, 120
    for _ in range(repeats):
        scores, truth, image = drawn(rng, signal)
        enough = images_of(truth, image) >= LEAST_IMAGES
        [found], _ = with_intervals([mean_average_precision(scores, truth, image)], IMAGES, centred=True)
        assert found.low <= found.value <= found.high
        covered += found.low <= expected[enough].mean() <= found.high
    # Of 120 intervals of 95 % there are 107 to 119 in 99 of 100 cases.
    assert 0.89 <= covered / repeats <= 0.995


def test_words_on_few_images_are_not_scored_and_an_absent_one_keeps_its_value():
    truth = np.zeros((8, 3), dtype=bool)
    truth[[0, 1, 2], 0] = truth[[5, 6, 7], 1] = truth[[3, 4], 2] = True
    scores, image = np.arange(24.0).reshape(8, 3), list(range(8))
    score, precisions = mean_average_precision(scores, truth, image), average_precisions(scores, truth, image)
    ones = np.ones((1, 8))
    assert images_of(truth, image).tolist() == [3, 3, 2]
    assert score(ones) == pytest.approx(precisions(ones)[:, :2].mean())
    without_second = np.array([[2.0, 2, 2, 1, 1, 0, 0, 0]])
    first, second = precisions(ones)[0, 0], precisions(ones)[0, 1]
    changed = first + np.sqrt(3 / 2) * (precisions(without_second)[0, 0] - first)
    assert score(without_second) == pytest.approx((changed + second) / 2)
    rare = mean_average_precision(scores[:, 2:], truth[:, 2:], image)
    assert np.isnan(rare(ones)).all() and with_intervals([rare], 8, centred=True)[0] == [None]
