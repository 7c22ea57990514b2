import io
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from helpers.tiny_model import make_model
from PIL import Image

from granvit import predict
from granvit.evaluate import answering, region_tasks
from granvit.evaluate.region_tasks import ALL_TASKS, TASKS, evaluate
from granvit.images import decode
from granvit.predict import GranViT, ImageQuestions, Text
from granvit.questions import CAPTION2BBOX, ask_global
from granvit.regions import Region, RegionImage, Turn

WIDTH, HEIGHT = 100, 50
SAYS = Callable[[ImageQuestions, str], str]


def record(id: str, regions: list[Region], caption: str | None = None) -> RegionImage:
    """A picture of WIDTH x HEIGHT pixels in a colour of its own."""
    file = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), tuple(id.encode()[-3:])).save(file, "PNG")
    return RegionImage(id, file.getvalue(), WIDTH, HEIGHT, regions, caption=caption)


RECORDS = [
    record(
        "img-a",
        [
            Region((10, 5, 40, 25), "red star"),
            Region((50, 10, 90, 40), "blue ring"),
            Region((0, 40, 50, 50), "TOTAL 3.50", "text"),
        ],
        "a star and a ring",
    ),
    record("img-b", [Region((20, 20, 60, 45), "blue ring"), Region((0, 0, 30, 10), "TEA", "text")]),
    record("img-c", [], "nothing at all"),
]


class Scripted(GranViT):
    """A model in whose mouth answers are put; `asked` records (picture's colour, view, question)."""

    def __init__(self, say: SAYS):
        super().__init__(make_model(codec="decimal"))
        self.say = say
        self.asked: list[tuple[tuple[int, ...], object, str]] = []
        self.longest: list[int] = []

    def answer(self, asks, max_new_tokens):
        self.longest.append(max_new_tokens)
        self.asked += [(a.image.getpixel((0, 0)), a.view, q) for a in asks for q in a.questions]
        return [[Text(self.say(a, q), 0.5) for q in a.questions] for a in asks]

    @property
    def questions(self) -> list[str]:
        return [question for _, _, question in self.asked]


def knowing(records: list[RegionImage]) -> Scripted:
    """A model that is always right."""

    def say(ask: ImageQuestions, question: str) -> str:
        color = ask.image.getpixel((0, 0))
        mine = next(r for r in records if decode(r.image).getpixel((0, 0)) == color)
        if question == ask_global():
            return mine.caption or ""
        for region in mine.regions:
            relative = ask.view.to_relative(region.box, "image")
            if question == CAPTION2BBOX + region.text:
                return model.model.codec.encode(relative[0])
            if question in model.box_questions(ask.view, region.box):
                return region.text
        raise AssertionError(f"nobody should ask {question!r} of {mine.id}")

    model = Scripted(say)
    return model


def always(answer: str) -> Scripted:
    return Scripted(lambda ask, question: answer)


# --- scores ----------------------------------------------------------------------------------------------------------


def test_perfect_answers_score_one_in_every_task():
    report = evaluate(knowing(RECORDS), RECORDS, progress=False)
    assert list(report.scores) == list(TASKS)
    counts = {task: scores.pop("count") for task, scores in report.scores.items()}
    assert counts == {"describe": 3, "locate": 3, "read": 2, "locate_text": 2, "caption": 2}
    assert report.scores["describe"] == report.scores["caption"] == {"rouge_l": 1, "exact": 1}
    assert report.scores["read"] == {"rouge_l": 1, "exact": 1, "cer": 0, "wer": 0}
    for task in ("locate", "locate_text"):
        assert report.scores[task] == pytest.approx({"acc50": 1, "acc75": 1, "miou": 1, "parse_rate": 1})


def test_every_single_answer_is_kept_with_its_truth():
    items = evaluate(knowing(RECORDS), RECORDS, progress=False).items
    assert [(i.id, i.truth[0]) for i in items if i.task == "describe"] == [
        ("img-a", "red star"),
        ("img-a", "blue ring"),
        ("img-b", "blue ring"),
    ]
    for item in items:
        assert item.size == (WIDTH, HEIGHT) and item.said
        if item.task in ("locate", "locate_text"):
            np.testing.assert_allclose(item.found, item.box, atol=1e-9)
        else:
            assert item.said == item.truth[0] and item.found is None
    assert [(i.id, i.truth, i.box) for i in items if i.task == "caption"] == [
        ("img-a", ["a star and a ring"], None),
        ("img-c", ["nothing at all"], None),
    ]


