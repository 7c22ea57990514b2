"""Scores of answers, pure functions of lists; those that compare two texts are in `granvit.texts`.

All raise `ValueError` where nothing is to be scored, or where there are not as many predictions as references. An
answer that cannot be read is a miss, never left out.
"""

from granvit.evaluate.metrics.answers import anls_each, choice_of, contains_each, relaxed_each, vqa_each, yes_or_no
from granvit.evaluate.metrics.boxes import best_constant_box, box_scores, paired_iou
from granvit.evaluate.metrics.captions import bleu, bleu_counts, caption_words, cider_each, cider_is_defined

__all__ = [
    "anls_each",
    "best_constant_box",
    "bleu",
    "bleu_counts",
    "box_scores",
    "caption_words",
    "choice_of",
    "cider_each",
    "cider_is_defined",
    "contains_each",
    "paired_iou",
    "relaxed_each",
    "vqa_each",
    "yes_or_no",
]
