import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenize import tokenize

from granvit.texts import (
    FULL_WIDTH,
    character_error_rate,
    edit_cost,
    exact_match,
    has_words,
    in_other_scripts,
    rouge_l,
    rouge_l_each,
    shared_words_each,
    without_repeats,
    word_edit_cost,
    word_error_rate,
)
from granvit.texts import words as words_of

METRICS = [rouge_l, exact_match, character_error_rate, word_error_rate]


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


words = st.lists(st.sampled_from(["a", "Red", "red", "car's", "2.5", "ring,", "é", "-"]), max_size=8).map(" ".join)


@given(words, st.lists(words, min_size=1, max_size=3))
def test_rouge_l_is_the_packages_own_for_any_text(prediction, references):
    own = RougeScorer(["rougeL"]).score_multi(references, prediction)["rougeL"].fmeasure
    assert rouge_l([prediction], [references]) == pytest.approx(own, abs=1e-12)


LANGUAGES = {
    "Chinese": ("红色的汽车", "红色的房子", 3 / 5),
    "Japanese": ("赤いカメラ。", "赤い車", 2 * 2 / (5 + 3)),
    "Thai": ("รถสีแดง", "รถสีขาว", None),
    "Russian": ("Красная машина", "красный дом", 0),
    "Greek": ("το κόκκινο σπίτι", "το ΣΠΊΤΙ", 2 * 2 / 5),
    "Arabic": ("سيارة حمراء", "سيارة زرقاء", 1 / 2),
    "Hebrew": ("בית אדום", "בית כחול", 1 / 2),
    "Korean": ("빨간 자동차", "빨간 집", 1 / 2),
    "Hindi": ("लाल गाड़ी", "लाल घर", 1 / 2),
    "digits": ("٣٤ ٥", "٣٤", 2 / 3),
    "full width": ("ＡＢＣ　１２", "abc 12", 1),
    "mixed": ("a 红 car", "红 car", 4 / 5),
}


@pytest.mark.parametrize("name", LANGUAGES)
def test_words_of_any_script_count(name):
    text, other, shared = LANGUAGES[name]
    assert rouge_l([text], [text]) == 1 and shared_words_each([text], [text]) == [1.0]
    reported = rouge_l([text], [other])
    assert reported == pytest.approx(shared) if shared is not None else 0 < reported < 1


def test_a_letter_and_its_mark_are_one_character_however_they_are_written():
    for text in ("Й красный", "がらす", "café", "한국어"):
        apart = unicodedata.normalize("NFD", text)
        assert apart != text and exact_match([apart], [text]) == 1
        assert character_error_rate([apart], [text]) == word_error_rate([apart], [text]) == 0
    assert rouge_l([unicodedata.normalize("NFD", "Й")], ["й"]) == 1


def test_words_of_scripts_without_blanks_are_characters():
    assert word_error_rate(["红色的车"], ["红色的书"]) == 1 / 4
    assert word_error_rate(["a car"], ["a cat"]) == 1 / 2


latin = st.text(st.characters(max_codepoint=0x24F) | st.sampled_from("“”’–—…€™µ²½× abc"), max_size=20)


@given(latin)
def test_words_in_latin_letters_are_the_packages(text):
    assert words_of(text) == tuple(tokenize(text, None))


def test_a_text_without_any_word_is_noticed():
    assert not any(has_words(text) for text in ("%", "", "é", ["?", ""]))
    assert all(has_words(text) for text in ("5", "书", ["?", "no"]))


def test_word_error_rate_by_hand():
    # One word wrong of three, one missing of two; clipped to the reference's length, or not.
    assert word_error_rate(["a  blue car", "the"], ["a red car", "the end"]) == pytest.approx(2 / 5)
    assert word_error_rate(["x y z"], ["a"]) == 1
    assert word_error_rate(["x y z"], ["a"], clipped=False) == 3
    assert word_error_rate(["one two"], [["three", "one too"]]) == 0.5


def test_shared_words_by_hand():
    assert shared_words_each(["a red car", "dog", ""], ["red car", ["cat", "The dog"], "x"]) == [2 / 3, 1 / 2, 0]


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


def test_edit_cost_by_hand():
    assert edit_cost("kitten", "sitting") == (3, 7)
    assert edit_cost("x" * 50, "ab") == (2, 2)
    assert edit_cost("x" * 50, "ab", clipped=False) == (50, 2)


def test_each_pair_has_its_own_rouge_l():
    assert rouge_l_each(["a car", "dog"], ["a red car", "cat"]) == pytest.approx([0.8, 0])


@pytest.mark.parametrize("metric", METRICS)
def test_nothing_to_score_is_an_error(metric):
    with pytest.raises(ValueError, match="no references"):
        metric([], [])


@pytest.mark.parametrize("metric", METRICS)
def test_a_count_mismatch_is_an_error(metric):
    with pytest.raises(ValueError, match="2 predictions for 1 references"):
        metric(["a", "b"], ["a"])


@pytest.mark.parametrize("metric", METRICS)
def test_a_reference_without_text_is_an_error(metric):
    with pytest.raises(ValueError, match="no text"):
        metric(["a"], [[]])


def test_empty_references_have_no_error_rate():
    with pytest.raises(ValueError, match="all references are empty"):
        character_error_rate(["a"], [" "])


def test_full_width_characters_are_the_plain_ones_of_unicode():
    folded = {code: unicodedata.normalize("NFKC", chr(code)) for code in (*range(0xFF00, 0xFFF0), 0x3000)}
    plain = {code: ord(text) for code, text in folded.items() if text.isascii() and text.isprintable()}
    assert plain == FULL_WIDTH


def test_words_of_other_scripts_are_noticed():
    assert in_other_scripts("красный") and in_other_scripts("日本") and in_other_scripts("a cat, 猫")
    assert not in_other_scripts("a cat") and not in_other_scripts("Größe 5 µm")


def test_word_edit_cost_by_hand():
    assert word_edit_cost("a b c d", "x") == (1, 1) and word_edit_cost("a b c d", "x", clipped=False) == (4, 1)
    assert word_edit_cost("one two four", ["one two three", "one"]) == (1, 3)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("dotted dotted dotted dotted", "dotted (4 times)"),
        ("a red  dotted\ndotted dotted star", "a red dotted (3 times) star"),
        ("left of right of left of right of left of right of", "left of right of (3 times)"),
        ("very very good", "very very good"),
        ("wordword word words", "wordword word words"),
        ("红红红红红红红红", "红 (8 times)"),
        ("ha" * 20, "ha (20 times)"),
        ("TOTAL 100000000", "TOTAL 100000000"),
        ("0" * 30, "0 (30 times)"),
        ("", ""),
    ],
)
def test_what_repeats_is_shown_once(said, shown):
    assert without_repeats(said) == shown


def test_long_answers_are_cut_and_soon():
    words_ = " ".join(map(str, range(100_000)))
    assert len(without_repeats(words_)) < 410 and without_repeats(words_).endswith(" …")
    assert without_repeats("x " * 3000) == "x (3000 times)"
