"""Second opinions, by annotators whose answers are known."""

import numpy as np
import pytest
from helpers.audited import record, text
from PIL import Image, ImageDraw, ImageFont

from granvit.corpus.audit.agreement import Recaption, Redetect, Reread
from granvit.regions import Region

A, B, C = (0, 0, 40, 20), (50, 0, 90, 20), (0, 50, 40, 70)
PICTURE = Image.new("RGB", (200, 100), "white")


class Says:
    """An annotator that answers each item with the next regions of a list, and keeps the items."""

    def __init__(self, *answers):
        self.answers, self.items = list(answers), []

    def __call__(self, items):
        for item in items:
            self.items.append((item.record, item.picture, list(item.record.regions)))
            item.record.regions = self.answers.pop(0)
        return list(items)


def values(check, source="shop"):
    return {name: e.value if e else None for name, e in check.scores(0)[source].items()}


def test_texts_are_read_again():
    says = Says([text(A, "TOTAL")], [text(A, "12"), text(B, ".SO")], [])
    check = Reread(says, "reader")
    regions = [text(A, "total"), Region(A, "a sign"), text(B, "12.50"), text(C, "exit"), text(C, "", ignore=True)]
    opinion = check(record("a", *regions), PICTURE)
    # "12 .SO" for "12.50": a blank more and two characters wrong; nothing for "exit": its 4 characters.
    expected = {"cer": (5 + 3 + 4) / 14, "cer_any_case": (0 + 3 + 4) / 14, "same": 1 / 3, "unread": 1 / 3}
    assert values(check) == pytest.approx(expected)
    assert (opinion.agrees, opinion.differs, opinion.more) == ([0], {2: "12 .SO", 3: ""}, [])


def test_a_crop_shows_the_box_framed_by_its_background():
    picture = PICTURE.copy()
    ImageDraw.Draw(picture).rectangle((50, 0, 89, 19), fill=(200, 0, 0))
    ImageDraw.Draw(picture).rectangle((60, 5, 69, 14), fill=(0, 0, 200))
    says = Says([])
    Reread(says, "reader")(record("a", text(B, "x")), picture)
    shown = np.asarray(says.items[0][1])
    assert shown.shape == (20 + 12, 40 + 12, 3)
    assert (shown[6:26, 6:46] == np.asarray(picture)[0:20, 50:90]).all()
    shown = shown.copy()
    shown[6:26, 6:46] = (200, 0, 0)
    assert (shown == (200, 0, 0)).all()


def test_objects_are_looked_for_again():
    # It sees A (IoU 0.5), not B, and C besides; what lies in an ignored region counts nowhere.
    says = Says([Region((0, 0, 20, 20), "thing"), Region(C, "cup"), Region((150, 50, 190, 90), "crowd")])
    check = Redetect(says, "detector:x")
    crowd = Region((140, 40, 200, 100), "people", ignore=True)
    opinion = check(record("a", text(C, "exit"), Region(A, "a car"), Region(B, "a dog"), crowd), PICTURE)
    assert values(check) == {"confirmed": 0.5, "known": 0.5, "mean_iou": 0.5}
    assert opinion.agrees == [1] and opinion.differs == {2: "not found"} and [r.text for r in opinion.more] == ["cup"]
    assert says.items[0][2] == []  # it was not given where the boxes are


def test_objects_are_captioned_again():
    # One region was refused and is gone from the answer.
    says = Says([Region(A, "a red car"), Region(C, "the blue sky")])
    check = Recaption(says, "captioner:x")
    regions = [text(C, "exit"), Region(A, "a car"), Region(B, "a dog"), Region(C, "a cup", alternatives=["one mug"])]
    opinion = check(record("a", *regions, caption="A room."), PICTURE)
    assert values(check) == pytest.approx({"rouge_l": (0.8 + 0) / 2, "answered": 2 / 3})
    assert opinion.agrees == [1] and opinion.differs == {3: "the blue sky"}
    asked, _, boxes = says.items[0]
    assert [(r.box, r.text, r.alternatives) for r in boxes] == [(A, "", []), (B, "", []), (C, "", [])]
    assert asked.caption is None  # nothing to copy from


@pytest.mark.parametrize(("kind", "check"), [("object", Reread), ("text", Redetect), ("text", Recaption)])
def test_images_without_such_regions_are_not_asked_about(kind, check):
    says = Says()
    made = check(says, "x")
    assert made(record("a", Region(A, "x", kind)), PICTURE).differs == {}
    assert says.items == [] and made.scores(0) == {}


def test_sources_are_kept_apart():
    check = Reread(Says([text(A, "x")], [text(A, "y")]), "reader")
    check(record("a", text(A, "x"), source="one"), PICTURE)
    check(record("b", text(A, "x"), source="two"), PICTURE)
    assert values(check, "one")["cer"] == 0 and values(check, "two")["cer"] == 1


def test_tiles_of_a_picture_are_drawn_together():
    def scored(*names):
        check = Reread(Says([text(A, "x")], [text(A, "y")]), "reader")
        for name in names:
            check(record(name, text(A, "x")), PICTURE)
        return check.scores(0)["shop"]["cer"]

    assert scored("a", "b").low == 0 and scored("a@0,0,64", "a@64,0,64") == (0.5, None, None)


def test_print_is_read_from_its_crop():
    pytest.importorskip("rapidocr")
    from granvit.corpus.annotate.ocr import OcrConfig

    picture = Image.new("RGB", (400, 120), (240, 240, 230))
    font = ImageFont.load_default(size=24)
    pen = ImageDraw.Draw(picture)
    pen.text((20, 20), "CASH 12.50", fill="black", font=font)
    pen.text((20, 60), "CHANGE", fill="black", font=font)
    boxes = [
        tuple(float(v) for v in pen.textbbox(at, s, font)) for at, s in (((20, 20), "CASH 12.50"), ((20, 60), "CHANGE"))
    ]
    check = Reread(OcrConfig(box_score=0.3, text_score=0.0).build(), "rapidocr")
    right, wrong = text(boxes[0], "cash 12.50"), text(boxes[1], "ORANGE")
    opinion = check(record("a", right, wrong, width=400, height=120), picture)
    assert opinion.differs == {1: "CHANGE"}
