"""How far a text is from the one that was expected: pure functions over lists of texts.

A reference is one string, or a list of strings that are equally right; of those, the one that suits the prediction
best counts. The functions over lists raise `ValueError` where nothing is to be scored, or where there are not as many
predictions as references.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import regex
from rapidfuzz.distance import LCSseq, Levenshtein
from rouge_score.tokenize import tokenize

# Words in any script. Latin letters are cut as the reference packages cut them, which pass over all others: there a
# right answer in Chinese, Japanese, Russian or Arabic scores 0. Here other words are runs of letters, marks and
# digits, and in scripts that write no blank between words every character is one. A text in Latin letters has the same
# words as in the packages (tested).

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


Reference = str | Sequence[str]


def check_pairs(predictions: Sequence[Any], references: Sequence[Any]) -> None:
    """Whether there is one prediction for each reference, and at least one.

    Raises:
        ValueError: there isn't.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references")
    if not references:
        raise ValueError("nothing to score: no references")


def rouge_l_each(predictions: Sequence[str], references: Sequence[Reference]) -> list[float]:
    """ROUGE-L F1 in [0, 1] of each prediction, as the `rouge-score` package computes it without stemming (tested).

    Of texts in other than Latin letters, which that package passes over, the words are those of `granvit.texts`. The
    common words are counted by rapidfuzz: the best constant answer takes 50 times as many comparisons as there are
    questions. A reference without any word, such as "%", scores 0 whatever is said (see `has_words`).
    """
    check_pairs(predictions, references)
    return [
        max(_rouge_l(words(p), words(text)) for text in _alternatives(r))
        for p, r in zip(predictions, references, strict=True)
    ]


def _rouge_l(prediction: tuple[str, ...], reference: tuple[str, ...]) -> float:
    if not prediction or not reference:
        return 0.0
    # F1 of common / said and common / expected.
    return 2 * LCSseq.similarity(prediction, reference) / (len(prediction) + len(reference))


def has_words(reference: Reference) -> bool:
    """Whether a score that counts words is defined for a reference: one without any can't be met."""
    return any(words(text) for text in _alternatives(reference))


def rouge_l(predictions: Sequence[str], references: Sequence[Reference]) -> float:
    """The mean of `rouge_l_each`."""
    return float(np.mean(rouge_l_each(predictions, references)))


def exact_each(predictions: Sequence[str], references: Sequence[Reference]) -> list[float]:
    """1.0 for each prediction that equals its reference, but for letter case and white space, else 0.0.

    A letter and its mark are the same written as one character or as two.
    """
    check_pairs(predictions, references)
    pairs = zip(predictions, references, strict=True)
    return [float(_folded(p) in map(_folded, _alternatives(r))) for p, r in pairs]


@lru_cache(maxsize=1 << 16)
def _folded(text: str) -> str:
    return composed(one_spaced(text)).casefold()


def exact_match(predictions: Sequence[str], references: Sequence[Reference]) -> float:
    """The mean of `exact_each`."""
    return float(np.mean(exact_each(predictions, references)))


def shared_words_each(predictions: Sequence[str], references: Sequence[Reference]) -> list[float]:
    """Words in common over words in either, in [0, 1]: the "semantic IoU" by which region labels are compared."""
    check_pairs(predictions, references)

    def share(said: set[str], right: set[str]) -> float:
        return len(said & right) / len(said | right) if said | right else 0.0

    return [
        max(share(set(words(p)), set(words(text))) for text in _alternatives(r))
        for p, r in zip(predictions, references, strict=True)
    ]


def edit_cost(prediction: str, reference: Reference, *, clipped: bool = True) -> tuple[int, int]:
    """(wrong characters, characters of the reference): the edit distance, and what to divide it by.

    Letter case counts, the amount of white space doesn't; a letter and its mark are one character. With `clipped` an
    answer costs at most the length of its reference.
    """
    return _edit_cost(_compared(prediction), [_compared(t) for t in _alternatives(reference)], clipped)


