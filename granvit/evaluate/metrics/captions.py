"""Scores of captions by n-grams: BLEU-4 and CIDEr-D, as the COCO caption evaluation computes them.

That package cuts texts into words with Stanford's tokenizer, which needs Java; here it is NLTK's, which follows the
same Penn Treebank rules. On equal words the scores are those of the package (tested). Captions in scripts that it does
not know are cut as `granvit.texts` says.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import regex
from nltk.tokenize.treebank import TreebankWordTokenizer  # type: ignore[import-untyped]
from numpy.typing import ArrayLike, NDArray

from granvit.texts import check_pairs, composed, in_other_scripts, spaced

ORDER = 4
_SIGMA = 6.0  # of CIDEr-D's penalty for another length, in words

_TOKENIZER = TreebankWordTokenizer()
# What the package drops, as NLTK writes it.
_DROPPED = frozenset({"''", "'", "``", "`", "(", ")", "{", "}", ".", "?", "!", ",", ":", "-", "--", "...", ";"})
# NLTK splits off the last full stop only; a caption may have several sentences.
_SIGN = regex.compile(r"(?![\x00-\x7f])\p{P}")  # other scripts' punctuation, which those rules don't know
_FULL_STOP = re.compile(r"\.(?=\s)")

Gram = tuple[str, ...]


@lru_cache(maxsize=1 << 16)
def caption_words(text: str) -> tuple[str, ...]:
    """The lower-case words of a caption by Penn Treebank rules ("don't" is "do", "n't"), without punctuation."""
    if in_other_scripts(text):
        text = _SIGN.sub(" ", spaced(composed(text)))
    words = _TOKENIZER.tokenize(_FULL_STOP.sub(" . ", text.lower()))
    return tuple(word for word in words if word not in _DROPPED)


def _grams(words: Sequence[str]) -> Counter[Gram]:
    return Counter(tuple(words[i : i + n]) for n in range(1, ORDER + 1) for i in range(len(words) - n + 1))


# --- BLEU ------------------------------------------------------------------------------------------------------------


def bleu_counts(prediction: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """What one caption contributes to BLEU: n-grams found in a reference (4), n-grams said (4), and two lengths.

    Args:
        prediction: words. references: one or more lists of words, all equally right.

    Returns:
        (10,): matches and attempts for n of 1 to 4, the caption's length, that of the reference closest to it.
    """
    most: Counter[Gram] = Counter()
    for reference in references:
        most |= _grams(reference)
    matches, attempts = np.zeros(ORDER), np.zeros(ORDER)
    for gram, count in _grams(prediction).items():
        matches[len(gram) - 1] += min(count, most[gram])
        attempts[len(gram) - 1] += count
    length = len(prediction)
    closest = min((abs(len(reference) - length), len(reference)) for reference in references)[1]
    return np.array([*matches, *attempts, length, closest])


def bleu(counts: ArrayLike, order: int = ORDER) -> NDArray[np.float64]:
    """BLEU-`order` in [0, 1] of summed `bleu_counts`, (..., 10) -> (...): of a corpus, not a mean over captions."""
    table = np.asarray(counts, dtype=float)
    matches, attempts = table[..., :order], table[..., ORDER : ORDER + order]
    # The package's own small numbers: nothing matched is not an error.
    precision = ((matches + 1e-15) / (attempts + 1e-9)).prod(-1) ** (1 / order)
    ratio = (table[..., -2] + 1e-15) / (table[..., -1] + 1e-9)
    return precision * np.exp(np.minimum(1 - 1 / ratio, 0))


# --- CIDEr -----------------------------------------------------------------------------------------------------------


def cider_each(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each caption, in [0, 10]: the "CIDEr" of the COCO caption evaluation; a mean of 0.6 reads as 60.

    An n-gram counts the less the more pictures have it in their references; how many do is counted over `references`,
    so that a score belongs to a test set. It is not defined where no n-gram is rarer than another, as with a single
    picture: everything scores 0 there, right answers too (see `cider_is_defined`).
    """
    check_pairs(predictions, references)
    said = [_grams(caption_words(text)) for text in predictions]
    right = [[_grams(caption_words(text)) for text in texts] for texts in references]
    frequency = Counter(gram for texts in right for gram in set().union(*texts))
    unseen = math.log(len(right))
    rarity = {gram: unseen - math.log(count) for gram, count in frequency.items()}

    def vector(grams: Counter[Gram]) -> list[dict[Gram, float]]:
        """tf-idf weights by the length of the n-gram."""
        by_order: list[dict[Gram, float]] = [{} for _ in range(ORDER)]
        for gram, count in grams.items():
            by_order[len(gram) - 1][gram] = count * rarity.get(gram, unseen)
        return by_order

    return [
        10 * float(np.mean([_similarity(vector(mine), vector(theirs), mine, theirs) for theirs in texts]))
        for mine, texts in zip(said, right, strict=True)
    ]


def cider_is_defined(references: Sequence[Sequence[str]]) -> bool:
    """Whether any n-gram tells pictures apart."""
    grams = [set().union(*(_grams(caption_words(text)) for text in texts)) for texts in references]
    return any(mine != grams[0] for mine in grams)


def _similarity(
    mine: list[dict[Gram, float]], theirs: list[dict[Gram, float]], said: Counter[Gram], right: Counter[Gram]
) -> float:
    # The package counts a text's length in pairs of words.
    difference = sum(c for g, c in said.items() if len(g) == 2) - sum(c for g, c in right.items() if len(g) == 2)
    penalty = np.exp(-(difference**2) / (2 * _SIGMA**2))
    cosines = []
    for a, b in zip(mine, theirs, strict=True):
        overlap = sum(min(weight, b[gram]) * b[gram] for gram, weight in a.items() if gram in b)
        norms = np.sqrt(sum(w * w for w in a.values())) * np.sqrt(sum(w * w for w in b.values()))
        cosines.append(overlap / norms if norms else 0.0)
    return float(penalty * np.mean(cosines))
