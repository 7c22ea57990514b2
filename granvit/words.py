"""Texts as words in any script, for scores that count words.

Latin letters are cut as the reference packages cut them, which pass over all others: there a right answer in Chinese,
Japanese, Russian or Arabic scores 0. Here other words are runs of letters, marks and digits, and in scripts that write
no blank between words every character is one. A text in Latin letters has the same words as in the packages (tested).
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

import regex
from rouge_score.tokenize import tokenize

# Scripts without blanks between words; the last is the long vowel of Japanese, which Unicode counts to no script.
_SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}ー"
_CHARACTER = rf"[{_SPACELESS}]\p{{M}}*"
# Not Common: signs such as the micro sign, which stand in English texts and are no words of the packages.
_OTHER = rf"(?![{_SPACELESS}])(?:[\p{{L}}--\p{{Latin}}--\p{{Common}}]|[\p{{Nd}}--[0-9]])"
_WORDS = regex.compile(rf"{_CHARACTER}|[a-z0-9]+|{_OTHER}(?:{_OTHER}|\p{{M}})*", regex.VERSION1)
_OTHER_SCRIPTS = regex.compile(rf"{_CHARACTER}|{_OTHER}", regex.VERSION1)
_SPACELESS_CHARACTER = regex.compile(_CHARACTER, regex.VERSION1)
# Full-width letters, digits and signs -> plain ones.
FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}


@lru_cache(maxsize=1 << 16)
def words(text: str) -> tuple[str, ...]:
    """The lower-case words of a text without punctuation: those of `rouge_score`, and those of other scripts."""
    if text.isascii():
        return tuple(tokenize(text, stemmer=None))
    return tuple(_WORDS.findall(composed(text).translate(FULL_WIDTH).lower()))


def in_other_scripts(text: str) -> bool:
    """Whether a text has a word that the reference packages pass over."""
    return not text.isascii() and _OTHER_SCRIPTS.search(composed(text)) is not None


def spaced(text: str) -> str:
    """The text with blanks around every character of a script that writes none between words."""
    return text if text.isascii() else _SPACELESS_CHARACTER.sub(r" \g<0> ", composed(text))


def composed(text: str) -> str:
    """The text in one of the ways in which Unicode writes the same: a letter and its mark as one character (NFC)."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)
