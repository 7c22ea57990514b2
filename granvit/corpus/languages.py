"""Which script and, as far as a few words tell, which language a text is in; without a model.

The script comes from the characters' names in the Unicode database. The language comes from the script where that
decides, else from function words: a hint for counting a corpus, not a verdict on one text. Most labels and short
lines hold fewer than two function words and stay "und", undetermined.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache

NO_LETTERS = "none"
UNDETERMINED = "und"

_BY_SCRIPT = {
    "hangul": "ko",
    "hiragana": "ja",
    "katakana": "ja",
    "greek": "el",
    "hebrew": "he",
    "thai": "th",
    "georgian": "ka",
    "armenian": "hy",
    "tamil": "ta",
    "telugu": "te",
    "bengali": "bn",
    "cjk": "zh",
}
# Frequent words that few of the other languages share.
_FUNCTION_WORDS = {
    "en": "the of and with is are was for from that this has have on at by an in to his her their wearing",
    "de": "der die das und mit ist ein eine einen einem einer auf von dem den nicht zu für im sich auch bei",
    "fr": "le la les et avec est une des du dans sur pour pas qui que au aux ce cette son ses",
    "es": "el los las con es una del por para que en su sus está al como lo un",
    "it": "il lo gli con una di del della nel per che su dei alla sono un",
    "pt": "os as com uma um do da dos das no na em para por que não ao",
    "nl": "de het een en met van is op voor niet dat aan zijn ook naar bij",
    "pl": "na do nie jest to się że od po dla przez",
    "tr": "ve bir bu ile için da de çok ne olarak",
    "id": "dan yang di dengan untuk dari pada ini itu sebuah",
}
_MIN_VOTES = 2
_LANGUAGES_OF: dict[str, list[str]] = {}
for _language, _words in _FUNCTION_WORDS.items():
    for _word in _words.split():
        _LANGUAGES_OF.setdefault(_word, []).append(_language)

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def words(text: str) -> list[str]:
    """The words of a text, lower case: runs of letters, numbers and punctuation left out."""
    return _WORD.findall(text.lower())


@lru_cache(maxsize=65_536)
def _script_of_letter(letter: str) -> str:
    """The first word of the character's name, e.g. "latin" of LATIN SMALL LETTER A."""
    # Normalised, for the OHM SIGN is a Greek letter; and KATAKANA-HIRAGANA PROLONGED SOUND MARK is mostly the former.
    return re.split("[ -]", unicodedata.name(unicodedata.normalize("NFKC", letter)[0], "unknown"))[0].lower()


def script(text: str) -> str:
    """The script of most of its letters, as Unicode names it: "latin", "cyrillic", "cjk"; "none" without letters.

    Japanese counts as "hiragana" or "katakana" as soon as it has kana, since its kanji alone would be "cjk".
    """
    if text.isascii():
        return "latin" if any(map(str.isalpha, text)) else NO_LETTERS
    found = Counter(_script_of_letter(letter) for letter in text if letter.isalpha())
    if not found:
        return NO_LETTERS
    kana = found["hiragana"] + found["katakana"]
    if kana and kana + found["cjk"] > found.total() / 2:
        return "hiragana" if found["hiragana"] >= found["katakana"] else "katakana"
    return max(found, key=lambda name: (found[name], name))


def language(text: str, script_name: str | None = None, found: list[str] | None = None) -> str:
    """An ISO 639-1 code where the script or the function words tell, else "und".

    `script_name` and `found` save a second look where `script(text)` and `words(text)` are known.
    """
    name = script(text) if script_name is None else script_name
    if name in _BY_SCRIPT:
        return _BY_SCRIPT[name]
    if name != "latin":
        return UNDETERMINED
    told = [_LANGUAGES_OF[word] for word in (words(text) if found is None else found) if word in _LANGUAGES_OF]
    if len(told) < _MIN_VOTES:
        return UNDETERMINED
    (best, votes), *others = Counter(code for codes in told for code in codes).most_common(2)
    return UNDETERMINED if votes < _MIN_VOTES or others and others[0][1] == votes else best
