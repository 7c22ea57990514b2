"""Scores as people read them: the rows that the terminal, Markdown and the page share."""

from __future__ import annotations

from dataclasses import dataclass

from granvit.evaluate.evaluation import Evaluation
from granvit.evaluate.measures import SCORERS
from granvit.page import percent

# name, meaning
MEASURES = {
    "acc50": ("Acc@0.5", "boxes with an IoU of 0.5 or more with the true box"),
    "acc75": ("Acc@0.75", "boxes with an IoU of 0.75 or more"),
    "miou": ("Mean IoU", "overlap with the true box, on average"),
    "parse_rate": ("Parse rate", "answers that could be read at all"),
    "rouge_l": ("ROUGE-L", "words shared with the true text, F1; single characters where no blanks part words"),
    "exact": ("Exact", "answers equal to a true text"),
    "bleu4": ("BLEU-4", "runs of up to four words in a true text"),
    "cider": ("CIDEr", "the same, rare ones counting more; 100 % is not the most"),
    "cer": ("CER", "wrong characters; less is better"),
    "wer": ("WER", "wrong words; less is better"),
    "shared_words": ("Shared words", "words in common over words in either"),
    "anls": ("ANLS", "similarity of characters, 0 below one half"),
    "vqa": ("VQA accuracy", "agreement with three of ten people"),
    "relaxed": ("Relaxed", "numbers within 5 %, texts equal"),
    "contains": ("Contains", "answers with a true text in them"),
    "accuracy": ("Accuracy", "right answers"),
    "circular": ("CircularEval", "right whatever the options' order"),
    "f1": ("F1 of yes", "between precision and recall"),
    "precision": ("Precision of yes", "said yeses that are right"),
    "recall": ("Recall of yes", "right yeses that were said"),
    "yes_rate": ("Yes rate", "answers that are yes"),
}
GROUPS = {
    "fine-grained": "Fine-grained",
    "vqa": "VQA",
    "reasoning": "Reasoning",
    "ocr": "OCR",
}


@dataclass(frozen=True)
class Row:
    """One measure of one task, in words."""

    measure: str
    meaning: str
    value: str
    interval: str
    constant: str
    share: float


def rows_of(result: Evaluation, task: str) -> list[Row]:
    """The measures of a task, main ones first as its scorer has them."""
    scores = result.scores[task]
    rows = []
    for name in SCORERS[result.tasks[task].scorer].measures:
        value = scores.values.get(name)
        low, high = scores.intervals.get(name, (None, None))
        rows.append(
            Row(
                *MEASURES[name],
                "–" if value is None else percent(value),
                "" if low is None or high is None else f"{100 * low:.1f}–{100 * high:.1f}",
                percent(scores.constant[name]) if name in scores.constant else "",
                min(max(value or 0, 0), 1),
            )
        )
    return rows


def heading(result: Evaluation, task: str) -> str:
    """The task's name, and how many questions about how many images."""
    images = len({item.id for item in result.of(task)})
    return f"{task}: {int(result.scores[task].values['count']):,} questions about {images:,} images"


def markdown(result: Evaluation) -> str:
    """The whole result as a Markdown text, without pictures."""
    lines = ["# Evaluation", "", *(f"- {name}: {text}" for name, text in result.facts.items()), ""]
    if result.groups:
        lines += ["| group | average | 95 % | of |", "|---|---|---|---|"]
        for name, group in result.groups.items():
            value, low, high = group.average
            interval = "" if low is None or high is None else f"{100 * low:.1f}–{100 * high:.1f}"
            parts = ", ".join(f"{part} {percent(score)}" for part, score in group.parts.items())
            lines.append(f"| {GROUPS[name]} | {percent(value)} | {interval} | {parts} |")
        lines.append("")
    for task in result.scores:
        lines += [f"## {heading(result, task)}", ""]
        lines += ["| measure | value | 95 % | best constant answer |", "|---|---|---|---|"]
        lines += [f"| {r.measure} | {r.value} | {r.interval} | {r.constant} |" for r in rows_of(result, task)]
        lines.append("")
    if result.notes:
        lines += ["Notes:", "", *(f"- {note}" for note in result.notes), ""]
    lines.append("Intervals: 95 %, bootstrap over images, 1,000 drawings.")
    return "\n".join(lines) + "\n"
