import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.tiny_model import make_model, make_tower
from PIL import Image

from granvit.corpus.synthetic.scenes import encode
from granvit.evaluate.attention import attend_box
from granvit.evaluate.attention_mass import ATTENTION, CONTRAST, WORDS, attention_mass
from granvit.evaluate.patch_encoder import PatchEncoder
from granvit.images import decode
from granvit.regions import Region, RegionImage


@pytest.fixture(scope="module")
def encoder():
    return PatchEncoder.of(make_model(), "whole")


def record(name, *regions, size=(96, 64)):
    pixels = np.random.default_rng(len(regions)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return RegionImage(name, encode(Image.fromarray(pixels)), *size, list(regions))


@pytest.fixture(scope="module")
def records():
    big, wide = (0.0, 0.0, 60.0, 60.0), (20.0, 10.0, 90.0, 50.0)
    return [
        record("a", Region(big, "small red star"), Region((10.0, 10.0, 14.0, 14.0), "tea"), Region(wide, "tea")),
        record("b", Region(wide, "TOTAL 12.50", kind="text"), Region(big, "crowd", ignore=True)),
        record("c"),
        record("d", Region(wide, "two green rings")),
    ]


def test_it_is_the_mean_of_what_is_seen_from_each_region(encoder, records):
    report = attention_mass([encoder], records, progress=False)
    assert (report.images, report.regions, report.too_small) == (4, {"object": 3, "text": 1}, 1)
    each = [
        attend_box(PatchEncoder("bare", encoder.tower, ([0.5] * 3, [0.5] * 3)), decode(r.image), region.box)
        for r, region in [(records[0], records[0].regions[0]), (records[0], records[0].regions[2])]
        + [(records[3], records[3].regions[0])]
    ]
    for row, name in ((ATTENTION, "attention"), (CONTRAST, "contrast")):
        [share] = report.shares["object"][row]
        assert share.inside.value == pytest.approx(np.mean([seen.inside[name] for seen in each]))
        assert share.inside.low <= share.inside.value <= share.inside.high and share.change is None
        assert share.chance == pytest.approx(np.mean([seen.chance for seen in each]))
    # One image of text allows no interval.
    assert report.shares["text"][ATTENTION][0].inside.low is None


def test_tiles_of_an_image_are_drawn_together(encoder, records):
    of_one = [replace(r, id=f"page@{n},0,64") for n, r in enumerate(records)]
    report, alone = (attention_mass([encoder], some, progress=False).shares["object"] for some in (of_one, records))
    assert report[ATTENTION][0].inside.value == pytest.approx(alone[ATTENTION][0].inside.value)
    assert report[ATTENTION][0].inside.low is None and alone[ATTENTION][0].inside.low is not None


def test_encoders_are_compared_on_the_same_regions(encoder, records):
    colors = ([0.5] * 3, [0.5] * 3)
    same = PatchEncoder("same", encoder.tower, colors)
    finer = PatchEncoder("finer", make_tower(canvas=128, seed=3), colors)
    report = attention_mass([encoder, same, finer], records, progress=False)
    first, again, other = report.shares["object"][ATTENTION]
    assert again.change == (0, 0, 0) and again.inside == first.inside
    assert other.change.value == pytest.approx(other.inside.value - first.inside.value)
    # Words are those of a language model; a bare encoder has none.
    words = report.shares["object"][WORDS]
    assert words[0].chance == pytest.approx(np.mean([3600, 2800, 2800]) / (96 * 64), abs=1e-6)
    assert words[1:] == [None, None]
    plain = json.loads(json.dumps(report.to_json()))
    assert plain["shares"]["object"][ATTENTION]["same"]["change"]["value"] == 0
    assert plain["shares"]["object"]["encoder attention, layer 1, head 2"]["finer"]["value"] > 0


def test_nothing_to_measure_is_reported(encoder, records):
    with pytest.raises(ValueError, match="1 images with 0 regions"):
        attention_mass([encoder], [records[2]], progress=False)
    with pytest.raises(ValueError, match="2 images with 1 regions, all smaller"):
        tiny = record("e", Region((10.0, 10.0, 14.0, 14.0), "tea"))
        attention_mass([encoder], [records[2], tiny, records[0]], limit=2, progress=False)
