"""Objects365: COCO's format, its pictures unpacked in one of several ways."""

import json

import pytest
from helpers.importing import bring, save

from granvit.corpus.store import Corpus, CorpusError
from granvit.regions import Region

NAME = "images/v1/patch8/objects365_v1_00420917.jpg"


def annotation(key, category_id, bbox, **changes):
    return {
        "id": key, "iscrowd": 0, "isfake": 0, "isreflected": 0, "area": 120.0, "bbox": bbox, "image_id": 420917,
        "category_id": category_id, **changes,
    }  # fmt: skip


def objects365(file, annotations, name=NAME):
    image = {"id": 420917, "height": 30, "width": 40, "license": 5, "file_name": name, "url": ""}
    categories = [{"id": 1, "name": "Person"}, {"id": 14, "name": "Handbag/Satchel"}]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"images": [image], "annotations": annotations, "categories": categories}))


@pytest.mark.parametrize("file", ["zhiyuan_objv2_train.json", "annotations/zhiyuan_objv2_train.json"])
@pytest.mark.parametrize(
    "place", ["train/patch8", "train/images/v1/patch8", "images/train", "images/v1/patch8", "patch8"]
)
def test_pictures_are_found_however_they_were_unpacked(tmp_path, file, place):
    save(tmp_path / "o365" / place / "objects365_v1_00420917.jpg")
    objects365(
        tmp_path / "o365" / file,
        [
            annotation(51, 14, [5.5, 6, 10, 12]),
            annotation(52, 1, [0, 0, 40, 30], iscrowd=1, isfake=1),
            annotation(53, 1, [0, 0, -1, 3]),
        ],
    )
    [record], refused = bring("objects365", tmp_path / "o365", tmp_path / "out")
    assert (record.id, record.split) == ("objects365/train/patch8/objects365_v1_00420917.jpg", "train")
    assert record.regions == [
        Region((5.5, 6, 15.5, 18), "Handbag", alternatives=["Satchel"]),
        Region((0, 0, 40, 30), "Person", ignore=True),
    ]
    assert [(r.reason, r.region) for r in refused] == [("inverted", 2)]
    assert Corpus(tmp_path / "out").manifest["meta"]["left_out"] == {"isfake of an annotation": 1}


def test_pictures_elsewhere_or_nowhere(tmp_path):
    objects365(tmp_path / "o365/zhiyuan_objv2_val.json", [annotation(51, 1, [5, 6, 10, 12])])
    with pytest.raises(CorpusError, match="name their folder"):
        bring("objects365", tmp_path / "o365", tmp_path / "out")
    save(tmp_path / "disk/patch8/objects365_v1_00420917.jpg")
    [record], _ = bring("objects365", tmp_path / "o365", tmp_path / "out", images=tmp_path / "disk")
    assert record.split == "val"
    with pytest.raises(CorpusError, match=r"holds no zhiyuan_objv2_\*.json"):
        bring("objects365", tmp_path / "disk", tmp_path / "other")


@pytest.mark.parametrize("name", ["../../secret.jpg", "images/v1/patch8/gone.jpg", None])
def test_a_bad_file_name_is_reported(tmp_path, name):
    save(tmp_path / "o365/train/patch8/objects365_v1_00420917.jpg")
    file = tmp_path / "o365/zhiyuan_objv2_train.json"
    objects365(file, [annotation(51, 1, [5, 6, 10, 12])])
    tables = json.loads(file.read_text())
    tables["images"].append({**tables["images"][0], "id": 2, "file_name": name})
    file.write_text(json.dumps(tables))
    records, [refusal] = bring("objects365", tmp_path / "o365", tmp_path / "out")
    assert len(records) == 1
    assert refusal.reason == ("path-outside" if name and ".." in name else "missing-image")
