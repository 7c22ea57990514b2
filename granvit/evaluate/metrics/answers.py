"""Scores of short answers about pictures and documents, each as its benchmark computes it; which option a text chooses.

Of a choice there is one fixed reading: what it does not understand is no answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from string import ascii_uppercase as LETTERS

from rapidfuzz.distance import Levenshtein

from granvit.texts import FULL_WIDTH, check_pairs, composed, one_spaced

_NUMBERS = {word: str(n) for n, word in enumerate("zero one two three four five six seven eight nine ten".split())}
_NUMBERS["none"] = "0"
_ARTICLES = {"a", "an", "the"}
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_FULL_STOP = re.compile(r"\.(?!\d)")
_THOUSANDS = re.compile(r"(?<=\d),+(?=\d)")

# Written without the apostrophe, or without one of two, these become what they stand for.
_SHORT = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't
    it'd it'll ma'am might've mightn't must've mustn't needn't not've o'clock oughtn't shan't should've shouldn't
    somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's
    they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's
    where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
""".split()
_TWICE_SHORT = """
    couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
    there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've
""".split()


def _without_one(word: str) -> list[str]:
    return [word[: m.start()] + word[m.end() :] for m in re.finditer("'", word)]


_CONTRACTIONS = (
    {word.replace("'", ""): word for word in _SHORT}
    | {shorter: word for word in _TWICE_SHORT for shorter in _without_one(word)}
    | {shorter: "'ow's'at" for shorter in _without_one("'ow's'at")}
    | {"somebody'd": "somebodyd"}  # so it is on the server
)


def plain_answer(text: str) -> str:
    """An answer in lower case, without punctuation and articles, numbers up to ten as digits, apostrophes restored."""
    text = re.sub("[,?]", "", text.lower()).replace("'s", " 's").strip()
    text = re.sub(r"[\n\t]", " ", text).strip()
    joined = _THOUSANDS.search(text)
    plain = text
    for mark in _MARKS:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if beside_blank or joined else " ")
    plain = _FULL_STOP.sub("", plain)
    words = [_NUMBERS.get(word, word) for word in plain.split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


# --- DocVQA, InfoVQA -------------------------------------------------------------------------------------------------


def anls_each(predictions: Sequence[str], references: Sequence[Sequence[str]], threshold: float = 0.5) -> list[float]:
    """Average normalised Levenshtein similarity of each answer, in [0, 1], with the closest of its references.

    A similarity below `threshold` counts 0; letter case and the amount of white space don't count. As in the DocVQA
    challenge's own script the distance is divided by the longer of the two texts as written.
    """
    check_pairs(predictions, references)
    return [max(_anls(p, r, threshold) for r in texts) for p, texts in zip(predictions, references, strict=True)]


def _anls(prediction: str, reference: str, threshold: float) -> float:
    length = max(len(prediction), len(reference))
    distance = Levenshtein.distance(one_spaced(prediction.lower()), one_spaced(reference.lower()))
    similarity = 1 - distance / length if length else 1.0
    return similarity if similarity >= threshold else 0.0


# --- ChartQA ---------------------------------------------------------------------------------------------------------


def relaxed_each(
    predictions: Sequence[str], references: Sequence[Sequence[str]], tolerance: float = 0.05
) -> list[float]:
    """ChartQA's relaxed accuracy: 1 where a number is within 5 % of the right one, or a text equals it; else 0.

    "12%" is the number 0.12. Zero has no 5 %: there the text must be equal, as must all that is no number. Letter case
    does not count.
    """
    check_pairs(predictions, references)
    return [
        float(any(_relaxed(p.strip(), r.strip(), tolerance) for r in texts))
        for p, texts in zip(predictions, references, strict=True)
    ]


def _relaxed(prediction: str, reference: str, tolerance: float) -> bool:
    said, right = _number(prediction), _number(reference)
    if said is not None and right:
        return abs(said - right) <= tolerance * abs(right)
    return prediction.lower() == reference.lower()


def _number(text: str) -> float | None:
    try:
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


# --- VQA, TextVQA ----------------------------------------------------------------------------------------------------


def vqa_each(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """VQA accuracy of each answer, in [0, 1], from the answers of several people (usually ten).

    min(people who agree / 3, 1), averaged over leaving each of the people out, after the normalisation of the EvalAI
    server (`plain_answer`).
    """
    check_pairs(predictions, references)
    return [
        _vqa(plain_answer(p), [plain_answer(r) for r in texts])
        for p, texts in zip(predictions, references, strict=True)
    ]


def _vqa(said: str, people: list[str]) -> float:
    agree = people.count(said)
    scores = [min((agree - (person == said)) / 3, 1) for person in people]
    return sum(scores) / len(scores)


# --- OCRBench --------------------------------------------------------------------------------------------------------


def contains_each(
    predictions: Sequence[str], references: Sequence[Sequence[str]], datasets: Sequence[str]
) -> list[float]:
    """OCRBench's score: 1 where the answer contains one of the right texts, else 0; an empty one is in no answer.

    Letter case does not count, a line break is a blank, and full-width letters are plain ones. For the data set
    "HME100k" (formulas) case does count, and blanks don't.
    """
    check_pairs(predictions, references)
    return [
        float(any(_as_compared(r, name) in _as_compared(p, name) for r in texts if r.strip()))
        for p, texts, name in zip(predictions, references, datasets, strict=True)
    ]


def _as_compared(text: str, dataset: str) -> str:
    text = re.sub("\n", " ", text.strip())
    return text.replace(" ", "") if dataset == "HME100k" else text.translate(FULL_WIDTH).lower().strip()


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
    plain = [_without_stop(option) for option in options[: len(LETTERS)]]
    said = _without_stop(text)
    return LETTERS[plain.index(said)] if plain.count(said) == 1 else None


def _without_stop(text: str) -> str:
    return composed(one_spaced(text)).casefold().removesuffix(".").removesuffix("。")


def yes_or_no(answer: str) -> str | None:
    """ "yes" or "no" where that is the answer's first word, else None."""
    word = re.match(r"\s*(yes|no)\b", answer, re.IGNORECASE)
    return word.group(1).lower() if word else None
