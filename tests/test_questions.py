"""The wording is the paper's (section 3.2), to the letter: a model trained on it knows no other."""

import pytest

from granvit.coordinates import get_codec
from granvit.questions import (
    TASKS,
    Exchange,
    ask_box,
    ask_caption,
    ask_global,
    box_exchange,
    caption_exchange,
    global_exchange,
    parse_box,
)

BOX = (0.125, 0.25, 0.5, 0.75)


def test_global_wording():
    assert ask_global() == "Describe in detail what is shown in the image in one paragraph"


def test_bbox2caption_wording():
    assert ask_caption(BOX, get_codec("decimal")) == (
        "Describe the content contained within the normalized bounding box coordinates "
        "[0.125, 0.250, 0.500, 0.750] in no more than 10 words."
    )


def test_caption2bbox_wording():
    assert ask_box("a red car") == (
        "Please provide the bounding box coordinate of the region this sentence describes: a red car"
    )


@pytest.mark.parametrize("spec", ["decimal", "int1000", "loc"])
def test_exchanges(spec):
    codec = get_codec(spec)
    assert global_exchange("A street.") == Exchange("global", ask_global(), "A street.")
    assert caption_exchange(BOX, "a red car", codec) == Exchange("bbox2caption", ask_caption(BOX, codec), "a red car")
    assert box_exchange(BOX, "a red car", codec) == Exchange("caption2bbox", ask_box("a red car"), codec.encode(BOX))
    assert codec.encode(BOX) in ask_caption(BOX, codec)


def test_every_task_has_an_exchange():
    codec = get_codec("decimal")
    made = [global_exchange("x"), caption_exchange(BOX, "x", codec), box_exchange(BOX, "x", codec)]
    assert tuple(e.task for e in made) == TASKS


def test_an_answer_parses_in_its_own_codec_only():
    decimal, int1000 = get_codec("decimal"), get_codec("int1000")
    answer = box_exchange(BOX, "a red car", decimal).answer
    assert parse_box(answer, decimal) == BOX
    assert parse_box(answer, int1000) is None
    assert parse_box(f"The box is {answer}", decimal) is None
