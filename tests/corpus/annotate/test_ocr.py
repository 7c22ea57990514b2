"""Text on a drawn page is read where it was drawn: lines, words, tilted, downwards, enlarged."""

import math
from functools import cache

import cv2
import numpy as np
import pytest
from helpers.text_page import LINES, page
from PIL import Image, ImageDraw, ImageFont

from granvit import geometry
from granvit.corpus.annotate.base import AnnotateError, Item
from granvit.corpus.annotate.ocr import OcrConfig, words_of
from granvit.regions import Region, RegionImage

pytest.importorskip("rapidocr")


def item(picture: Image.Image) -> Item:
    stale = Region((0, 0, 9, 9), "stale")
    return Item(RegionImage("page", None, *picture.size, [stale]), picture)


@cache
def reader(**settings):
    """Loaded once for each way of reading; it keeps nothing of a page."""
    return OcrConfig(**settings).build()


def read(picture: Image.Image, **settings) -> Item:
    return reader(**settings)([item(picture)])[0]


def test_lines_are_read_where_they_were_drawn():
    picture, lines, _ = page()
    regions = read(picture).record.regions
    assert [region.text for region in regions] == list(LINES)
    for region, line in zip(regions, lines, strict=True):
        assert geometry.iou(region.box, line)[0, 0] > 0.6
        assert region.kind == "text" and region.score > 0.9
        assert region.box_by == region.text_by == "rapidocr:PP-OCRv6-small"


def test_a_page_larger_than_the_detector_sees_keeps_its_own_pixels():
    picture, lines, _ = page(scale=4)
    regions = read(picture, max_side=736).record.regions
    assert [region.text for region in regions] == list(LINES)
    assert np.diag(geometry.iou([region.box for region in regions], lines)).min() > 0.6


def test_words_lie_in_their_line_and_apart():
    picture, _, words = page()
    regions = read(picture, level="word").record.regions
    assert [region.text for region in regions] == " ".join(LINES).split()
    first = [region.box for region in regions[:3]]
    assert np.diag(geometry.iou(first, words)).min() > 0.6
    assert geometry.intersection(first, first)[np.triu_indices(3, 1)].max() == 0
    both = read(picture, level="both").record.regions
    assert [region.text for region in both][:5] == [LINES[0], *LINES[0].split(), LINES[1]]


def test_tilted_text_has_an_outline():
    picture, lines, words = page()
    tilted = picture.rotate(8, fillcolor="white")

    def turned(box):
        """The corners of a box after turning the page around its centre, from the top left clockwise."""
        x1, y1, x2, y2 = box
        cos, sin = math.cos(math.radians(8)), math.sin(math.radians(8))
        corners = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]]) - [320, 170]
        return corners @ np.array([[cos, -sin], [sin, cos]]) + [320, 170]

    for level, drawn in (("line", lines), ("word", words)):
        regions = read(tilted, level=level).record.regions
        for region, box in zip(regions, drawn, strict=False):
            assert np.abs(np.reshape(region.polygon, (4, 2)) - turned(box)).max() < 12
            assert region.box == pytest.approx(geometry.hull(region.polygon))


def test_text_written_downwards_is_split_downwards():
    across = Image.new("RGB", (300, 60), "white")
    ImageDraw.Draw(across).text((10, 8), "VERTICAL LINE", fill="black", font=ImageFont.load_default(36))
    picture = Image.new("RGB", (300, 400), "white")
    picture.paste(across.rotate(-90, expand=True), (120, 50))
    vertical, line = read(picture, level="word").record.regions
    assert (vertical.text, line.text) == ("VERTICAL", "LINE")
    assert vertical.box[3] < line.box[1] + 3 and vertical.box[3] - vertical.box[1] > line.box[3] - line.box[1]


def test_a_blank_page_has_no_regions_and_an_unsure_line_is_refused():
    assert read(Image.new("RGB", (200, 200), "white")).record.regions == []
    unsure = read(page()[0], text_score=1.1)
    assert unsure.record.regions == []
    assert [(r.reason, r.region) for r in unsure.rejections] == [("low-text-score", n) for n in range(3)]


