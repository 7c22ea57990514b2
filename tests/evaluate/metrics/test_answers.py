import pytest

from granvit.evaluate.metrics import anls_each, choice_of, contains_each, relaxed_each, vqa_each, yes_or_no
from granvit.evaluate.metrics.answers import plain_answer

# --- ANLS ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "right", "expected"),
    [
        ("hello wrld", ["hello world"], 10 / 11),  # the example of the package `anls`
        ("Hello  World", ["hello world"], 1),  # but for case and white space
        ("hello", ["goodbye", "hallo"], 4 / 5),  # the closest reference
        ("abcd", ["abxy"], 0.5),  # the challenge's script keeps one half ...
        ("abcd", ["axyz"], 0),  # ... and nothing below
        ("", ["a"], 0),
        ("ab", ["ab    "], 1),
        ("a    bc", ["a b"], 1 - 1 / 7),  # one letter off, over the longer text as it is written
    ],
)
def test_anls(said, right, expected):
    assert anls_each([said], [right]) == pytest.approx([expected])


# --- ChartQA ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "right", "expected"),
    [
        ("105", "100", 1),
        ("95", "100", 1),
        ("105.1", "100", 0),
        ("12%", "0.12", 1),
        ("12", "12%", 0),
        ("0.1", "0", 0),
        ("0", "0", 1),
        ("0.0", "0", 0),  # zero has no 5 %: the text must be equal
        ("-96", "-100", 1),
        ("96", "-100", 0),
        ("Blue", "blue", 1),
        ("dark blue", "blue", 0),
        ("nan", "5", 0),
        ("7", "inf", 0),
        (" 5 ", "5", 1),
        ("", "5", 0),
    ],
)
def test_relaxed_accuracy(said, right, expected):
    assert relaxed_each([said], [[right]]) == [expected]


# --- VQA -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("agree", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqa_accuracy_leaves_each_person_out(agree, expected):
    """The values that ten people give, as the VQA challenge states them."""
    people = ["yes"] * agree + [f"other {i}" for i in range(10 - agree)]
    assert vqa_each(["Yes."], [people]) == pytest.approx([expected])


# Computed by the EvalAI server's processor.
@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The Cat's", "cat 's"),
        ("Two dogs, and 1,000 cats.", "2 dogs and 1000 cats"),
        ("dont know", "don't know"),
        ("a red-brown dog", "red brown dog"),
        ("3.5 m.", "3.5 m"),
        ("Yes, it is!", "yes it is"),
        ("none", "0"),
        ("e-mail@home/work", "e mail home work"),
        ("an apple (green)", "apple green"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("U.S.A.", "usa"),
        ("what's\nup", "what 's up"),
        ("10%", "10%"),
        ("somebody'd", "somebodyd"),
        ("'ows'at", "'ow's'at"),
        ("twas", "'twas"),
    ],
)
def test_answers_are_normalised_as_on_the_server(text, plain):
    assert plain_answer(text) == plain


def test_both_sides_are_normalised():
    assert vqa_each(["2 cats"], [["Two cats."] * 10]) == [1]


# --- OCRBench --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "right", "dataset", "expected"),
    [
        ("The text is STOP here", ["stop"], "IIIT5K", 1),
        ("st op", ["stop"], "IIIT5K", 0),
        ("a\nb", ["a b"], "docVQA", 1),
        ("ＡＢＣ１", ["abc1"], "IIIT5K", 1),
        (r"\frac{ a }{ b }", [r"\frac{a}{b}"], "HME100k", 1),  # blanks don't count in formulas ...
        ("A+b", ["a + b"], "HME100k", 0),  # ... but letter case does
        ("no", ["yes", "no"], "x", 1),
        ("", ["a"], "x", 0),
    ],
)
def test_ocrbench_looks_for_the_answer_within(said, right, dataset, expected):
    assert contains_each([said], [right], [dataset]) == [expected]


@pytest.mark.parametrize("metric", [anls_each, relaxed_each, vqa_each])
def test_nothing_to_score_is_an_error(metric):
    with pytest.raises(ValueError, match="no references"):
        metric([], [])
    with pytest.raises(ValueError, match="2 predictions for 1 references"):
        metric(["a", "b"], [["a"]])


# --- choices ---------------------------------------------------------------------------------------------------------

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
    assert choice_of("o27", [f"o{n}" for n in range(30)]) is None  # there is no letter for it
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
