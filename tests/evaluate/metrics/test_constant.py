import pytest

from granvit.evaluate.metrics import best_constant_answer, box_scores, paired_iou
from granvit.texts import exact_match


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
