import pytest

from granvit.evaluate.metrics import best_constant_answer, box_scores, paired_iou
from granvit.texts import exact_match

# --- boxes -----------------------------------------------------------------------------------------------------------


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


def test_paired_iou_pairs_beyond_one_block():
    true = [(float(i), 0.0, i + 1.0, 1.0) for i in range(300)]
    predicted = [(i + (0.5 if i % 2 else 0.0), 0.0, i + 1.0, 1.0) for i in range(300)]
    assert paired_iou(predicted, true).tolist() == [0.5 if i % 2 else 1.0 for i in range(300)]


# --- what cannot be scored -------------------------------------------------------------------------------------------


def test_nothing_to_score_is_an_error():
    with pytest.raises(ValueError, match="no references"):
        box_scores([], [])


def test_a_count_mismatch_is_an_error():
    with pytest.raises(ValueError, match="2 predictions for 1 references"):
        box_scores([None, None], [(0.0, 0.0, 1.0, 1.0)])


# --- baseline --------------------------------------------------------------------------------------------------------


def test_best_constant_text():
    train = ["a cat"] * 5 + ["a dog"] * 3 + ["a red car"]
    assert best_constant_answer(train, ["a dog", "A dog", "a cat"], exact_match) == ("a dog", pytest.approx(2 / 3))


def test_best_constant_text_takes_the_frequent_ones_only():
    train = [f"common {i}" for i in range(50) for _ in range(2)] + ["rare"]
    assert best_constant_answer(train, ["rare"], exact_match)[1] == 0


def accuracy(predictions, references):
    return box_scores(predictions, references)["acc50"]


def test_best_constant_box_finds_the_usual_place():
    usual = [(0.11, 0.12, 0.37, 0.41)] * 6
    elsewhere = [(0.5, 0.5, 1.0, 1.0), (0.6, 0.0, 1.0, 0.3)]
    box, score = best_constant_answer(usual + elsewhere, usual + elsewhere, accuracy)
    assert score == 0.75
    assert paired_iou([box], [usual[0]])[0] >= 0.5


def test_best_constant_box_tries_the_grid():
    # The references lie where no training box does; only the grid of quarters covers the place.
    train, references = [(0.0, 0.0, 0.1, 0.1)], [(0.75, 0.5, 1.0, 1.0)]
    found = best_constant_answer(train, references, lambda p, r: box_scores(p, r)["miou"])
    assert found == ((0.75, 0.5, 1.0, 1.0), 1.0)


def test_best_constant_answer_needs_answers():
    with pytest.raises(ValueError, match="no training answers"):
        best_constant_answer([], ["a"], exact_match)
