"""LVIS: COCO's format without file names."""

import json

import pytest
from helpers.importing import bring, save

from granvit.corpus.store import Corpus, CorpusError
from granvit.regions import Region

COCO_HOST = "http://images.cocodataset.org"


def image(key, folder="train2017", **changes):
    return {
        "id": key, "coco_url": f"{COCO_HOST}/{folder}/{key:012d}.jpg", "width": 40, "height": 30, "license": 1,
        "neg_category_ids": [2], "not_exhaustive_category_ids": [], **changes,
    }  # fmt: skip


CATEGORIES = [
    {"id": 62, "name": "bat_(animal)", "synonyms": ["bat_(animal)"], "synset": "bat.n.01", "frequency": "r",
     "def": "nocturnal mammal", "image_count": 4, "instance_count": 9},
    {"id": 1115, "name": "trash_can", "synonyms": ["ashcan", "trash_can", "garbage_can"], "frequency": "f"},
]  # fmt: skip


def annotation(key, image_id, category_id, bbox):
    outline = [[5.5, 6, 15.5, 6, 15.5, 18]]
    return {"id": key, "image_id": image_id, "category_id": category_id, "bbox": bbox, "segmentation": outline}


def lvis(folder, split, images, annotations):
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"images": images, "annotations": annotations, "categories": CATEGORIES, "info": {}, "licenses": []}
    (folder / f"lvis_v1_{split}.json").write_text(json.dumps(tables))


def test_names_come_from_the_url_and_synonyms_are_alternatives(tmp_path):
    save(tmp_path / "coco/train2017/000000391895.jpg")
    save(tmp_path / "coco/val2017/000000000139.jpg")
    save(tmp_path / "coco/train2017/000000000009.jpg")
    lvis(tmp_path / "coco/annotations", "train", [image(391895)], [annotation(1, 391895, 1115, [5.5, 6, 10, 12])])
    # The validation file reaches into COCO's training photos.
    lvis(
        tmp_path / "coco/annotations",
        "val",
        [image(139, "val2017"), image(9)],
        [annotation(1, 9, 62, [0, 0, 40, 30]), annotation(2, 9, 5, [0, 0, 9, 9]), annotation(3, 7, 62, [0, 0, 9, 9])],
    )
    records, refused = bring("lvis", tmp_path / "coco", tmp_path / "out")
    assert [(r.id, r.split) for r in records] == [
        ("lvis/train2017/000000391895.jpg", "train"),
        ("lvis/val2017/000000000139.jpg", "val"),
        ("lvis/train2017/000000000009.jpg", "val"),
    ]
    outline = [5.5, 6, 15.5, 6, 15.5, 18]
    assert records[0].regions == [
        Region((5.5, 6, 15.5, 18), "trash can", alternatives=["ashcan", "garbage can"], polygon=outline)
    ]
    assert records[1].regions == []
    assert records[2].regions == [Region((0, 0, 40, 30), "bat (animal)", polygon=outline)]
    left_out = Corpus(tmp_path / "out").manifest["meta"]["left_out"]
    assert left_out["category in neg_category_ids"] == 3
    assert [(r.reason, r.uri, r.region) for r in refused] == [
        ("unknown-category", "train2017/000000000009.jpg", 1),
        ("unknown-image", "lvis_v1_val.json", 0),
    ]


def test_pictures_elsewhere_and_damaged_urls(tmp_path):
    save(tmp_path / "coco/train2017/000000391895.jpg")
    images = [
        image(391895), image(1, coco_url=None), image(2, coco_url=f"{COCO_HOST}/../secret.jpg"), image(3, width=41),
        image(4, coco_url=None, file_name="train2017/000000391895.jpg", width=41),
    ]  # fmt: skip
    lvis(tmp_path / "lvis", "train", images, [annotation(1, 391895, 62, [5, 6, 10, 12])])
    with pytest.raises(CorpusError, match="name their folder"):
        bring("lvis", tmp_path / "lvis", tmp_path / "out")
    records, refused = bring("lvis", tmp_path / "lvis", tmp_path / "out", images=tmp_path / "coco")
    assert [r.uri for r in records] == ["train2017/000000391895.jpg"]
    assert [r.reason for r in refused] == ["missing-image", "path-outside", "missing-image", "duplicate-id"]
    with pytest.raises(CorpusError, match=r"holds neither lvis_v\*_train.json"):
        bring("lvis", tmp_path / "coco", tmp_path / "other")
