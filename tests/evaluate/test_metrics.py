import pytest
from rouge_score.rouge_scorer import RougeScorer

from granvit.evaluate.metrics import (
    best_constant_answer,
    box_scores,
    character_error_rate,
    exact_match,
    paired_iou,
    rouge_l,
)

TEXT_METRICS = [rouge_l, exact_match, character_error_rate]


# --- texts -----------------------------------------------------------------------------------------------------------


def test_rouge_l_by_hand():
    # Longest common subsequence "a car": precision 2/2, recall 2/3, F1 0.8; nothing in common; equal.
    assert rouge_l(["a car", "dog", "red car"], ["a red car", "cat", "Red car!"]) == pytest.approx((0.8 + 0 + 1) / 3)


def test_rouge_l_is_the_packages_own():
    scorer = RougeScorer(["rougeL"])
    predictions = ["the cats sat on the mats", "a large red square, top left", "", "total 12.50"]
    references = ["the cat lay on a mat", "large square in red at the top left", "nothing", "TOTAL 12.50 EUR"]
    own = [scorer.score(r, p)["rougeL"].fmeasure for p, r in zip(predictions, references, strict=True)]
    assert rouge_l(predictions, references) == pytest.approx(sum(own) / 4, abs=1e-12)
    assert 0 < rouge_l(predictions, references) < 1


def test_exact_match_ignores_case_and_white_space_only():
    predictions = ["A  red\ncar ", "a red car.", "straße", "a red car"]
    assert exact_match(predictions, ["a Red car", "a red car", "STRASSE", "a blue car"]) == 0.5


def test_character_error_rate_by_hand():
    # kitten -> sitting: 3 edits over 7 characters; abc -> abc: 0 over 3.
    assert character_error_rate(["kitten", "abc"], ["sitting", "abc"]) == pytest.approx(3 / 10)
    assert character_error_rate(["a  b"], ["a b"]) == 0
    assert character_error_rate(["A"], ["a"]) == 1
    assert character_error_rate([""], ["abcd"]) == 1


def test_character_error_rate_is_micro_averaged_and_clipped():
    predictions, references = ["x" * 50, "abcdefgh"], ["ab", "abcdefgh"]
    assert character_error_rate(predictions, references) == pytest.approx(2 / 10)
    assert character_error_rate(predictions, references, clipped=False) == pytest.approx(50 / 10)


def test_of_alternatives_the_best_counts():
    assert rouge_l(["a car"], [["dog", "a car", "a red car"]]) == 1
    assert exact_match(["exit"], [["way out", "EXIT"]]) == 1
    assert character_error_rate(["exit"], [["way out", "exits"]]) == pytest.approx(1 / 5)


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


@pytest.mark.parametrize("metric", [*TEXT_METRICS, box_scores])
def test_nothing_to_score_is_an_error(metric):
    with pytest.raises(ValueError, match="no references"):
        metric([], [])


@pytest.mark.parametrize("metric", [*TEXT_METRICS, box_scores])
def test_a_count_mismatch_is_an_error(metric):
    with pytest.raises(ValueError, match="2 predictions for 1 references"):
        metric(["a", "b"], ["a"])


@pytest.mark.parametrize("metric", TEXT_METRICS)
def test_a_reference_without_text_is_an_error(metric):
    with pytest.raises(ValueError, match="no text"):
        metric(["a"], [[]])


def test_empty_references_have_no_error_rate():
    with pytest.raises(ValueError, match="all references are empty"):
        character_error_rate(["a"], [" "])


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
