"""Calibration against cases that are worked out by hand."""

import numpy as np
import pytest

from granvit.evaluate.metrics.calibration import auroc, expected_calibration_error, reliability, thresholds

# Four answers in three of ten bins: (0.0, 0.1], (0.6, 0.7] twice, (0.9, 1.0].
SURE = [0.05, 0.62, 0.68, 1.0]
RIGHT = [False, True, False, True]


def test_reliability_by_hand():
    filled = [b for b in reliability(SURE, RIGHT) if b.count]
    assert [(round(b.low, 9), round(b.high, 9), b.count) for b in filled] == [(0, 0.1, 1), (0.6, 0.7, 2), (0.9, 1, 1)]
    assert [b.confidence for b in filled] == pytest.approx([0.05, 0.65, 1.0])
    assert [b.right for b in filled] == [0, 0.5, 1]


def test_expected_calibration_error_by_hand():
    # (1 x |0 - 0.05| + 2 x |0.5 - 0.65| + 1 x |1 - 1|) / 4
    assert expected_calibration_error(reliability(SURE, RIGHT)) == pytest.approx(0.35 / 4)
    assert expected_calibration_error(reliability([0.8] * 5, [True] * 4 + [False])) == pytest.approx(0)
    assert expected_calibration_error(reliability([1.0, 1.0], [False, False])) == 1
    # Two bins alone: 0.05 in the lower, the others in the upper with mean 2.3 / 3 and two right of three.
    assert expected_calibration_error(reliability(SURE, RIGHT, 2)) == pytest.approx((0.05 + abs(2 - 2.3)) / 4)


def test_a_confidence_on_an_edge_belongs_below_it():
    counts = [b.count for b in reliability([0.0, 0.1, 0.1000001, 1.0], [True] * 4)]
    assert counts == [2, 1, 0, 0, 0, 0, 0, 0, 0, 1]


def test_auroc_by_hand():
    # Right ones 0.62 and 1.0 against wrong ones 0.05 and 0.68: three of four pairs are in order.
    assert auroc(SURE, RIGHT) == 0.75
    assert auroc([0.5, 0.5, 0.9], [True, False, True]) == 0.75  # a tie counts half
    assert auroc([0.1, 0.2], [True, True]) is None and auroc([0.1, 0.2], [False, False]) is None


@pytest.mark.parametrize("seed", range(8))
def test_auroc_is_the_share_of_pairs_in_order(seed):
    rng = np.random.default_rng(seed)
    cases = [(rng.integers(1, 6) / 10, rng.random() < 0.6) for _ in range(3 * seed + 1)]
    right, wrong = [c for c, r in cases if r], [c for c, r in cases if not r]
    found = auroc([c for c, _ in cases], [r for _, r in cases])
    if not right or not wrong:
        assert found is None
    else:
        assert found == pytest.approx(np.mean([[(r > w) + (r == w) / 2 for w in wrong] for r in right]))


def test_thresholds_by_hand():
    made = thresholds(SURE, RIGHT, [True, True, True, True], [0, 0.62, 0.7, 1.0])
    assert [(t.kept, t.precision, t.recall) for t in made] == [
        (4, 0.5, 0.5),
        (3, 2 / 3, 0.5),
        (1, 1, 0.25),
        (1, 1, 0.25),
    ]


def test_what_is_no_answer_is_never_kept_and_none_left_has_no_precision():
    made = thresholds([0.9, 0.8], [False, True], [False, True], [0, 0.85])
    assert [(t.kept, t.precision, t.recall) for t in made] == [(1, 1, 0.5), (0, None, 0)]


@pytest.mark.parametrize("function", [reliability, auroc])
def test_nothing_to_measure_is_refused(function):
    for confidences, right in ([], []), ([0.5], [True, False]):
        with pytest.raises(ValueError, match="as many confidences as answers"):
            function(confidences, right)
