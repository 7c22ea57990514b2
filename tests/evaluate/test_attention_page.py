import base64
import io
import json
import re

import numpy as np
import pytest
from helpers.tiny_model import make_model, make_tower
from PIL import Image

from granvit.corpus.synthetic.scenes import encode
from granvit.evaluate import attention, attention_page
from granvit.evaluate.attention import attend_box, patch_weights
from granvit.evaluate.attention_mass import attention_mass
from granvit.evaluate.attention_page import canvas_in_image, located_figure, seen_figure, write_mass, write_picture
from granvit.evaluate.patch_encoder import PatchEncoder
from granvit.page import data_uri, percent
from granvit.regions import Region, RegionImage

BOX = (10.0, 10.0, 60.0, 50.0)


@pytest.fixture(scope="module")
def encoders():
    bare = PatchEncoder("<bare> & alone", make_tower(seed=2), ([0.5] * 3, [0.5] * 3))
    return [bare, PatchEncoder.of(make_model(), "whole")]


@pytest.fixture
def picture(monkeypatch):
    monkeypatch.setattr(attention, "LONGEST_DESCRIPTION", 3)
    monkeypatch.setattr("granvit.predict.LONGEST_BOX", 3)
    return Image.effect_noise((96, 64), 90).convert("RGB")


def test_a_picture_gives_a_page_and_pngs(encoders, picture, tmp_path):
    page = write_picture(tmp_path, picture, encoders, [BOX], [(70, 30)], ["small red star", "tea"], "A <title>")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"attend.html", "encoders.png", "heads-1.png", "heads-2.png", "words-2.png", "located.png"}
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as png:
            assert np.asarray(png.convert("L")).std() > 10, path.name
    text = page.read_text()
    assert "A &lt;title&gt;" in text and "&lt;bare&gt; &amp; alone" in text and "<bare>" not in text
    assert not re.search(r"""(src|href)=["'](?!data:)""", text) and "url(" not in text
    seen = attend_box(encoders[0], picture, BOX)
    assert percent(seen.inside["attention"]) in text and percent(seen.chance) in text


def test_the_page_can_be_asked_for_every_patch(encoders, picture, tmp_path):
    text = write_picture(tmp_path, picture, encoders, [BOX]).read_text()
    viewers = json.loads(re.search(r"const viewers = (\[.*?\]), ramp = ", text)[1])
    output = encoders[0].encode(encoders[0].show([picture]))
    weights = patch_weights(output)["attention"].numpy() * (1 - np.eye(16))
    held = np.frombuffer(base64.b64decode(viewers[0]["maps"]["attention"]), np.uint8).reshape(16, 16)
    np.testing.assert_allclose(held / 255, weights / weights.max(1, keepdims=True), atol=0.003)
    assert viewers[0]["at"] == [35, 30] and viewers[0]["canvas"] == [0, -16, 96, 80]


def test_without_a_checkpoint_nothing_is_said_or_located(encoders, picture, tmp_path):
    write_picture(tmp_path, picture, encoders[:1], [], [(5, 5)], ["small red star"])
    assert {path.name for path in tmp_path.iterdir()} == {"attend.html", "encoders.png", "heads-1.png"}


@pytest.mark.filterwarnings("error")
def test_prices_are_no_formulas(encoders, picture):
    name = "$5^{ to $6 " + chr(26)
    assert seen_figure(picture, [(name, BOX)], encoders[:1], [[attend_box(encoders[0], picture, BOX)]]).width > 300
    assert located_figure(picture, [name], [None], {name: [None]}).width > 100


@pytest.mark.parametrize(("size", "canvas"), [((200, 100), (0, -50, 200, 150)), ((30, 90), (-30, 0, 60, 90))])
def test_a_map_lies_where_its_canvas_does(encoders, size, canvas):
    assert canvas_in_image(encoders[0], size) == pytest.approx(canvas)


def test_the_numbers_of_a_corpus_and_its_examples(encoders, picture, tmp_path):
    regions = [Region(BOX, "small red star"), Region((0.0, 0.0, 96.0, 64.0), "tea", kind="text")]
    records = [RegionImage(f"image{n}", encode(picture), 96, 64, regions) for n in range(3)]
    report = attention_mass(encoders, records, progress=False)
    page = write_mass(tmp_path, report, encoders, records[:1])
    text, plain = page.read_text(), json.loads((tmp_path / "attention-mass.json").read_text())
    share = plain["shares"]["object"][attention_page.HEADLINES[0]]["whole"]
    assert percent(share["value"]) in text and f"{100 * share['change']['value']:+.1f} points" in text
    assert "From object regions" in text and "From text regions" in text and "image0" in text
    assert (tmp_path / "example1-encoders.png").exists() and (tmp_path / "example1-located.png").exists()


def test_a_figure_longer_than_a_webp_can_be_is_shown_smaller():
    encoded = data_uri(Image.new("RGB", (20, 20_000), "red")).partition(",")[2]
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as shown:
        assert shown.height == 16_383 and shown.getpixel((5, 9_000))[0] > 200
