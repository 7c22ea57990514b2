"""Words of TextOCR_0.1_train.json: three tables that refer to each other by ids."""

import json

import pytest
from importing import bring, save

from granvit.corpus.store import CorpusError
from granvit.regions import Region

IMAGE = {"width": 40, "height": 30, "set": "val", "file_name": "train/a4ea732cd3d5948a.jpg"}


def annotation(key, bbox, text, points=None):
    return {"id": key, "image_id": key.split("_")[0], "bbox": bbox, "utf8_string": text, "points": points, "area": 1.0}


def textocr(folder, **changes):
    save(folder / "train_images/a4ea732cd3d5948a.jpg")
    image = {"id": "a4ea732cd3d5948a", **IMAGE}
    anns = [
        annotation("a4ea732cd3d5948a_1", [5.5, 6, 10, 12], "Performance", [5.5, 7, 15.5, 6, 15.5, 17, 5.5, 18]),
        annotation("a4ea732cd3d5948a_2", [20, 6, 10, 12], "."),
    ]
    data = {
        "info": {"version": "0.1"},
        "imgs": {image["id"]: image},
        "anns": {row["id"]: row for row in anns},
        "imgToAnns": {image["id"]: [row["id"] for row in anns]},
        "cats": {},
        **changes,
    }
    (folder / "TextOCR_0.1_val.json").write_text(json.dumps(data))
    return folder / "TextOCR_0.1_val.json"


def test_words(tmp_path):
    [got], refused = bring("textocr", textocr(tmp_path / "data"), tmp_path / "out")
    assert (got.id, got.split, got.licence) == ("textocr/train_images/a4ea732cd3d5948a.jpg", "val", "CC BY 4.0")
    assert got.regions == [
        Region((5.5, 6, 15.5, 18), "Performance", "text", polygon=[5.5, 7, 15.5, 6, 15.5, 17, 5.5, 18]),
        Region((20, 6, 30, 18), ".", "text", ignore=True),
    ]
    assert refused == []


def test_damage(tmp_path):
    src = textocr(
        tmp_path / "data",
        imgs={
            "a4ea732cd3d5948a": IMAGE,
            "gone": {**IMAGE, "file_name": "train/gone.jpg"},
            "nameless": {},
            "turned": {**IMAGE, "width": 30, "height": 40, "file_name": "train/turned.jpg"},
        },
        anns={"a_1": annotation("a_1", [1, 1, "wide", 5], "x"), "a_2": annotation("a_2", [1, 1, 5, 5], None),
              "a_4": annotation("a_4", [1, 1, 5, 5], "kept")},
        imgToAnns={"a4ea732cd3d5948a": ["a_1", "a_2", "a_3", "a_4"], "unlisted": ["b_1"], "turned": []},
    )  # fmt: skip
    save(tmp_path / "data/train_images/turned.jpg")
    [got], refused = bring("textocr", src, tmp_path / "out")
    assert [r.text for r in got.regions] == ["kept"]
    assert [(r.reason, r.region) for r in refused] == [
        ("bad-box", 0), ("empty-text", 1), ("empty-text", 2), ("missing-image", None), ("missing-image", None),
        ("size-mismatch", None), ("unknown-image", 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imgs": []}, "'imgs' should be an object"),
        ({"imgs": {"a": 1}}, "every entry of 'imgs'"),
        ({"anns": None}, "'anns' should be an object"),
    ],
)
def test_other_files(tmp_path, changes, message):
    with pytest.raises(CorpusError, match=message):
        bring("textocr", textocr(tmp_path / "data", **changes), tmp_path / "out")


def test_no_pictures(tmp_path):
    src = textocr(tmp_path / "data")
    (tmp_path / "data/train_images").rename(tmp_path / "elsewhere")
    with pytest.raises(CorpusError, match="name the folder of the pictures"):
        bring("textocr", src, tmp_path / "out")
    [got], _ = bring("textocr", src, tmp_path / "out", images=tmp_path / "elsewhere")
    assert got.uri == "elsewhere/a4ea732cd3d5948a.jpg"
