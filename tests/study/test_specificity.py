import numpy as np

from granvit.evaluate.items import Item
from granvit.study.specificity import box_specificity


def item(image, truth, said):
    return Item(image, "describe", (10, 10), [truth], (0, 0, 5, 5), said)


def test_by_hand():
    items = [
        # Three boxes, all answered with the first one's text: one right, two swapped, no pair told apart.
        *(item("same", truth, "red star") for truth in ("red star", "blue ring", "green heart")),
        # Two boxes, each its own text, in other case and with other blanks.
        item("own", "red star", "Red  Star"),
        item("own", "blue ring", "blue ring"),
        # Two boxes, one answered with the other's text, the other with neither's.
        item("crossed", "red star", "blue ring"),
        item("crossed", "blue ring", "a cat"),
    ]
    distinct, swapped = box_specificity(items, ["own", "none", "same", "crossed"])
    assert np.array_equal(distinct, [[1, 1], [0, 0], [0, 3], [1, 1]])
    assert np.array_equal(swapped, [[0, 2], [0, 0], [2, 3], [1, 2]])


def test_boxes_of_one_text_need_no_different_answers():
    items = [item("twins", "red star", "red star"), item("twins", "red star", "red star"), item("single", "cat", "dog")]
    distinct, swapped = box_specificity(items, ["twins", "single"])
    assert not distinct.any() and not swapped.any()


def test_any_of_the_right_texts_is_the_boxes_own():
    pair = [item("i", "tea", "cup"), item("i", "mug", "mug")]
    pair[0].truth = ["tea", "cup"]
    distinct, swapped = box_specificity(pair, ["i"])
    assert np.array_equal(distinct, [[1, 1]]) and np.array_equal(swapped, [[0, 2]])
