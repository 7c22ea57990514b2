"""Words of TextOCR_0.1_train.json: three tables that refer to each other by ids."""

import json

import pytest
from helpers.importing import bring, save

from granvit.corpus.store import CorpusError
from granvit.regions import Region

KEY = "a4ea732cd3d5948a"
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
        anns={"a_1": annotation(f"{KEY}_1", [1, 1, "wide", 5], "x"), "a_2": annotation(f"{KEY}_2", [1, 1, 5, 5], None),
              "a_4": annotation(f"{KEY}_4", [1, 1, 5, 5], "kept")},
        imgToAnns={"a4ea732cd3d5948a": ["a_1", "a_2", "a_3", "a_4"], "unlisted": ["b_1"], "turned": []},
    )  # fmt: skip
    save(tmp_path / "data/train_images/turned.jpg")
    [got], refused = bring("textocr", src, tmp_path / "out")
    assert [r.text for r in got.regions] == ["kept"]
    assert [(r.reason, r.region) for r in refused] == [
        ("bad-box", 0), ("empty-text", 1), ("unknown-annotation", 2), ("missing-image", None), ("missing-image", None),
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


def test_ids_that_are_there_twice_are_ambiguous(tmp_path):
    names = ("a", "b", "c")
    imgs = [(key, {"id": key, "width": 40, "height": 30, "file_name": f"train/{key}.jpg"}) for key in (*names, "b")]
    anns = [(f"{key}_{n}", {"image_id": key, "bbox": [n, 2, 9, 9], "utf8_string": f"{key}{n}"}) for key in names
            for n in range(1, 4)]  # fmt: skip
    anns += [("c_2", {**dict(anns)["c_2"], "utf8_string": "other"}), ("a_9", dict(anns)["a_1"])]
    listed = [("a", ["a_1", "a_2", "a_2", "c_3"]), ("b", ["b_1", "b_2", "b_3"]), ("c", ["c_1", "c_2", "c_3"])]

    def table(pairs):
        return "{" + ", ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in pairs) + "}"

    for key in names:
        save(tmp_path / f"train_images/{key}.jpg")
    src = tmp_path / "TextOCR_0.1_val.json"
    src.write_text(f'{{"imgs": {table(imgs)}, "anns": {table(anns)}, "imgToAnns": {table(listed)}}}')
    records, refused = bring("textocr", src, tmp_path / "out")
    assert [[r.text for r in record.regions] for record in records] == [["a1", "a2"], ["c1"]]
    assert [(r.reason, r.region) for r in refused] == [
        ("duplicate-id", 2), ("ambiguous-id", 3), ("ambiguous-id", None), ("ambiguous-id", 1), ("ambiguous-id", 2),
        ("ambiguous-id", None), ("ambiguous-id", 0), ("ambiguous-id", 1), ("ambiguous-id", 2),
        ("unlisted-annotation", 0), ("unlisted-annotation", 1),
    ]  # fmt: skip
    assert [r.detail for r in refused[-2:]] == [f"annotation '{key}' is listed for no image" for key in ("a_3", "a_9")]


def test_ids_are_joined_by_their_value_and_must_agree(tmp_path):
    save(tmp_path / "train_images/1.jpg")
    rows = {str(n): {"id": n, "image_id": key, "bbox": [1, 2, 9, 9], "utf8_string": f"w{n}"}
            for n, key in ((7, 1), (8, "1"), (9, 2))}  # fmt: skip
    image = {"id": 1.0, "width": "40", "height": -1, "file_name": "1.jpg"}
    data = {"imgs": {"1": image}, "anns": rows, "imgToAnns": {"1": [7, "8", 9.0]}}
    (tmp_path / "x.json").write_text(json.dumps(data))
    [record], [refusal] = bring("textocr", tmp_path / "x.json", tmp_path / "out")
    assert [r.text for r in record.regions] == ["w7", "w8"]
    assert (refusal.reason, refusal.region) == ("ambiguous-id", 2)
    image["id"] = 2
    (tmp_path / "x.json").write_text(json.dumps(data))
    with pytest.raises(CorpusError, match=r"none of 1 images could be imported \(ambiguous-id 1\)"):
        bring("textocr", tmp_path / "x.json", tmp_path / "other")
