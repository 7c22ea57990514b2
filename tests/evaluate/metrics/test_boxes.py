import pytest

from granvit.evaluate.metrics import box_scores, paired_iou


def test_box_scores_by_hand():
    true = [(0.0, 0.0, 10.0, 10.0)] * 4
    # IoU 1, 0.5 (counts as a hit), 1/3, and an answer that could not be read.
    predicted = [(0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 5.0), (5.0, 0.0, 15.0, 10.0), None]
    scores = box_scores(predicted, true, thresholds=(0.3, 0.5, 0.75))
    assert scores == pytest.approx(
        {"acc30": 0.75, "acc50": 0.5, "acc75": 0.25, "miou": (1 + 0.5 + 1 / 3) / 4, "parse_rate": 0.75}
    )
    assert box_scores(predicted, true).keys() == {"acc50", "miou", "parse_rate"}


def test_unparsed_counts_as_a_miss_not_as_absent():
    true = [(0.0, 0.0, 1.0, 1.0)] * 4
    assert box_scores([true[0], None, None, None], true) == {"acc50": 0.25, "miou": 0.25, "parse_rate": 0.25}
    assert box_scores([None] * 4, true) == {"acc50": 0, "miou": 0, "parse_rate": 0}


def test_paired_iou_pairs_each_with_its_own():
    true = [(float(i), 0.0, i + 1.0, 1.0) for i in range(300)]
    predicted = [(i + (0.5 if i % 2 else 0.0), 0.0, i + 1.0, 1.0) for i in range(300)]
    assert paired_iou(predicted, true).tolist() == [0.5 if i % 2 else 1.0 for i in range(300)]


def test_nothing_to_score_is_an_error():
    with pytest.raises(ValueError, match="no references"):
        box_scores([], [])


def test_a_count_mismatch_is_an_error():
    with pytest.raises(ValueError, match="2 predictions for 1 references"):
        box_scores([None, None], [(0.0, 0.0, 1.0, 1.0)])
