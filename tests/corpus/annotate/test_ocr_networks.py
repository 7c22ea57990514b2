"""PP-OCR checkpoints of transformers, tiny and random, in RapidOCR's chain: what they put out lands where it should."""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from granvit.corpus.annotate.base import AnnotateError, Item
from granvit.corpus.annotate.ocr import OcrConfig
from granvit.regions import RegionImage

pytest.importorskip("rapidocr")
transformers = pytest.importorskip("transformers")

CHARACTERS = ["blank", "A", "B", "C", " "]
BLOCKS = [[[3, 8, 8, 1, True]], [[3, 8, 8, [2, 2], False]], [[3, 8, 16, [2, 2], False]], [[3, 16, 16, [2, 2], True]]]
LINE_BLOCKS = [[[3, 8, 8, 1, True]], [[3, 8, 8, 1, False]], [[3, 8, 16, [2, 1], False]], [[3, 16, 16, [2, 1], False]]]


def save(model, folder, processor) -> str:
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return str(folder)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A detector and a recognizer of a few thousand random weights."""
    torch.manual_seed(0)
    backbone = transformers.PPLCNetV4Config(
        block_configs=BLOCKS, stem_channels=[3, 4, 8], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    config = transformers.PPOCRV6SmallDetConfig(
        backbone_config=backbone, neck_out_channels=16, layer_list_out_channels=[8, 8, 16, 16]
    )
    detector = transformers.PPOCRV6SmallDetForObjectDetection(config)
    folder = tmp_path_factory.mktemp("checkpoints")
    colours = {"image_mean": [0.406, 0.456, 0.485], "image_std": [0.225, 0.224, 0.229]}
    det = save(detector, folder / "tiny_det", colours)
    lines = transformers.PPLCNetV4Config(block_configs=LINE_BLOCKS, stem_channels=[3, 4, 8], out_features=["stage4"])
    config = transformers.PPOCRV6SmallRecConfig(
        backbone_config=lines, hidden_size=16, num_attention_heads=2, head_out_channels=len(CHARACTERS)
    )
    recognizer = transformers.PPOCRV6SmallRecForTextRecognition(config)
    size = {"height": 48, "width": 320}
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    rec = save(recognizer, folder / "tiny_rec", {**half, "size": size, "character_list": CHARACTERS})
    return det, rec


def page() -> Image.Image:
    """Two black bars on white."""
    picture = Image.new("RGB", (400, 300), "white")
    ImageDraw.Draw(picture).rectangle((40, 60, 239, 99), fill="black")
    ImageDraw.Draw(picture).rectangle((40, 160, 339, 199), fill="black")
    return picture


def test_they_load_run_and_name_themselves(checkpoints):
    config = OcrConfig(detector=checkpoints[0], recognizer=checkpoints[1])
    assert config.name == "ppocr:tiny_det+tiny_rec"
    annotator = config.build()
    item = annotator([Item(RegionImage("page", None, 400, 300, []), page())])[0]
    assert all(set(region.text) <= set("ABC ") for region in item.record.regions)


def test_what_the_networks_put_out_lands_on_the_page(checkpoints, monkeypatch):
    """The detector's map is 1 where the page is black; the recognizer's probabilities spell CAB."""
    annotator = OcrConfig(detector=checkpoints[0], recognizer=checkpoints[1]).build()
    engine = annotator._reader._engine
    seen = {}

    def darkness(pixels):
        seen["blue_of_white"] = float(pixels[0, 0, 0, 0])
        return (pixels[:, :1] < 0).astype(np.float32)

    def spell(pixels):
        seen["line"] = pixels.shape
        columns = [0, 3, 0, 0, 1, 0, 2, 0]
        return np.repeat(np.eye(5, dtype=np.float32)[columns][None], len(pixels), 0)

    monkeypatch.setattr(engine.text_det, "session", darkness)
    monkeypatch.setattr(engine.text_rec, "session", spell)
    regions = annotator([Item(RegionImage("page", None, 400, 300, []), page())])[0].record.regions
    assert [region.text for region in regions] == ["CAB", "CAB"]
    # The map is grown by area * 1.5 / perimeter, as DB shrinks lines for training: 25 and 26 pixels here.
    drawn = [[40 - 25, 60 - 25, 240 + 25, 100 + 25], [40 - 26, 160 - 26, 340 + 26, 200 + 26]]
    assert np.abs(np.array([region.box for region in regions]) - drawn).max() < 6
    # Blue comes first, with the mean and deviation that are stated for it, last.
    assert seen["blue_of_white"] == pytest.approx((1 - 0.485) / 0.229, abs=1e-5)
    assert seen["line"][:3] == (2, 3, 48)


def test_the_networks_are_those_of_transformers(checkpoints):
    """The session's output is the stock model's own, for the detector and for the recognizer."""
    annotator = OcrConfig(detector=checkpoints[0], recognizer=checkpoints[1]).build()
    for name, height, session, auto in (
        (checkpoints[0], 64, annotator._reader._engine.text_det.session, transformers.AutoModelForObjectDetection),
        (checkpoints[1], 48, annotator._reader._engine.text_rec.session, transformers.AutoModelForTextRecognition),
    ):
        pixels = np.random.default_rng(0).normal(size=(1, 3, height, 320)).astype(np.float32)
        with torch.inference_mode():
            expected = auto.from_pretrained(name).eval()(pixel_values=torch.from_numpy(pixels)).last_hidden_state
        assert np.allclose(session(pixels), expected.numpy(), atol=1e-6)


def test_one_of_the_two_may_be_rapidocrs(checkpoints):
    config = OcrConfig(detector=checkpoints[0])
    assert config.name == "ppocr:tiny_det+PP-OCRv6-small"
    config.build()


def test_characters_that_do_not_fit_are_reported(checkpoints, tmp_path):
    model = transformers.AutoModelForTextRecognition.from_pretrained(checkpoints[1])
    bad = save(model, tmp_path / "bad", {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "character_list": ["blank"]})
    with pytest.raises(AnnotateError, match="1 characters for a network of 5"):
        OcrConfig(recognizer=bad).build()
    with pytest.raises(AnnotateError, match="no PP-OCR detection checkpoint"):
        OcrConfig(detector=checkpoints[1]).build()
