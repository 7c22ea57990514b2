"""Conversations with boxes in them: whose they are, and relative to what."""

import json

import pytest
from helpers.importing import bring, save

from granvit.corpus.importers import import_corpus
from granvit.corpus.store import CorpusError
from granvit.questions import GLOBAL
from granvit.regions import Region

DESCRIBE = "Please provide a short description for this region: "
FIND = "Please provide the bounding box coordinate of the region this sentence describes: "


def entry(*turns, image="vg/VG_100K/2.jpg"):
    said = [part for q, a in turns for part in ({"from": "human", "value": q}, {"from": "gpt", "value": a})]
    said[0]["value"] = "<image>\n" + said[0]["value"]
    return {"id": "VG_100K/2", "image": image, "conversations": said}


def llava(folder, *entries, name="mix.json"):
    save(folder / "vg/VG_100K/2.jpg", (40, 20))
    text = json.dumps(entries) if name.endswith(".json") else "".join(json.dumps(e) + "\n" for e in entries)
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize("name", ["mix.json", "mix.jsonl"])
def test_regions_are_asked_about_or_answered_with(tmp_path, name):
    src = llava(
        tmp_path,
        entry(
            ("What is this?", "A street."),
            (DESCRIBE + "[0.25, 0.5, 0.5, 1.0]", "the red car: parked"),
            (FIND + "sign: [no] parking", "[0.0, 0.0, 0.1, 0.25]"),
            (DESCRIBE + "[0, 0, 0.5, 0.5]", "see [1, 2] and [30, 31, 32, 33]"),
            (FIND + "see [1, 2] and [30, 31, 32, 33]", "[0, 0, 0.5, 0.5]"),
            ("What does [30, 31] say?", "[5, 6]"),
        ),
        entry((GLOBAL, "A street with a car."), (FIND + "the red car: parked", "[0.25, 0.5, 0.5, 1.0]")),
        {"id": "text", "conversations": []},
        name=name,
    )
    [got], refused = bring("llava", src, tmp_path / "out", frame="image")
    assert (got.id, got.caption, got.split) == ("llava/vg/VG_100K/2.jpg", "A street with a car.", "train")
    assert got.regions == [
        Region((10, 10, 20, 20), "the red car: parked"),
        Region((0, 0, 4, 5), "sign: [no] parking"),
        Region((0, 0, 20, 10), "see [1, 2] and [30, 31, 32, 33]"),
    ]
    assert refused == []


@pytest.mark.parametrize(
    ("frame", "coordinates", "written", "box"),
    [
        ("image", "decimal", "[0.25, 0.5, 0.75, 0.75]", (10, 10, 30, 15)),
        ("canvas", "decimal", "[0.25, 0.5, 0.75, 0.75]", (10, 10, 30, 20)),  # 10 pixels of padding above and below
        ("image", "int1000", "[250, 500, 750, 750]", (10, 10, 30, 15)),
        ("canvas", "int1000", "[250, 500, 750, 750]", (10, 10, 30, 20)),
        ("image", "loc:8", "<loc0000><loc0000><loc0007><loc0007>", (0, 0, 40, 20)),
    ],
)
def test_what_boxes_are_relative_to_is_said_by_the_caller(tmp_path, frame, coordinates, written, box):
    src = llava(tmp_path, entry((DESCRIBE + written, "a dog")))
    [got], _ = bring("llava", src, tmp_path / "out", frame=frame, coordinates=coordinates)
    assert got.regions == [Region(box, "a dog")]
    with pytest.raises(CorpusError, match='say what the boxes are relative to, with frame "image" or "canvas"'):
        bring("llava", src, tmp_path / "other", coordinates=coordinates)
    with pytest.raises(CorpusError, match="unknown coordinate codec 'pixels'"):
        bring("llava", src, tmp_path / "other", frame=frame, coordinates="pixels")


def test_boxes_that_cannot_be_used(tmp_path):
    src = llava(
        tmp_path,
        entry(
            ("Where are the dogs?", "[0.1, 0.1, 0.2, 0.2]"),  # whose phrase?
            ("Compare [0.1, 0.1, 0.2, 0.2] and [0.3, 0.3, 0.4, 0.4].", "Both are dogs."),
            ("What is in it?", "A dog [0.5, 0.5, 0.6, 0.6] on a bed."),
            (DESCRIBE + "[0.5, 0.5, 1.4, 0.6]", "beyond"),
            (DESCRIBE + "[0.5, 0.5, 0.6, -1]", "below"),
            (FIND + "inverted", "[0.6, 0.6, 0.5, 0.5]"),
            (DESCRIBE + "[0.1, 0.2, 0.3, 0.4]", ""),
            (DESCRIBE + "[0.1, 0.2, 0.3, 0.4]", "kept"),
        ),
    )
    [got], refused = bring("llava", src, tmp_path / "out", frame="image")
    assert [r.text for r in got.regions] == ["kept"]
    assert [(r.reason, r.region) for r in refused] == [
        ("empty-text", 0), ("empty-text", 1), ("empty-text", 2), ("bad-box", 3), ("bad-box", 4), ("bad-box", 5),
        ("empty-text", 6),
    ]  # fmt: skip


def test_damaged_entries(tmp_path):
    good = entry((DESCRIBE + "[0.1, 0.2, 0.3, 0.4]", "kept"))
    src = llava(
        tmp_path,
        good,
        good | {"conversations": good["conversations"][:1]},
        good | {"conversations": good["conversations"][::-1]},
        good | {"conversations": "hello"},
        good | {"image": ["a.jpg", "b.jpg"]},
        entry(("Hi", "Hi"), image="gone.jpg"),
        entry(("Hi", "Hi"), image="../secret.jpg"),
        7,
        name="mix.jsonl",
    )
    with src.open("a") as file:
        file.write('\n{"id": "cut off')
    [got], refused = bring("llava", src, tmp_path / "out", frame="image")
    assert len(got.regions) == 1
    assert [r.reason for r in refused] == [
        "bad-field", "bad-field", "missing-field", "several-images", "not-json", "not-json", "missing-image",
        "path-outside",
    ]  # fmt: skip
    with pytest.raises(CorpusError, match="a list of conversations is expected"):
        (tmp_path / "object.json").write_text("{}")
        bring("llava", tmp_path / "object.json", tmp_path / "other", frame="image")


def test_what_a_record_has_no_place_for_is_counted(tmp_path):
    src = llava(
        tmp_path,
        entry((DESCRIBE + "[0.1, 0.2, 0.3, 0.4]", "kept"), ("What colour is it?", "Red."), ("And now?", "Blue.")),
        {"id": "text", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        entry((GLOBAL, "A cup."), (GLOBAL, "A mug.")),
        entry(("Hi", "Hi")) | {"image": ["vg/VG_100K/2.jpg"]},
        entry((DESCRIBE + "[0.1, 0.2, 0.3, 0.4]", "lost"), image="gone.jpg"),
    )
    summary = import_corpus("llava", src, tmp_path / "out", frame="image")
    assert summary.left_out == {
        "turns of a conversation without a box": 3, "entries without a picture": 1, "further captions of a picture": 1
    }  # fmt: skip
    assert (summary.regions_seen, summary.regions_written, summary.regions_with_image) == (2, 1, 1)
    assert "left out           3  turns of a conversation without a box" in str(summary)