def test_wrong_answers_score_less():
    report = evaluate(always("[0.000, 0.000, 0.200, 0.200]"), RECORDS, progress=False)
    assert report.scores["locate"] == pytest.approx(
        {"acc50": 0, "acc75": 0, "miou": (50 / (600 + 200 - 50)) / 3, "parse_rate": 1, "count": 3}
    )
    assert report.scores["describe"] == {"rouge_l": 0, "exact": 0, "count": 3}
    assert report.scores["read"]["cer"] == pytest.approx(1) and report.scores["read"]["exact"] == 0
    half = evaluate(always("blue ring"), RECORDS, ["describe"], progress=False).scores["describe"]
    assert half["exact"] == pytest.approx(2 / 3) and half["rouge_l"] == pytest.approx(2 / 3)


def test_answers_that_are_no_boxes_are_misses_and_lower_the_parse_rate():
    right = knowing(RECORDS)

    def say(ask: ImageQuestions, question: str) -> str:
        return "somewhere left" if question.endswith("red star") else right.say(ask, question)

    report = evaluate(Scripted(say), RECORDS, ["locate"], progress=False)
    third = pytest.approx(2 / 3)
    assert report.scores["locate"] == {"acc50": third, "acc75": third, "miou": third, "parse_rate": third, "count": 3}
    assert [(i.said, i.found) for i in report.items][0] == ("somewhere left", None)


def test_any_of_several_right_descriptions_counts():
    records = [record("img-a", [Region((10, 5, 40, 25), "red star", alternatives=["crimson star", "star"])])]
    for answer, score in (("crimson star", 1), ("Red  star", 1), ("blue ring", 0)):
        assert evaluate(always(answer), records, ["describe"], progress=False).scores["describe"]["exact"] == score


# --- what is asked ---------------------------------------------------------------------------------------------------


def test_a_text_that_stands_on_two_regions_is_described_but_not_located():
    boxes = [(10, 5, 40, 25), (50, 10, 90, 40), (0, 0, 9, 9)]
    regions = [Region(box, text) for box, text in zip(boxes, ["ring", "Ring", "star"], strict=True)]
    model = always("[0.000, 0.000, 0.500, 0.500]")
    report = evaluate(model, [record("img-a", regions)], ["describe", "locate"], progress=False)
    assert report.scores["describe"]["count"] == 3 and report.scores["locate"]["count"] == 1
    assert model.questions[3:] == [CAPTION2BBOX + "star"]


def test_ignored_regions_are_never_asked_but_make_a_phrase_ambiguous():
    regions = [
        Region((10, 5, 40, 25), "ring"),
        Region((50, 10, 90, 40), "ring", ignore=True),
        Region((0, 0, 9, 9), "star"),
        Region((0, 20, 9, 29), "crowd", ignore=True),
    ]
    report = evaluate(always("ring"), [record("img-a", regions)], ["describe", "locate"], progress=False)
    asked = [(i.task, i.truth[0], i.box) for i in report.items]
    assert asked == [
        ("describe", "ring", (10, 5, 40, 25)),
        ("describe", "star", (0, 0, 9, 9)),
        ("locate", "star", (0, 0, 9, 9)),
    ]


def test_limit_and_max_regions():
    model = knowing(RECORDS)
    assert {i.id for i in evaluate(model, iter(RECORDS), limit=1, progress=False).items} == {"img-a"}
    report = evaluate(model, RECORDS, max_regions=1, progress=False)
    assert [(i.task, i.truth[0]) for i in report.items if i.box] == [
        ("describe", "red star"),
        ("locate", "red star"),
        ("describe", "blue ring"),
        ("locate", "blue ring"),
    ]


def test_many_images_are_taken_some_at_a_time(monkeypatch):
    whole = evaluate(knowing(RECORDS), RECORDS, progress=False)
    monkeypatch.setattr(answering, "_IMAGES_AT_ONCE", 1)
    parts = evaluate(knowing(RECORDS), RECORDS, progress=False)
    assert parts.scores == whole.scores and parts.baseline == whole.baseline and parts.intervals == whole.intervals
    assert sorted(map(str, parts.items)) == sorted(map(str, whole.items))


