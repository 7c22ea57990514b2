"""What each measure is called, and what it means for a reader who has never met it: one line each, for all reports."""

from __future__ import annotations

# name, meaning
MEASURES = {
    "acc50": (
        "Acc@0.5",
        "boxes whose overlap with the true box is half or more of what both cover (IoU 0.5)",
    ),
    "acc75": ("Acc@0.75", "boxes whose overlap is three quarters of that area"),
    "miou": (
        "Mean IoU",
        "overlap as a share of what both boxes cover: 0 % is beside the true box, 100 % on it",
    ),
    "parse_rate": ("Parse rate", "answers that could be read at all, right or wrong"),
    "rouge_l": (
        "ROUGE-L",
        "words of the true text that are said, in its order; others count against it (F1; characters where no "
        "blanks part words)",
    ),
    "exact": ("Exact", "answers equal to a true text, but for case and blanks"),
    "bleu4": ("BLEU-4", "runs of up to four words that stand in a true text"),
    "cider": ("CIDEr", "the same, rare ones counting more; 100 % is not the most"),
    "cer": ("CER", "characters to be changed for the true text, per character of it; less is better"),
    "wer": ("WER", "words to be changed for the true text, per word of it; less is better"),
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
