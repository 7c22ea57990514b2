"""Which answers count as right for a task's calibration, and what is told of it."""

import io
import json

import pytest
from PIL import Image

from granvit.evaluate.calibration import calibration, reliability_svg
from granvit.evaluate.evaluation import Evaluation, write_scores
from granvit.evaluate.evaluation_report import markdown, write_report
from granvit.evaluate.items import EvalImage, EvalSet, Item, Task
from granvit.evaluate.scoring import score

BOX = (0.0, 0.0, 10.0, 10.0)
LOCATE, DESCRIBE = Task("locate", "boxes"), Task("describe", "texts")


def located(found, confidence):
    return Item("img", "locate", (20, 20), ["cup"], BOX, found=found, how="phrase", asked="cup", confidence=confidence)


def described(said, confidence):
    return Item("img", "describe", (20, 20), ["a cup"], BOX, said=said, how="box", confidence=confidence)


LOCATED = [
    located((0, 0, 10, 10), 0.9),
    located((0, 0, 10, 5), 0.7),  # an IoU of just 0.5 is right
    located((0, 0, 10, 4.9), 0.8),
    located(None, 0.95),
]


def test_a_box_is_right_from_an_iou_of_one_half_and_no_box_is_wrong():
    found = calibration(LOCATE, LOCATED)
    # One in each of the bins (0.6, 0.7], (0.7, 0.8], (0.8, 0.9] and (0.9, 1.0].
    assert (found.count, [b.count for b in found.bins]) == (4, [0] * 6 + [1] * 4)
    assert found.ece == pytest.approx((0.3 + 0.8 + 0.1 + 0.95) / 4)
    # Right: 0.9, 0.7; wrong: 0.8, 0.95. One of four pairs is in order.
    assert found.auroc == 0.25
    at = {t.confidence: (t.kept, t.precision, t.recall) for t in found.thresholds}
    assert at[0.0] == (3, 2 / 3, 0.5) and at[0.8] == (2, 0.5, 0.25) and at[0.9] == (1, 1, 0.25)


def test_a_description_is_right_where_it_is_equal():
    found = calibration(DESCRIBE, [described("a cup", 0.6), described("A Cup.", 0.9), described("cup", 0.2)])
    at = {t.confidence: (t.kept, t.precision, t.recall) for t in found.thresholds}
    exact = score(DESCRIBE, [described("A Cup.", 0.9)]).values["exact"]
    assert at[0.0] == (3, (1 + exact) / 3, (1 + exact) / 3) and at[0.3] == (2, (1 + exact) / 2, (1 + exact) / 3)


def test_what_is_better_or_worse_is_not_calibrated():
    caption = Item("img", "caption", (20, 20), ["two cups"], said="two cups", asked="Describe", confidence=0.5)
    assert calibration(Task("caption", "texts"), [caption]) is None


def test_answers_without_a_confidence_are_left_out():
    old = located(BOX, None)
    assert calibration(LOCATE, [old]) is None
    assert calibration(LOCATE, [old, *LOCATED]) == calibration(LOCATE, LOCATED)


def test_it_is_told_in_the_scores_the_markdown_and_the_page(tmp_path):
    result = Evaluation({"Model": "tiny"}, {"locate": LOCATE}, {"locate": score(LOCATE, LOCATED)}, items=LOCATED)
    result.calibrations["locate"] = found = calibration(LOCATE, LOCATED)
    write_scores(result, tmp_path)
    written = json.loads((tmp_path / "scores.json").read_text())["calibration"]["locate"]
    assert written["ece"] == found.ece and written["thresholds"][8] == {
        "confidence": 0.8,
        "kept": 2,
        "precision": 0.5,
        "recall": 0.25,
    }
    text = markdown(result)
    assert "expected calibration error 53.8% of 4 answers" in text and "| 0.8 | 2 | 50.0% | 25.0% |" in text
    grey = io.BytesIO()
    Image.new("RGB", (20, 20), "grey").save(grey, "PNG")
    eval_set = EvalSet("pack", [LOCATE], lambda: iter([EvalImage("img", grey.getvalue, LOCATED)]))
    write_report(result, [eval_set], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Confidence</h2>" in page and "<td>0.8</td><td>2</td><td>50.0%</td><td>25.0%</td>" in page
    assert str(reliability_svg(found))[:40] in page and "var(--accent)" in page


def test_the_diagram_shows_each_filled_bin():
    svg = str(reliability_svg(calibration(LOCATE, LOCATED)))
    assert svg.startswith("<svg") and "currentColor" in svg and "#01010" not in svg
