import numpy as np
import pytest

from granvit.evaluate.metrics import bleu, bleu_counts, caption_words, cider_each

# Captions and references whose scores were computed by the COCO caption evaluation (pycocoevalcap).
CAPTIONS = [
    "a red car parked near the old house",
    "two dogs run",
    "a plate of food on a table with a fork and a knife",
    "nothing to see",
]
REFERENCES = [
    ["a red car is parked next to an old house", "the car stands in front of a house"],
    ["two brown dogs are running over a wide green field", "dogs run on grass", "two dogs run"],
    ["a plate with rice", "food on a plate", "a table with a plate of food"],
    ["a man rides a horse", "a horse with its rider"],
]
BLEU = [0.6666666666419753, 0.6138498140201392, 0.5177930681152404, 0.36885175842079737]
CIDER = [1.9294154773218906, 3.524320115552735, 1.6348297616609366, 0.0]


def counts(captions=CAPTIONS, references=REFERENCES):
    return sum(
        bleu_counts(caption_words(c), [caption_words(r) for r in rs])
        for c, rs in zip(captions, references, strict=True)
    )


def test_bleu_is_that_of_the_coco_caption_evaluation():
    assert [float(bleu(counts(), n)) for n in (1, 2, 3, 4)] == pytest.approx(BLEU, abs=1e-12)


def test_bleu_of_the_published_example():
    """The example results that come with the COCO caption evaluation: its counts, and the BLEU-1 to 4 it reports."""
    published = [5732, 2510, 1043, 423, 9893, 8893, 7893, 6893, 9893, 9855]
    assert [round(float(bleu(published, n)), 3) for n in (1, 2, 3, 4)] == [0.579, 0.404, 0.279, 0.191]


def test_bleu_counts_by_hand():
    # "the" stands twice in the longer reference, so two of three are found; "the the" once in no reference.
    got = bleu_counts("the the the cat".split(), ["the cat the".split(), "a cat".split()])
    assert got.tolist() == [3, 1, 0, 0, 4, 3, 2, 1, 4, 3]


def test_a_short_caption_is_penalised_and_a_long_one_is_not():
    reference = "a b c d e f g h".split()
    assert bleu(bleu_counts(reference[:6], [reference])) == pytest.approx(np.exp(1 - 8 / 6))
    assert bleu(bleu_counts([*reference, "i"], [reference])) == pytest.approx((8 / 9 * 7 / 8 * 6 / 7 * 5 / 6) ** 0.25)


def test_cider_is_that_of_the_coco_caption_evaluation():
    assert cider_each(CAPTIONS, REFERENCES) == pytest.approx(CIDER, abs=1e-12)


def test_cider_is_ten_for_rare_words_repeated_exactly():
    texts = ["a very small red star", "one large blue ring here", "two thin green lines crossing"]
    assert cider_each(texts, [[t] for t in texts]) == pytest.approx([10, 10, 10])
    assert cider_each(texts[:1], [texts[:1]]) == [0]  # of a single picture nothing is rare


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man's dog doesn't run.", "a man 's dog does n't run"),
        ("Two dogs run. A cat, black-and-white, sits!", "two dogs run a cat black-and-white sits"),
        ('"Stop" (on a sign) - at 3.5 m', "stop on a sign at 3.5 m"),
        ("...", ""),
    ],
)
def test_words_follow_the_penn_treebank(text, words):
    assert " ".join(caption_words(text)) == words