def _compared(text: str) -> str:
    return composed(one_spaced(text))


def word_edit_cost(prediction: str, reference: Reference, *, clipped: bool = True) -> tuple[int, int]:
    """`edit_cost` in words: (wrong words, words of the reference).

    Words are what white space separates, and in scripts that write none between words every character.
    """
    return _edit_cost(_split(prediction), [_split(t) for t in _alternatives(reference)], clipped)


def _split(text: str) -> list[str]:
    return spaced(composed(text)).split()


def _edit_cost(prediction: str | list[str], references: Sequence[str | list[str]], clipped: bool) -> tuple[int, int]:
    costs = [(Levenshtein.distance(prediction, r), len(r)) for r in references]
    distance, length = min(costs, key=lambda cost: cost[0] / max(cost[1], 1))
    return min(distance, length) if clipped else distance, length


def character_error_rate(predictions: Sequence[str], references: Sequence[Reference], *, clipped: bool = True) -> float:
    """Edit distance over the characters of the references, summed over the corpus before dividing (micro average).

    Letter case counts, the amount of white space doesn't. With `clipped` (the default) one answer costs at most the
    length of its reference, so that the rate stays in [0, 1] and a single runaway answer can't outweigh the rest;
    without, it is the usual CER, which may exceed 1.

    Raises:
        ValueError: also where all references are empty.
    """
    return _rate(predictions, references, lambda p, r: edit_cost(p, r, clipped=clipped))


def word_error_rate(predictions: Sequence[str], references: Sequence[Reference], *, clipped: bool = True) -> float:
    """`character_error_rate` in words: edit distance in words over the words of the references.

    Raises:
        ValueError: also where all references are empty.
    """
    return _rate(predictions, references, lambda p, r: word_edit_cost(p, r, clipped=clipped))


def _rate(
    predictions: Sequence[str], references: Sequence[Reference], cost: Callable[[str, Reference], tuple[int, int]]
) -> float:
    check_pairs(predictions, references)
    errors, length = np.sum([cost(p, r) for p, r in zip(predictions, references, strict=True)], axis=0).tolist()
    if length == 0:
        raise ValueError("nothing to score: all references are empty")
    return errors / length


def one_spaced(text: str) -> str:
    """The text with single blanks for all white space, and none around it."""
    return " ".join(text.split())


def _alternatives(reference: Reference) -> list[str]:
    texts = [reference] if isinstance(reference, str) else list(reference)
    if not texts:
        raise ValueError("a reference has no text at all")
    return texts


# Words that repeat three times or more; characters eight times or more, where no blanks part words.
# Digits may repeat more often: 100000000 is a number.
_REPEATED_WORDS = regex.compile(r"(?<!\S)((?:\S+\s+){0,7}?\S+?)((?:\s+\1){2,})(?!\S)")
_REPEATED_CHARACTERS = regex.compile(r"([^\s\d]{1,8}?)(\1{7,})|(\d{1,4}?)(\3{11,})")


def without_repeats(text: str, longest: int = 400) -> str:
    """An answer as people are shown it: what repeats is said once, with how often; cut after `longest` characters.

    A small or untrained model ends few answers by itself: "dotted dotted dotted dotted" becomes "dotted (4 times)".
    """

    def once(match: regex.Match[str]) -> str:
        unit, rest = match.group(1, 2) if match.group(1) else match.group(3, 4)
        return f"{unit} ({1 + len(rest) // len(unit)} times)"

    def once_of_words(match: regex.Match[str]) -> str:
        unit, rest = one_spaced(match.group(1)), one_spaced(match.group(2))
        return f"{unit} ({1 + (len(rest) + 1) // (len(unit) + 1)} times)"

    shown = _REPEATED_CHARACTERS.sub(once, _REPEATED_WORDS.sub(once_of_words, one_spaced(text[: 50 * longest])))
    return shown if len(shown) <= longest else shown[:longest].rstrip() + " …"
