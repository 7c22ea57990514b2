import numpy as np
import pytest

from granvit.bootstrap import by_picture
from granvit.evaluate.items import Item, Task
from granvit.evaluate.scoring import SCORERS, by_image, score

BOX = (0.0, 0.0, 10.0, 10.0)


def text_item(i, said, truth, image=None, **fields):
    return Item(
        image or f"img{i}",
        "t",
        (10, 10),
        truth if isinstance(truth, list) else [truth],
        said=said,
        key=str(i),
        **fields,
    )


def box_item(i, found, image=None, box=BOX):
    return Item(image or f"img{i}", "t", (20, 20), ["x"], box, found=found, key=str(i), how="phrase")


def values(scorer, items):
    return score(Task("t", scorer), items).values


# --- measures --------------------------------------------------------------------------------------------------------


def test_boxes():
    found = [BOX, (0, 0, 10, 8), (0, 0, 10, 5), None]
    assert values("boxes", [box_item(i, f) for i, f in enumerate(found)]) == pytest.approx(
        {"acc50": 0.75, "acc75": 0.5, "miou": (1 + 0.8 + 0.5) / 4, "parse_rate": 0.75, "count": 4}
    )


def test_error_rates_are_over_the_corpus():
    said, truth = ["kitten sat", "abc"], ["sitting sat", "abd e"]
    got = values("reading", [text_item(i, s, t) for i, (s, t) in enumerate(zip(said, truth, strict=True))])
    assert got["cer"] == pytest.approx((3 + 3) / (11 + 5))  # kitten, sitting: 3; c, d and " e": 3
    assert got["wer"] == pytest.approx((1 + 2) / (2 + 2))


def test_captions_have_the_corpus_bleu():
    items = [text_item(0, "a b c d e", "a b c d e"), text_item(1, "x y z v", ["a b c d", "f"])]
    got = values("captions", items)
    assert got["bleu4"] == pytest.approx((5 / 9 * 4 / 7 * 3 / 5 * 2 / 3) ** 0.25)
    assert got["cider"] == pytest.approx(5) and got["exact"] == 0.5


def test_yes_and_no():
    reported = [("yes", "yes"), ("Yes.", "no"), ("no", "no"), ("perhaps", "yes")]
    got = values("yes_no", [text_item(i, said, right) for i, (said, right) in enumerate(reported)])
    assert got == pytest.approx(
        {"accuracy": 0.5, "f1": 0.5, "precision": 0.5, "recall": 0.5, "yes_rate": 0.5, "parse_rate": 0.75, "count": 4}
    )


def test_precision_of_no_yes_is_no_number():
    got = values("yes_no", [text_item(0, "no", "no"), text_item(1, "no", "no")])
    assert "precision" not in got and "recall" not in got and got["accuracy"] == 1


def test_choices_and_open_questions():
    options = ["red", "blue"]
    items = [
        text_item(0, "A", "A", options=options),
        text_item(1, "blue", "A", options=options),
        text_item(2, "green", "A", options=options),
        text_item(3, " 1/2", ["0.5", "1/2"]),
    ]
    assert values("choice", items) == pytest.approx({"accuracy": 0.5, "parse_rate": 0.75, "count": 4})


def test_circular_counts_a_question_only_if_every_turn_is_right():
    def turns(image, *said):
        options = [["red", "blue"], ["blue", "red"]]
        return [text_item(f"{image}{i}", s, "AB"[i], image, options=options[i]) for i, s in enumerate(said)]

    items = [*turns("p", "A", "B"), *turns("q", "A", "A"), *turns("r", "B", "A")]
    assert values("circular", items) == pytest.approx({"circular": 1 / 3, "accuracy": 0.5, "parse_rate": 1, "count": 6})


def test_every_scorer_scores_and_its_names_are_its_own():
    for name, scorer in SCORERS.items():
        item = box_item(0, BOX) if name == "boxes" else text_item(0, "yes", "yes")
        scores = score(Task("t", name), [item])
        assert set(scores.values) <= {*scorer.measures, "count"} and scorer.main in scores.values
        assert set(scores.constant) == set(scorer.constants) <= set(scorer.measures)
        assert scorer.quality in scorer.measures and scores.intervals == {}


# --- intervals -------------------------------------------------------------------------------------------------------


def test_the_interval_is_over_images_not_questions():
    """100 questions about 4 images tell less than 100 questions about 100 images."""
    few = [box_item(i, BOX if i % 4 < 2 else None, f"img{i % 4}") for i in range(100)]
    many = [box_item(i, BOX if i % 4 < 2 else None) for i in range(100)]
    (low, high), (lower, higher) = (score(Task("t", "boxes"), items).intervals["acc50"] for items in (few, many))
    assert high - low > 2 * (higher - lower)
    assert higher - lower == pytest.approx(2 * 1.96 * 0.05, abs=0.02)  # the normal approximation


def test_tiles_of_an_image_are_drawn_together():
    def items(name):
        return [box_item(i, BOX if i % 4 < 2 else None, name(i)) for i in range(100)]

    whole, tiled = (
        score(Task("t", "boxes"), items(name)) for name in (lambda i: f"p{i % 4}", lambda i: f"p{i % 4}@{i},0,48")
    )
    assert tiled.intervals == whole.intervals and tiled.drawn.tolist() == whole.drawn.tolist()
    assert score(Task("t", "boxes"), items(lambda i: f"p@{i},0")).intervals == {}  # all of one picture


