"""Which of the offered answers a text chooses. One fixed reading: what it doesn't understand is no answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase as LETTERS

from granvit.texts import FULL_WIDTH, composed, one_spaced

# "B", "(B)", "B.", "B) a cat", "B: a cat", but not "A cat"; full-width letters and signs are plain ones.
_LETTER = re.compile(r"\(?([A-Z])(?:\)|[.:,](?=\s|$)|[。、]|$)")
# A full-width sign has its blank in itself.
_PLAIN = {code: chr(plain) + (" " if chr(plain) in ".:," else "") for code, plain in FULL_WIDTH.items()}


def choice_of(answer: str, options: Sequence[str]) -> str | None:
    """The letter of the option that an answer chooses, or None.

    The answer begins with an option's letter, by itself or with a bracket, full stop, colon or comma behind it; or it
    is one option's text, but for letter case, white space and a full stop.
    """
    text = one_spaced(answer)
    letter = _LETTER.match(one_spaced(text.translate(_PLAIN)))
    if letter:
        return letter.group(1) if letter.group(1) in LETTERS[: len(options)] else None
    plain = [_without_stop(option) for option in options]
    said = _without_stop(text)
    return LETTERS[plain.index(said)] if plain.count(said) == 1 else None


def _without_stop(text: str) -> str:
    return composed(one_spaced(text)).casefold().removesuffix(".").removesuffix("。")


def yes_or_no(answer: str) -> str | None:
    """ "yes" or "no" where that is the answer's first word, else None."""
    word = re.match(r"\s*(yes|no)\b", answer, re.IGNORECASE)
    return word.group(1).lower() if word else None
