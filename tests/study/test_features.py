import numpy as np
import pytest
import torch

from granvit.evaluate.probe_tasks import Question, Questions
from granvit.study.features import rank_and_spread, right


def orthogonal(count, width, seed=0):
    """Features whose centred layer norms have `count` equal singular values."""
    torch.manual_seed(seed)
    basis = torch.linalg.qr(torch.cat([torch.ones(width, 1), torch.randn(width, count)], 1).double()).Q[:, 1:].T
    return torch.cat([basis, -basis])


def test_equal_singular_values_give_as_many_directions():
    for count in (1, 4, 9):
        rank, spread = rank_and_spread(orthogonal(count, 32))
        assert rank == pytest.approx(count, rel=1e-6) and spread == pytest.approx(1.0)


def test_features_that_no_longer_differ_have_no_spread():
    alike = torch.randn(1, 32).expand(20, 32)
    assert rank_and_spread(alike) == pytest.approx((1.0, 0.0), abs=1e-9)


def test_a_common_part_lowers_the_spread_and_not_the_rank():
    features = orthogonal(6, 32)
    common = torch.zeros(32, dtype=torch.double)
    common[0], common[1] = 5.0, -5.0
    rank, spread = rank_and_spread(features + common)
    assert rank == pytest.approx(6, rel=0.02) and spread < 0.1


def questions(*targets):
    return Questions([Question(0, (0, 0, 1, 1), target) for target in targets])


def test_words_ranked_first_are_counted():
    targets = ["red", "star", "blue"]
    scores = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    # Two words: red and star are first. Blue alone: red is first. An unknown word does not count.
    found = right("attribute", scores, questions({"red", "star"}, {"blue"}, {"blue", "never"}), targets)
    assert np.array_equal(found, [[2, 2], [0, 1], [1, 1]])


def test_a_class_is_right_or_not():
    scores = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert np.array_equal(right("label", scores, questions("b", "a"), ["a", "b"]), [[1, 1], [0, 1]])


def test_letters_are_counted_less_the_errors():
    def steps(text):
        rows = torch.full((len(text), 3), -9.0)
        for n, letter in enumerate(text):
            rows[n, "_ab".index(letter)] = 0.0
        return rows

    scores = torch.stack([steps("ab__"), steps("a___"), steps("baba")])
    assert np.array_equal(right("read", scores, questions("ab", "ab", "a"), ["a", "b"]), [[2, 2], [1, 2], [0, 1]])
