import pytest

from granvit.evaluate.metrics import choice_of, yes_or_no

OPTIONS = ["a cat", "A dog.", "two birds"]


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("B", "B"),
        (" (B) ", "B"),
        ("B.", "B"),
        ("B. A dog", "B"),
        ("B) a dog", "B"),
        ("B: it barks", "B"),
        ("a dog", "B"),
        ("Two  Birds.", "C"),
        ("A cat", "A"),  # a text, not the letter A
        ("A bird", None),
        ("D", None),  # there is no D
        ("b", None),
        ("The answer is B", None),
        ("", None),
        ("B or C", None),
    ],
)
def test_a_choice_is_read_in_one_way(said, letter):
    assert choice_of(said, OPTIONS) == letter


def test_equal_options_cannot_be_chosen_by_their_text():
    assert choice_of("yes", ["yes", "Yes", "no"]) is None
    assert choice_of("no", ["yes", "Yes", "no"]) == "C"


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ("Yes", "yes"),
        (" no, there is none", "no"),
        ("Yes.", "yes"),
        ("not at all", None),
        ("There is", None),
        ("", None),
    ],
)
def test_yes_or_no_is_the_first_word(said, word):
    assert yes_or_no(said) == word
