"""The filters: the paper's limits to the pixel, text held to other ones, repeated boxes, every reason reported."""

from dataclasses import replace

import pytest

from granvit.corpus.curate.balance import Repeats
from granvit.corpus.curate.filters import (
    PRESETS,
    BoxFilter,
    Filters,
    ImageFilter,
    PassedImages,
    apply_filters,
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


def test_boxes_that_coincide_by_seven_tenths_do_not_yet():
    regions = [Region((0, 0, 100, 100), "a dog"), Region((0, 0, 70, 100), "a dog"), Region((0, 0, 71, 100), "a cat")]
    assert nested_reasons(regions) == [None, "nested-box", None]
    assert nested_reasons([regions[0], replace(regions[2], text="a dog")]) == [None, "same-box"]


def test_the_limits_of_documents_by_hand():
    documents = PRESETS["documents"]
    lines = [Region((0, 0, w, h), "x", "text") for w, h in ((9, 5.9), (9, 6), (600, 6), (601, 6))]
    things = [Region((0, 0, w, h), "x") for w, h in ((32, 32), (33, 32), (1650, 33), (1651, 33))]
    assert box_reasons(lines, documents) == ["box-side", None, None, "box-aspect"]
    assert box_reasons(things, documents) == ["box-area", None, None, "box-aspect"]
    assert image_reason(image(300, 12_000, THING), documents) is None
    assert image_reason(image(300, 12_001, LINE), documents) == "image-aspect"


def test_what_the_filters_make_of_images_in_a_row():
    thing, small, repeated = THING, Region((0, 0, 20, 20), "dust"), Region((0, 0, 199, 200), "Thing", score=0.5)
    ignored = Region((0, 0, 5, 5), "", ignore=True)
    images = [
        image(900, 900, small, thing, repeated, ignored),
        image(100, 900, thing, small),
        image(900, 900, small),
        image(900, 900, ignored),
        image(900, 900, thing),
    ] * 60  # more than one batch
    found = list(apply_filters(images, Filters()))[-5:]
    assert [f.reason for f in found] == [None, "short-side", "no-regions", "no-regions", None]
    assert [f.places for f in found] == [[1, 3], [], [], [0], [0]]
    assert [dict(f.regions) for f in found] == [{"box-area": 1, "same-box": 1}, {}, {"box-area": 1}, {}, {}]
    assert [r.text for r in found[0].record.regions] == ["thing", ""] and found[4].record is images[-1]
    few = list(apply_filters(images[:1], Filters(min_regions=2)))
    assert few[0].reason == "few-regions"
    both = list(apply_filters(images[:1], Filters(nested=False)))
    assert both[0].places == [1, 2, 3]


def test_of_copies_the_held_out_then_the_largest_then_the_first_stays():
    def named(name, side, split):
        return replace(image(side, side, THING), id=name, split=split)

    splits = [("a", 500, "train"), ("b", 600, "train"), ("c", 600, "train"), ("d", 500, "val"), ("e", 500, "test")]
    passed = PassedImages([named(*facts) for facts in splits], Filters(), Repeats(), seed=0)
    assert len(passed) == 5
    assert [passed.best(group) for group in ([0, 1, 2], [2, 1], [0, 3, 1], [3, 4, 2], [0])] == [1, 1, 3, 4, 0]
