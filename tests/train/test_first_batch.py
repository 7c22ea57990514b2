import io
import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.tiny_model import make_model
from helpers.tiny_stage import TinyStage, make_feed
from PIL import Image, ImageColor

from granvit.draw import PALETTE
from granvit.model.packing import IGNORE
from granvit.nano.drawing import SymbolicReader
from granvit.nano.symbolic import SymbolicPrepare
from granvit.regions import Region, RegionImage
from granvit.train.config import CroppedSample, SampleConfig
from granvit.train.debug.first_batch import GAP, PICTURE, BatchReader, _panel, draw_batch
from granvit.train.loop import LoopConfig, train
from granvit.train.prepare import Prepare

BOX = (20.0, 10.0, 80.0, 40.0)  # of an image of 100 x 50 pixels


def record(text="small red star", box=BOX):
    buffer = io.BytesIO()
    Image.new("RGB", (100, 50), "black").save(buffer, "PNG")
    return RegionImage("a/1", buffer.getvalue(), 100, 50, [Region(box, text)], caption="a night without stars")


def batch_of(model, kind=Prepare, **settings):
    questions = {"global": 1.0, "bbox2caption": 1.0, "caption2bbox": 1.0}
    prepare = kind(model, CroppedSample(**{"questions": questions, **settings}))
    return prepare.collate([prepare(record(), np.random.default_rng(0))])


def drawn_at(panel, color):
    """Left, right and bottom of what is drawn in a colour on the canvas, as shares of its side."""
    canvas = np.asarray(panel)[:PICTURE, GAP : GAP + PICTURE]
    rows, columns = np.nonzero((canvas == ImageColor.getrgb(color)).all(-1))
    return columns.min() / PICTURE, (columns.max() + 1) / PICTURE, (rows.max() + 1) / PICTURE


@pytest.mark.parametrize("codec, near", [("decimal", 0.005), ("int1000", 0.005), ("loc:16", 0.06)])
@pytest.mark.parametrize("frame", ["image", "canvas"])
@pytest.mark.parametrize("fit", ["letterbox", "squash"])
def test_boxes_are_drawn_where_the_text_says(codec, near, frame, fit):
    model = make_model(codec=codec, frame=frame, fit=fit)
    panel = _panel(model, BatchReader(), batch_of(model), 9)
    bottom = (25 + 40) / 100 if fit == "letterbox" else 40 / 50
    assert drawn_at(panel, PALETTE[0]) == pytest.approx((0.2, 0.8, bottom), abs=near)


def test_a_frame_taken_for_the_other_shows():
    model = make_model(codec="decimal", frame="image")
    batch = batch_of(model)
    model.settings = replace(model.settings, frame="canvas")
    bottom = drawn_at(_panel(model, BatchReader(), batch, 9), PALETTE[0])[2]
    assert bottom == pytest.approx(75 / 100, abs=0.01), "0.8 of the picture's 50 rows would be at 0.65"


def test_a_symbolic_image_is_covered_where_its_boxes_are():
    model = make_model(codec="decimal")
    panel = _panel(model, SymbolicReader(), batch_of(model, SymbolicPrepare), 9)
    assert drawn_at(panel, PALETTE[0]) == pytest.approx((0.2, 0.8, 0.65), abs=0.005), "y, x, y, x is read as such"
    canvas = np.asarray(panel)[:PICTURE, GAP : GAP + PICTURE]
    assert (canvas[PICTURE // 2, PICTURE // 2] != 255).any() and (canvas[5, 5] == 255).all()


def written(monkeypatch, model, batch):
    """The texts on a picture of a batch."""
    texts = []
    write = "granvit.train.debug.first_batch.Sheet.write"
    monkeypatch.setattr(write, lambda sheet, text, color, number=0: texts.append((number, text)))
    draw_batch(model, batch)
    return texts


def test_all_questions_about_one_place_have_its_number(monkeypatch):
    model = make_model(codec="decimal")
    texts = written(monkeypatch, model, batch_of(model))
    box = "[0.200, 0.200, 0.800, 0.800]"
    assert texts[1:4] == [
        (1, f"{box}  →  small red star"),
        (1, f"small red star  →  {box}"),
        (0, "(whole image)  →  a night without stars"),
    ]
    assert sum("small red star" in text and "<|" in text for _, text in texts[4:]) == 2, "as the model reads it"


def test_answers_that_were_cut_and_boxes_that_cannot_be_read_are_reported(monkeypatch):
    model = make_model(codec="decimal")
    texts = [text for _, text in written(monkeypatch, model, batch_of(model, max_answer=5))]
    assert any(text.endswith("(cut)") for text in texts)
    assert any(text.startswith("NO BOX CAN BE READ: small red star") for text in texts)


def test_the_crops_of_the_teacher_stand_beside(monkeypatch):
    model = make_model(codec="decimal")
    plain, batch = batch_of(model), batch_of(model, crops=1, crop_size=32)
    batch.crops[:] = 7
    panels = [np.asarray(_panel(model, BatchReader(), b, 9)) for b in (plain, batch)]
    assert [int((panel == 7).all(-1).sum()) > 100 * 100 for panel in panels] == [False, True]
    dashed = panels[1][:PICTURE, GAP : GAP + PICTURE]
    assert (dashed == 255).all(-1).any() and not (panels[0][:PICTURE, GAP : GAP + PICTURE] == 255).all(-1)[60:].any()


def test_a_batch_of_many_images_and_questions_stays_small():
    model = make_model(codec="decimal")
    prepare = Prepare(model, SampleConfig({"bbox2caption": 1.0}, max_regions=40))
    many = record()
    many.regions = [Region((i, i, i + 9, i + 9), "word " * 60) for i in range(40)]
    batch = prepare.collate([prepare(many, np.random.default_rng(0)) for _ in range(8)])
    picture = draw_batch(model, batch)
    assert picture.width == 1248 and picture.height < 9000


class Shown(TinyStage):
    def picture(self, batch):
        assert (batch.labels != IGNORE).any()
        self.pictures = [*getattr(self, "pictures", []), batch.ids]
        return Image.new("RGB", (30, 20), "red")


def test_a_run_draws_its_first_batch_once_and_not_when_it_is_resumed(tmp_path):
    config = LoopConfig(steps=2, batch_size=4, log_every=1, accumulate=2)
    stage = Shown()
    train(stage, make_feed(4), config, tmp_path, device="cpu")
    assert stage.pictures == [stage.seen[0]]
    assert Image.open(tmp_path / "first_batch.png").size == (30, 20)
    events = b"".join(file.read_bytes() for file in (tmp_path / "tensorboard").rglob("*tfevents*"))
    assert b"first_batch" in events and b"PNG" in events
    again = Shown()
    train(again, make_feed(4), config, tmp_path, device="cpu")
    off = Shown()
    train(off, make_feed(4), replace(config, first_batch=False, trackers=()), tmp_path / "off", device="cpu")
    assert not hasattr(again, "pictures") and not hasattr(off, "pictures")
    assert not (tmp_path / "off" / "first_batch.png").exists()
    assert json.loads((tmp_path / "history.jsonl").read_text().splitlines()[0])["step"] == 1
