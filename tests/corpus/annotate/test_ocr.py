"""Text on a drawn page is read where it was drawn: lines, words, tilted, downwards, enlarged."""

import math

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from granvit import geometry
from granvit.corpus.annotate.base import AnnotateError, Item
from granvit.corpus.annotate.ocr import OcrConfig, words_of
from granvit.regions import Region, RegionImage

pytest.importorskip("rapidocr")

LINES = ("Invoice number 20417", "Total amount 88.50 EUR", "Thank you")


def page(scale: int = 1) -> tuple[Image.Image, list[tuple[float, ...]], list[tuple[float, ...]]]:
    """A page with the boxes of its lines, and of the words of the first one."""
    picture = Image.new("RGB", (640 * scale, 340 * scale), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(36 * scale)
    lines, words = [], []
    for number, text in enumerate(LINES):
        corner = (60 * scale, (50 + 90 * number) * scale)
        draw.text(corner, text, fill="black", font=font)
        lines.append(draw.textbbox(corner, text, font=font))
    before = ""
    for word in LINES[0].split():
        corner = (60 * scale + draw.textlength(before, font=font), 50 * scale)
        words.append(draw.textbbox(corner, word, font=font))
        before += word + " "
    return picture, lines, words


def item(picture: Image.Image) -> Item:
    stale = Region((0, 0, 9, 9), "stale")
    return Item(RegionImage("page", None, *picture.size, [stale]), picture)


def read(picture: Image.Image, **settings) -> Item:
    return OcrConfig(**settings).build()([item(picture)])[0]


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


def test_a_picture_that_cannot_be_scaled_is_refused():
    thin = read(Image.new("RGB", (9000, 8), "white"))
    assert [r.reason for r in thin.rejections] == ["ocr-failed"] and thin.record.regions == []


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


def test_a_missing_checkpoint_is_told(tmp_path):
    with pytest.raises(AnnotateError, match="nowhere"):
        OcrConfig(recognizer=str(tmp_path / "nowhere")).build()
