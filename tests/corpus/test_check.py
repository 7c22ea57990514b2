"""The gate: what is set aside, what is mended, and that the account of it is complete."""

import io
import json
import math
import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from granvit.corpus.check import MAX_TEXT, Quarantine, Rejection, check_record, read_quarantine
from granvit.corpus.layout import CorpusError
from granvit.errors import GranvitError
from granvit.regions import Region, RegionImage

WIDTH, HEIGHT = 40, 30


def encoded(size=(WIDTH, HEIGHT), fmt="PNG", mode="RGB", **options) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, fmt, **options)
    return buffer.getvalue()


def record(*regions: Region, **changes) -> RegionImage:
    return replace(RegionImage("a/1.png", encoded(), WIDTH, HEIGHT, list(regions), uri="1.png"), **changes)


GOOD = Region((1, 2, 11, 12), "a cup", alternatives=["cup"], polygon=[1, 2, 11, 2, 11, 12], score=0.25)


def test_a_good_record_passes_unchanged():
    checked = check_record(record(GOOD, caption="A table."))
    assert checked.record == record(GOOD, caption="A table.")
    assert not checked.rejections
    assert not +checked.changes


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"box": (11, 2, 1, 12)}, "inverted"),
        ({"box": (1, 12, 11, 2)}, "inverted"),
        ({"box": (math.nan, 2, 11, 12)}, "bad-box"),
        ({"box": (1, 2, math.inf, 12)}, "bad-box"),
        ({"box": (1, 2, 1e300, 12)}, "bad-box"),
        ({"box": (1, 2, 3)}, "bad-box"),
        ({"box": (41, 2, 50, 12)}, "outside"),
        ({"box": (-9, 2, 0, 12)}, "outside"),
        ({"box": (1, 30, 11, 40)}, "outside"),
        ({"box": (5, 2, 5, 12)}, "degenerate"),
        ({"box": (5, 2, 5.9, 12)}, "degenerate"),
        ({"box": (39.5, 2, 60, 12)}, "degenerate"),
        ({"text": " \t\n"}, "empty-text"),
        ({"text": "\0\x07"}, "empty-text"),
        ({"text": "x" * (MAX_TEXT + 1)}, "long-text"),
        ({"kind": "face"}, "bad-kind"),
        ({"kind": ["object"]}, "bad-kind"),
        ({"score": math.nan}, "bad-score"),
        ({"score": 1.5}, "bad-score"),
    ],
)
def test_a_bad_region_is_set_aside_and_its_image_stays(changes, reason):
    checked = check_record(record(GOOD, replace(GOOD, **changes), GOOD))
    assert checked.record == record(GOOD, GOOD)
    assert [(r.reason, r.region, r.id, r.uri) for r in checked.rejections] == [(reason, 1, "a/1.png", "1.png")]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"width": HEIGHT, "height": WIDTH}, "size-mismatch"),
        ({"width": 0}, "size-mismatch"),
        ({"image": encoded()[:60]}, "truncated"),
        ({"image": b"<html>"}, "not-an-image"),
        ({"image": b""}, "not-an-image"),
        ({"image": encoded((1, 1)), "width": 1, "height": 1}, "too-small"),
        ({"image": None, "width": 0, "height": 0}, "no-size"),
        ({"image": None, "width": 100_000, "height": 100_000}, "no-size"),
        ({"id": ""}, "no-id"),
        ({"id": "a\0b"}, "bad-name"),
        ({"uri": "caf\udce9.png"}, "bad-name"),
        ({"split": "testA"}, "bad-split"),
    ],
)
def test_an_untrustworthy_image_is_set_aside_whole(changes, reason):
    checked = check_record(record(GOOD, **changes))
    assert checked.record is None
    assert [(r.reason, r.region) for r in checked.rejections] == [(reason, None)]


def test_size_is_that_of_the_upright_image():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded((HEIGHT, WIDTH), "JPEG", exif=exif)
    assert check_record(record(GOOD, image=turned)).record is not None
    as_stored = check_record(record(GOOD, image=turned, width=HEIGHT, height=WIDTH))
    assert [r.reason for r in as_stored.rejections] == ["size-mismatch"]


def test_an_unknown_size_is_filled_in():
    assert check_record(record(GOOD, width=0, height=0)).record == record(GOOD)