def test_with_a_window_text_is_read_from_near_and_nothing_else_is():
    model = knowing(RECORDS)
    report = evaluate(model, RECORDS, window=20, progress=False)
    assert report.scores["read"]["exact"] == 1 and report.scores["describe"]["exact"] == 1
    windows = [(view.source, q) for _, view, q in model.asked if view.source != (0, 0, WIDTH, HEIGHT)]
    # Around the centres (25, 45) and (15, 5), inside the picture; a longer line makes it larger.
    assert [view for _, view, _ in model.asked if view.source != (0, 0, WIDTH, HEIGHT)] == [
        model.model.window(region.box, (WIDTH, HEIGHT), 20)
        for rec in RECORDS
        for region in rec.regions
        if region.kind == "text"
    ]
    assert [source for source, _ in windows][1][2] >= 30


def test_tasks_that_nothing_can_be_asked_for_are_left_out():
    report = evaluate(knowing(RECORDS), RECORDS[2:], progress=False)
    assert list(report.scores) == list(report.baseline) == ["caption"]


def test_unknown_tasks_are_named():
    with pytest.raises(ValueError, match="unknown task.*draw, sing; known are describe, locate"):
        evaluate(always(""), RECORDS, ["locate", "sing", "draw"], progress=False)


@pytest.mark.parametrize(("records", "tasks"), [([], TASKS), (RECORDS[2:], ("describe", "read")), (RECORDS, ())])
def test_nothing_to_evaluate_is_an_error(records, tasks):
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate(always(""), records, tasks, progress=False)


# --- the best constant answer ----------------------------------------------------------------------------------------


def test_the_best_constant_answer_stands_beside():
    report = evaluate(always(""), RECORDS, progress=False)
    assert {task: set(scores) for task, scores in report.baseline.items()} == {
        "describe": {"rouge_l", "exact"},
        "locate": {"acc50", "acc75", "miou"},
        "read": {"rouge_l", "exact", "cer", "wer"},
        "locate_text": {"acc50", "acc75", "miou"},
        "caption": {"rouge_l", "exact"},
    }
    assert report.baseline["describe"]["exact"] == pytest.approx(2 / 3)  # "blue ring"
    assert 0 < report.baseline["locate"]["miou"] < 1
    assert 0 < report.baseline["read"]["cer"] < 1


def test_the_constant_box_is_relative_to_each_picture():
    """The same place in pictures of two sizes: one constant box is right for both."""
    file = io.BytesIO()
    Image.new("RGB", (200, 100)).save(file, "PNG")
    large = RegionImage("large", file.getvalue(), 200, 100, [Region((20, 20, 100, 80), "star")])
    small = record("small", [Region((10, 10, 50, 40), "star")])
    report = evaluate(always(""), [small, large], ["locate"], progress=False)
    assert report.baseline["locate"] == pytest.approx({"acc50": 1, "acc75": 1, "miou": 1})


# --- a real model ----------------------------------------------------------------------------------------------------


def test_a_real_model_answers_every_task_as_it_does_alone(monkeypatch):
    for module in (region_tasks, predict):
        for name in ("LONGEST_CAPTION", "LONGEST_DESCRIPTION", "LONGEST_BOX"):
            monkeypatch.setattr(module, name, 5)
    model = GranViT(make_model())
    talked_about = replace(RECORDS[0], conversations=[[Turn("user", "What?"), Turn("assistant", "A star.")]])
    report = evaluate(model, [talked_about, *RECORDS[1:]], ALL_TASKS, window=30, progress=False)
    assert set(report.scores) == set(ALL_TASKS)
    for scores in report.scores.values():
        assert all(0 <= value <= (10 if name == "cider" else 1) for name, value in scores.items() if name != "count")
    for item in report.items:
        image = next(r.image for r in RECORDS if r.id == item.id)
        # Scored is what was said; what people get is without the location tokens that a random model puts there.
        text = re.sub(r"<loc\d{4}>", "", item.said).strip()
        if item.task in ("describe", "region_caption", "label"):
            assert [text] == model.describe(image, item.box)
        elif item.task == "read":
            assert [text] == model.read(image, item.box, window=30)
        elif item.task == "caption":
            assert text == model.caption(image)
        elif item.task == "answer":
            picture = decode(image)
            question = predict.ImageQuestions(picture, model.model.view(picture.size), ["What?"], item.id)
            assert [[item.said]] == model.answer([question], 5)
        else:
            assert [item.found] == model.locate(image, item.truth)
