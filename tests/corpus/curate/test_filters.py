"""The filters: the paper's limits to the pixel, text held to other ones, repeated boxes, every reason told."""

from dataclasses import replace

import pytest

from granvit.corpus.curate.filters import (
    PRESETS,
    BoxFilter,
    Filters,
    ImageFilter,
    box_reasons,
    image_reason,
    nested_reasons,
    with_preset,
)
from granvit.regions import Region, RegionImage

THING, LINE = Region((0, 0, 200, 200), "thing"), Region((0, 0, 200, 10), "a line", "text")


def image(width: int, height: int, *regions: Region) -> RegionImage:
    return RegionImage("x", None, width, height, list(regions))


@pytest.mark.parametrize(
    ("size", "region", "reason"),
    [
        ((449, 449), THING, None),
        ((448, 900), THING, "short-side"),
        ((500, 1500), THING, None),
        ((500, 1501), THING, "image-aspect"),
        ((1501, 500), THING, "image-aspect"),
        ((225, 1800), LINE, None),
        ((224, 500), LINE, "short-side"),
        ((225, 1801), LINE, "image-aspect"),
    ],
)
def test_images(size, region, reason):
    assert image_reason(image(*size, region), Filters()) == reason


def test_an_image_is_a_text_image_only_if_all_that_counts_is_text():
    crowd = Region((0, 0, 9, 9), "", ignore=True)
    assert image_reason(image(300, 300, LINE, crowd), Filters()) is None
    assert image_reason(image(300, 300, LINE, THING), Filters()) == "short-side"
    assert image_reason(image(300, 300), Filters()) == "short-side"


@pytest.mark.parametrize(
    ("box", "kind", "score", "reason"),
    [
        ((0, 0, 100, 100), "object", None, "box-area"),
        ((0, 0, 100.5, 100), "object", None, None),
        ((0, 0, 300, 100), "object", None, None),
        ((0, 0, 301, 100), "object", None, "box-aspect"),
        ((0, 0, 100, 301), "object", None, "box-aspect"),
        ((0, 0, 200, 200), "object", 0.29, "score"),
        ((0, 0, 200, 200), "object", 0.3, None),
        ((0, 0, 400, 8), "text", None, None),
        ((0, 0, 401, 8), "text", None, "box-aspect"),
        ((0, 0, 100, 7.9), "text", None, "box-side"),
        ((0, 0, 30, 9), "text", 0.1, None),
    ],
)
def test_boxes(box, kind, score, reason):
    filters = Filters(object_box=BoxFilter(min_score=0.3))
    assert box_reasons([THING, Region(box, "x", kind, score), LINE], filters) == [None, reason, None]


def test_ignored_regions_pass():
    assert box_reasons([Region((0, 0, 1, 1), "", ignore=True)], Filters()) == [None]
    assert box_reasons([], Filters()) == []


def test_image_limits_are_settings():
    filters = Filters(object_image=ImageFilter(min_short_side=0, max_aspect=100))
    assert image_reason(image(10, 900, THING), filters) is None


def test_of_boxes_with_one_text_the_surest_and_largest_stays():
    regions = [
        Region((0, 0, 100, 100), "a dog", score=0.5),
        Region((2, 2, 100, 100), "A Dog", score=0.9),  # coincides with the first, surer
        Region((20, 20, 40, 40), "a dog", score=0.8),  # inside both
        Region((2, 2, 100, 100), "a brown dog", score=0.9),  # another text
        Region((200, 0, 300, 100), "a dog", score=0.1),  # elsewhere
        Region((2, 2, 100, 100), "a dog", "text"),  # another kind
        Region((2, 2, 100, 100), "a dog", ignore=True),
        Region((60, 60, 160, 160), "a dog", score=0.7),  # overlaps, neither coincides nor lies inside
    ]
    assert nested_reasons(regions) == ["same-box", None, "nested-box", None, None, None, None, None]


def test_human_boxes_are_surest():
    regions = [Region((0, 0, 100, 100), "a dog", score=0.99), Region((0, 0, 90, 100), "a dog")]
    assert nested_reasons(regions) == ["same-box", None]


def test_a_preset_sets_what_was_not_asked_for_otherwise():
    paper, photos = Filters(), PRESETS["photos"]
    assert with_preset(paper, "paper") == paper and with_preset(paper, "photos") == photos
    assert photos.object_image.min_short_side == 160 and photos.object_box.min_area == 1024
    asked = replace(paper, object_image=replace(paper.object_image, min_short_side=300), nested=False)
    chosen = with_preset(asked, "photos")
    assert (chosen.object_image.min_short_side, chosen.nested) == (300, False)
    assert chosen.object_box == photos.object_box


@pytest.mark.parametrize(("preset", "reason"), [("paper", "short-side"), ("photos", None), ("documents", None)])
def test_photographs_of_the_usual_size(preset, reason):
    photo = RegionImage("a", None, 500, 375, [Region((0, 0, 60, 60), "a dog")])
    assert image_reason(photo, PRESETS[preset]) == reason
    assert box_reasons(photo.regions, PRESETS[preset]) == ["box-area" if preset == "paper" else None]


def test_documents_may_be_long_strips():
    strip = RegionImage("a", None, 500, 12_000, [Region((0, 0, 400, 7), "TOTAL", "text")])
    assert image_reason(strip, PRESETS["paper"]) == "image-aspect" and image_reason(strip, PRESETS["documents"]) is None
    assert box_reasons(strip.regions, PRESETS["documents"]) == [None]