def test_a_url_only_record_is_judged_by_its_declared_size():
    assert check_record(record(GOOD, image=None)).record == record(GOOD, image=None)


def test_a_partly_visible_box_is_clipped_and_counted():
    checked = check_record(record(replace(GOOD, box=(-5, 2, 11, 99))))
    assert checked.record.regions == [replace(GOOD, box=(0, 2, 11, HEIGHT))]
    assert checked.changes["clipped"] == 1
    assert not checked.rejections


def test_control_characters_go_and_everything_else_stays():
    kept = "né — 日本\tb\nc 👩‍🚀"
    checked = check_record(record(replace(GOOD, text=" a\0\x1b\x9f\ud800b\r\n" + kept + " "), caption="x\0y"))
    assert checked.record.regions[0].text == "ab\n" + kept
    assert checked.record.caption == "xy"
    assert checked.changes["cleaned"] == 2


def test_text_of_the_longest_length_passes():
    assert check_record(record(replace(GOOD, text="x" * MAX_TEXT))).rejections == []


def test_an_ignored_region_needs_no_text():
    ignored = replace(GOOD, text="", ignore=True)
    assert check_record(record(ignored)).record.regions == [ignored]


def test_unusable_details_are_dropped_and_counted():
    odd = replace(GOOD, alternatives=["cup", "", "a cup", "cup", "x" * 9999], polygon=[1, 2, math.nan, 4, 5, 6])
    checked = check_record(record(odd))
    assert checked.record.regions == [replace(GOOD, alternatives=["cup"], polygon=None)]
    assert checked.changes == {"alternative-dropped": 2, "polygon-dropped": 1, "clipped": 0, "cleaned": 0}


def test_the_input_is_not_modified():
    original = record(replace(GOOD, box=(-5, 2, 11, 99), text="a\0"))
    check_record(original)
    assert original == record(replace(GOOD, box=(-5, 2, 11, 99), text="a\0"))


anything = st.floats() | st.integers(-100, 100)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.tuples(anything, anything, anything, anything), st.text(max_size=5)), max_size=6))
def test_nothing_is_lost_and_what_passes_once_passes_unchanged_again(found):
    regions = [Region(box, text) for box, text in found]
    checked = check_record(record(*regions))
    assert len(checked.record.regions) + len(checked.rejections) == len(regions)
    again = check_record(checked.record)
    assert again.record == checked.record
    assert not again.rejections
    assert not +again.changes
    for region in checked.record.regions:
        x1, y1, x2, y2 = np.float32(region.box)
        assert 0 <= x1 <= x2 - 1
        assert x2 <= WIDTH
        assert 0 <= y1 <= y2 - 1
        assert y2 <= HEIGHT


def test_the_account_is_readable_and_counted(tmp_path):
    rejections = [
        Rejection("inverted", "a/1.png", "1.png", 3, "box (1, 2)"),
        Rejection("bad-name", "caf\udce9", "x", None, "日本"),
        Rejection("inverted"),
    ]
    with Quarantine(tmp_path / "quarantine.jsonl") as quarantine:
        quarantine.add(rejections[0])
        early = (tmp_path / "quarantine.jsonl").read_text()
        for rejection in rejections[1:]:
            quarantine.add(rejection)
    assert json.loads(early) == {
        "id": "a/1.png",
        "uri": "1.png",
        "region": 3,
        "reason": "inverted",
        "detail": "box (1, 2)",
    }
    assert read_quarantine(tmp_path / "quarantine.jsonl") == rejections
    assert quarantine.reasons == {"inverted": 2, "bad-name": 1}


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"id": "a"}', '{"reason": 5}', '{"reason": "a", "region": "1"}', '{"reason": "a", "regions": null}',
     '{"reason": "a", "more": 1}', "[" * 100_000, "1" * 5000, "\udcff"],
)  # fmt: skip
def test_a_damaged_account_is_reported_with_its_line(tmp_path, line):
    file = tmp_path / "quarantine.jsonl"
    file.write_bytes(b'{"reason": "inverted"}\n' + line.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(CorpusError, match=r"quarantine.jsonl:2: damaged: "):
        read_quarantine(file)


def test_a_pipe_in_place_of_an_account_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "quarantine.jsonl")
    with pytest.raises(GranvitError, match="not a regular file"):
        read_quarantine(tmp_path / "quarantine.jsonl")