def test_the_interval_of_a_rate_is_that_of_the_rate():
    """Of a rate over the corpus long texts weigh more, in the interval too."""
    items = [text_item(i, "x" * 90, "y" * 90) for i in range(2)] + [text_item(i, "a", "a") for i in range(2, 60)]
    low, high = score(Task("t", "reading"), items).intervals["cer"]
    assert low < 0.5 < score(Task("t", "reading"), items).values["cer"] < high


def test_the_same_seed_gives_the_same_interval():
    items = [box_item(i, BOX if i % 3 else None) for i in range(30)]
    first, again, other = (score(Task("t", "boxes"), items, seed=s).drawn.tolist() for s in (1, 1, 2))
    assert first == again != other


def test_what_a_measure_is_not_defined_for_is_left_out_of_it_with_the_reason():
    reported = score(Task("t", "captions"), [text_item(0, "a dog", "a dog")])
    assert "cider" not in reported.values and "no two different ones" in reported.undefined["cider"]
    assert reported.undefined["bleu4"] == "no true caption has four words"
    alike = score(Task("t", "captions"), [text_item(i, "a big brown dog", "a big brown dog") for i in range(3)])
    assert "cider" not in alike.values and alike.values["rouge_l"] == 1 == pytest.approx(alike.values["bleu4"])
    signs = [text_item(0, "%", "%"), text_item(1, "a dog", "a dog"), text_item(2, "no", "a dog")]
    reported = score(Task("t", "reading"), signs)
    assert (reported.values["rouge_l"], reported.values["exact"]) == (1 / 2, 2 / 3)
    reported = score(Task("t", "labels"), signs[:1])
    assert reported.values["exact"] == 1 and reported.undefined == {"shared_words": "no true text has a word"}


@pytest.mark.parametrize("scorer", ["texts", "captions", "reading", "labels", "anls", "vqa", "relaxed", "contains"])
@pytest.mark.parametrize(
    "text", ["红色的汽车", "赤い車です。", "красная машина", "سيارة حمراء؟", "빨간 자동차", "लाल गाड़ी"]
)
def test_a_right_answer_in_any_script_is_right(scorer, text):
    text = " ".join([text, "2", text])  # four words, which BLEU-4 counts
    items = [text_item(i, said, [said] * 3) for i, said in enumerate((text, f"three {text}"))]
    reported = score(Task("t", scorer), items)
    best = {"cer": 0, "wer": 0, "count": 2, "vqa": 2 / 3}
    cider = reported.values.pop("cider", 1)
    assert cider > 0 and reported.values == pytest.approx({name: best.get(name, 1) for name in reported.values})


def test_one_image_has_no_interval():
    items = [box_item(i, BOX if i else None, "img") for i in range(5)]
    images = ["img", "another"]
    assert score(Task("t", "boxes"), items, images).intervals == {}


def test_by_image_sums_in_the_order_asked_for():
    items = [box_item(0, None, "b"), box_item(1, None, "a"), box_item(2, None, "b")]
    assert by_image(np.array([[1.0], [2.0], [4.0]]), items, ["a", "c", "b"]).tolist() == [[2], [0], [5]]
    tiles = [box_item(0, None, "b@0,0,64"), box_item(1, None, "a"), box_item(2, None, "b@64,0,64")]
    ids = ["a", "b@0,0,64", "c", "b@64,0,64"]
    assert by_image(np.array([[1.0], [2.0], [4.0]]), tiles, ids).tolist() == [[2], [1], [0], [4]]
    assert by_picture(np.array([[2.0], [1.0], [0.0], [4.0]]), ids).tolist() == [[2], [5], [0]]


# --- the best constant answer ----------------------------------------------------------------------------------------


def test_the_best_constant_text():
    items = [text_item(i, "", t) for i, t in enumerate(["tea", "TEA", "tea", ["milk", "tea"], "ABCDEFGH"])]
    assert score(Task("t", "anls"), items).constant == pytest.approx({"anls": 0.8, "exact": 0.8})
    # "tea" costs 0 + 0 + 0 + 0 + 8 of 3 + 3 + 3 + 3 + 8; capital letters count.
    assert score(Task("t", "reading"), items).constant["cer"] == pytest.approx((3 + 8) / 20)


def test_the_best_constant_letter_and_word():
    options = ["red", "blue"]
    items = [text_item(i, "", "AAB"[i], options=options) for i in range(3)]
    assert score(Task("t", "choice"), items).constant == {"accuracy": pytest.approx(2 / 3)}
    turned = [text_item(i, "", "AB"[i], "img", options=options) for i in range(2)]
    assert score(Task("t", "circular"), turned).constant == {"circular": 0, "accuracy": 0.5}
    yes = [text_item(i, "", "yes" if i else "no") for i in range(4)]
    assert score(Task("t", "yes_no"), yes).constant == pytest.approx({"accuracy": 0.75, "f1": 6 / 7})
