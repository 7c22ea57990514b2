"""Scripts are Unicode's, languages are recognised only where their words are there."""

import pytest

from granvit.corpus.stats import language, script, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("TOTAL 12.50", "latin"),
        ("12.50", "none"),
        ("", "none"),
        ("Привет, мир", "cyrillic"),
        ("你好 A", "cjk"),
        ("東京タワーへ行く", "katakana"),
        ("私の猫です", "hiragana"),
        ("안녕", "hangul"),
        ("مرحبا", "arabic"),
        ("20 \u2126", "greek"),  # the ohm sign
        ("naïve Straße", "latin"),
    ],
)
def test_script_of_most_letters(text, expected):
    assert script(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the man in the blue shirt", "en"),
        ("Der Hund und die Katze sind nicht auf dem Bild", "de"),
        ("le chat est sur la table avec une tasse", "fr"),
        ("el perro está con los niños", "es"),
        ("red mug", "und"),
        ("the", "und"),
        ("안녕", "ko"),
        ("私の猫です", "ja"),
        ("12.50", "und"),
    ],
)
def test_language_is_recognised_or_left_open(text, expected):
    assert language(text) == expected


def test_words_leave_numbers_and_punctuation_out():
    assert words("The dog's 2 bowls, x2 (Straße)!") == ["the", "dog's", "bowls", "x", "straße"]
