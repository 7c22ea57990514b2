"""Scores of short answers about pictures and documents, each as its benchmark computes it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from granvit.evaluate.metrics.vqa_words import plain_answer
from granvit.texts import FULL_WIDTH, check_pairs, one_spaced

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