def test_a_picture_that_the_engine_cannot_cut_is_refused(monkeypatch):
    """And where it cannot cut a plain one either, it is broken, and says so."""
    annotator = OcrConfig().build()
    engine = annotator._reader._engine
    cut = engine.detect_and_crop

    def fussy(image, scaling):
        if image.shape[:2] != (256, 256):
            raise cv2.error("no such size")
        return cut(image, scaling)

    monkeypatch.setattr(engine, "detect_and_crop", fussy)
    (refused,) = annotator([item(page()[0])])
    assert [(r.reason, r.detail) for r in refused.rejections] == [("ocr-failed", "error: no such size")]
    assert refused.record.regions == []
    monkeypatch.setattr(engine, "detect_and_crop", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        annotator([item(page()[0])])


@pytest.mark.parametrize("size", [(9000, 8), (8, 9000), (30, 4000), (20, 20)])
def test_a_blank_strip_however_thin_holds_nothing(size):
    blank = read(Image.new("RGB", size, "white"))
    assert blank.record.regions == [] and blank.rejections == []


def clockwise(box, turned, size):
    """A box of a picture of `size` where it lies once the picture is turned clockwise."""
    (x1, y1, x2, y2), (width, height) = box, size
    return {
        0: (x1, y1, x2, y2),
        90: (height - y2, x1, height - y1, x2),
        180: (width - x2, height - y2, width - x1, height - y1),
        270: (y1, width - x2, y2, width - x1),
    }[turned]


@pytest.mark.parametrize("turned", [90, 180, 270])
def test_a_turned_page_is_read_and_its_boxes_are_of_the_page_as_it_is(turned):
    picture, lines, words = page()
    lying = picture.rotate(-turned, expand=True)
    annotated = read(lying)
    regions = annotated.record.regions
    assert [region.text for region in regions] == list(LINES)
    assert annotated.changes == {f"page-turned-{turned}": 1} and annotated.rejections == []
    right = [clockwise(box, turned, picture.size) for box in lines]
    assert np.diag(geometry.iou([region.box for region in regions], right)).min() > 0.6
    for region in regions:  # from the text's own top left: along its upper edge, then down its right one
        corners = np.reshape(region.polygon, (4, 2))
        along, down = corners[1] - corners[0], corners[3] - corners[0]
        angle = np.degrees(np.arctan2(along[1], along[0])) % 360
        assert angle == pytest.approx(turned, abs=3) and along[0] * down[1] - along[1] * down[0] > 0
        assert region.box == pytest.approx(geometry.hull(region.polygon))
    first = [region.box for region in read(lying, level="word").record.regions[:3]]
    assert np.diag(geometry.iou(first, [clockwise(box, turned, picture.size) for box in words])).min() > 0.6


@pytest.mark.parametrize(("degrees", "turned"), [(8, 0), (98, 90), (188, 180), (262, 270)])
def test_a_page_that_lies_askew_is_turned_by_the_nearest_quarter(degrees, turned):
    askew = read(page()[0].rotate(-degrees, fillcolor="white", expand=True))
    assert [region.text for region in askew.record.regions] == list(LINES)
    assert dict(askew.changes) == ({f"page-turned-{turned}": 1} if turned else {})
    for region in askew.record.regions:
        corners = np.reshape(region.polygon, (4, 2))
        along = corners[1] - corners[0]
        assert np.degrees(np.arctan2(along[1], along[0])) % 360 == pytest.approx(degrees, abs=3)


def test_a_page_is_not_turned_where_that_is_not_wanted():
    annotated = read(page()[0].rotate(180), any_way_up=False)
    assert annotated.changes == {} and [r.text for r in annotated.record.regions] != list(LINES)


def test_a_line_that_stands_on_its_head_is_read_and_the_page_stays():
    picture, lines, _ = page()
    x1, y1, x2, y2 = (int(v) for v in lines[2])
    spot = (x1 - 8, y1 - 8, x2 + 8, y2 + 8)
    picture.paste(picture.crop(spot).rotate(180), spot)
    annotated = read(picture)
    assert [region.text for region in annotated.record.regions] == list(LINES) and annotated.changes == {}
    first, _, last = annotated.record.regions
    assert np.reshape(first.polygon, (4, 2))[0] == pytest.approx(first.box[:2], abs=5)
    assert np.reshape(last.polygon, (4, 2))[0] == pytest.approx(last.box[2:], abs=5)


def strip(lines: list[str], length: int) -> Image.Image:
    picture = Image.new("RGB", (500, length), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(22)
    for number, text in enumerate(lines):
        draw.text((20, 10 + 40 * number), text, fill="black", font=font)
    return picture


NAMES = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliet")


def unspaced(regions) -> list[str]:
    return [region.text.replace(" ", "") for region in regions]


def test_a_long_strip_is_read_as_pages_that_fit_are():
    texts = [f"{NAMES[n % 10]} {NAMES[n // 10 % 10]} {100 + n}" for n in range(45)]
    whole = strip(texts, 1800)
    regions = read(whole).record.regions
    pages = [read(whole.crop((0, top, 500, top + 600))).record.regions for top in range(0, 1800, 600)]
    assert unspaced(regions) == [text.replace(" ", "") for text in texts]
    assert unspaced(regions) == [text for one in pages for text in unspaced(one)]
    boxes = [
        (x1, y1 + 600 * n, x2, y2 + 600 * n) for n, one in enumerate(pages) for x1, y1, x2, y2 in [r.box for r in one]
    ]
    assert np.diag(geometry.iou([region.box for region in regions], boxes)).min() > 0.7


@pytest.mark.slow
def test_a_strip_of_twelve_thousand_pixels_is_read_to_its_end():
    texts = [f"{NAMES[n % 10]} {NAMES[n // 10 % 10]} {100 + n}" for n in range(300)]
    assert unspaced(read(strip(texts, 12_000)).record.regions) == [text.replace(" ", "") for text in texts]


def test_lines_of_a_wide_banner_are_whole_however_often_windows_cut_them():
    texts = [" ".join(NAMES[(n + row) % 10] for n in range(24)) for row in range(2)]
    picture = Image.new("RGB", (2600, 120), "white")
    for row, text in enumerate(texts):
        ImageDraw.Draw(picture).text((20, 12 + 52 * row), text, fill="black", font=ImageFont.load_default(28))
    regions = read(picture).record.regions
    assert unspaced(regions) == [text.replace(" ", "") for text in texts]
    ends = [ImageDraw.Draw(picture).textlength(text, font=ImageFont.load_default(28)) + 20 for text in texts]
    assert [region.box[2] for region in regions] == pytest.approx(ends, abs=10)


@pytest.mark.slow
def test_print_that_a_large_scan_makes_too_small_is_read_from_nearer_by():
    picture = Image.new("RGB", (3600, 4400), "white")
    texts = [f"{NAMES[n % 10]} {NAMES[(n + 3) % 10]} {100 + n}" for n in range(40)]
    for n, text in enumerate(texts):
        ImageDraw.Draw(picture).text((200 + 1000 * (n % 3), 200 + 100 * n), text, "black", ImageFont.load_default(26))
    found = unspaced(read(picture).record.regions)
    right = [text.replace(" ", "") for text in texts]
    assert len(found) == 40 and len(set(right) & {text.lower() for text in found}) >= 38


@pytest.mark.parametrize("gap", [4, 16, 30])
def test_a_word_written_letter_below_letter_is_one_region(gap):
    picture, font, y = Image.new("RGB", (400, 760), "white"), ImageFont.load_default(36), 40
    draw = ImageDraw.Draw(picture)
    for letter in "RESTAURANT":
        x1, y1, x2, y2 = draw.textbbox((0, 0), letter, font=font)
        draw.text((200 - (x1 + x2) / 2, y - y1), letter, fill="black", font=font)
        y += y2 - y1 + gap
    (region,) = read(picture).record.regions
    assert region.text == "RESTAURANT"
    assert geometry.iou(region.box, (185, 40, 215, y - gap))[0, 0] > 0.6


def test_single_figures_of_a_table_are_no_word():
    picture, font = Image.new("RGB", (640, 400), "white"), ImageFont.load_default(30)
    draw = ImageDraw.Draw(picture)
    for row, name in enumerate(("apples", "pears", "plums", "cherries")):
        for x, text in ((60, str(row + 2)), (160, name), (500, f"{row + 3}.40")):
            draw.text((x, 50 + 50 * row), text, fill="black", font=font)
    found = [region.text for region in read(picture).record.regions]
    assert {"2", "3", "4", "5", "apples", "pears", "plums", "cherries"} <= set(found)


def test_words_of_a_line_by_hand():
    """Ten columns over 100 pixels: characters at columns 1, 2, 3 and at 6, 7, one column wide each."""

    class Cut:
        word_cols, words, line_txt_len = [[1, 2, 3], [6, 7]], [list("cat"), list("on")], 10
        confs = [0.9, 0.8, 0.7, 0.1, 0.6, 0.4]  # the fourth is the blank's

    line = np.array([[50, 20], [150, 20], [150, 40], [50, 40]], float)
    (cat, cat_text, cat_score), (on, on_text, on_score) = words_of(line, "cat on", Cut)
    assert geometry.hull(cat) == (60, 20, 90, 40) and geometry.hull(on) == (110, 20, 130, 40)
    assert (cat_text, on_text) == ("cat", "on")
    assert (cat_score, on_score) == pytest.approx((0.8, 0.5))


def test_a_missing_checkpoint_is_reported(tmp_path):
    with pytest.raises(AnnotateError, match="nowhere"):
        OcrConfig(recognizer=str(tmp_path / "nowhere")).build()
