"""How far a text is from the one that was expected: pure functions over lists of texts.

A reference is one string, or a list of strings that are equally right; of those, the one that suits the prediction
best counts. The functions over lists raise `ValueError` where nothing is to be scored, or where there are not as many
predictions as references.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rapidfuzz.distance import Levenshtein
from rouge_score.rouge_scorer import RougeScorer

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
    """ROUGE-L F1 in [0, 1] of each prediction, by the `rouge-score` package without stemming.

    Its tokenizer knows Latin letters and digits only: texts of other scripts score 0, use `character_error_rate`.
    """
    check_pairs(predictions, references)
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    pairs = zip(predictions, references, strict=True)
    return [float(scorer.score_multi(_alternatives(r), p)["rougeL"].fmeasure) for p, r in pairs]


def rouge_l(predictions: Sequence[str], references: Sequence[Reference]) -> float:
    """The mean of `rouge_l_each`."""
    return float(np.mean(rouge_l_each(predictions, references)))


def exact_match(predictions: Sequence[str], references: Sequence[Reference]) -> float:
    """The share of predictions in [0, 1] that equal their reference, but for letter case and white space."""
    check_pairs(predictions, references)

    def same(text: str) -> str:
        return one_spaced(text).casefold()

    hits = [same(p) in map(same, _alternatives(r)) for p, r in zip(predictions, references, strict=True)]
    return sum(hits) / len(hits)


def edit_cost(prediction: str, reference: Reference, *, clipped: bool = True) -> tuple[int, int]:
    """(wrong characters, characters of the reference): the edit distance, and what to divide it by.

    Letter case counts, the amount of white space doesn't. With `clipped` an answer costs at most the length of its
    reference.
    """
    texts = [one_spaced(t) for t in _alternatives(reference)]
    costs = [(Levenshtein.distance(one_spaced(prediction), t), len(t)) for t in texts]
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
    check_pairs(predictions, references)
    costs = [edit_cost(p, r, clipped=clipped) for p, r in zip(predictions, references, strict=True)]
    errors, characters = (sum(column) for column in zip(*costs, strict=True))
    if characters == 0:
        raise ValueError("nothing to score: all references are empty")
    return errors / characters


def one_spaced(text: str) -> str:
    """The text with single blanks for all white space, and none around it."""
    return " ".join(text.split())


def _alternatives(reference: Reference) -> list[str]:
    texts = [reference] if isinstance(reference, str) else list(reference)
    if not texts:
        raise ValueError("a reference has no text at all")
    return texts
