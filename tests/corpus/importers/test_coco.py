"""COCO's instances: tables joined by ids."""

import json
from pathlib import Path

import pytest
from importing import bring, save

from granvit.corpus.store import CorpusError
from granvit.regions import Region


def coco(folder: Path, part: str = "val2017") -> Path:
    """The tree of the COCO download, with two pictures."""
    for number in (139, 285):
        save(folder / part / f"{number:012d}.jpg")
    instances = {
        "info": {},
        "licenses": [],
        "images": [{"id": n, "file_name": f"{n:012d}.jpg", "width": 40, "height": 30} for n in (139, 285)],
        "annotations": [
            {"id": 1, "image_id": 139, "category_id": 18, "bbox": [5.5, 6, 10, 12], "area": 120, "iscrowd": 0,
             "segmentation": [[5.5, 6, 15.5, 6, 15.5, 18]]},
            {"id": 2, "image_id": 139, "category_id": 1, "bbox": [0, 0, 40, 30], "area": 9, "iscrowd": 1,
             "segmentation": {"counts": [1, 2], "size": [30, 40]}},
            {"id": 3, "image_id": 139, "category_id": 1, "bbox": [5, 5, 0, 10], "iscrowd": 0, "segmentation": [[], []]},
            {"id": 4, "image_id": 139, "category_id": 77, "bbox": [5, 5, 5, 10], "iscrowd": 0},
            {"id": 5, "image_id": 999, "category_id": 1, "bbox": [5, 5, 5, 10], "iscrowd": 0},
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog", "supercategory": "animal"}],
    }  # fmt: skip
    captions = [
        {"id": 1, "image_id": 139, "caption": "A dog."},
        {"id": 2, "image_id": 139, "caption": "A dog beside a crowd of people."},
    ]
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / f"annotations/instances_{part}.json").write_text(json.dumps(instances))
    (folder / f"annotations/captions_{part}.json").write_text(json.dumps({"annotations": captions}))
    return folder


def test_coco(tmp_path):
    (dog, empty), refused = bring("coco", coco(tmp_path / "coco"), tmp_path / "out")
    assert (dog.id, dog.uri) == ("coco/val2017/000000000139.jpg", "val2017/000000000139.jpg")
    assert (dog.source, dog.split, dog.caption) == ("coco", "val", "A dog beside a crowd of people.")
    assert dog.regions == [
        Region((5.5, 6, 15.5, 18), "dog", polygon=[5.5, 6, 15.5, 6, 15.5, 18]),
        Region((0, 0, 40, 30), "person", ignore=True),
    ]
    assert (empty.regions, empty.caption) == ([], None)
    assert [(r.reason, r.region) for r in refused] == [("degenerate", 2), ("empty-text", 3), ("unknown-image", 0)]


def test_every_part_is_read_or_the_one_that_is_named(tmp_path):
    root = coco(coco(tmp_path / "coco"), "train2017")
    records, _ = bring("coco", root, tmp_path / "all")
    assert sorted(r.split for r in records) == ["train", "train", "val", "val"]
    records, _ = bring("coco", root / "annotations/instances_train2017.json", tmp_path / "one")
    assert [r.split for r in records] == ["train", "train"]


def test_parts_elsewhere(tmp_path):
    root = coco(tmp_path / "coco")
    (root / "val2017").rename(tmp_path / "pictures")
    (root / "annotations/captions_val2017.json").rename(tmp_path / "captions.json")
    with pytest.raises(CorpusError, match="found none of its pictures"):
        bring("coco", root, tmp_path / "out")
    elsewhere = {"images": tmp_path / "pictures", "captions": tmp_path / "captions.json"}
    records, _ = bring("coco", root, tmp_path / "out", **elsewhere)
    assert records[0].caption == "A dog beside a crowd of people."
    with pytest.raises(CorpusError, match="nowhere.json"):
        bring("coco", root, tmp_path / "o", images=tmp_path / "pictures", captions=Path("nowhere.json"))


def test_annotations_among_the_pictures(tmp_path):
    root = coco(tmp_path / "coco")
    (root / "annotations/instances_val2017.json").rename(root / "val2017/_annotations.coco.json")
    records, _ = bring("coco", root / "val2017", tmp_path / "out", source="shelves")
    assert [r.id for r in records] == [f"shelves/val2017/{n:012d}.jpg" for n in (139, 285)]


@pytest.mark.parametrize("text", ["{", "[]", '{"images": [], "annotations": [1], "categories": []}'])
def test_another_format_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(CorpusError, match="x.json"):
        bring("coco", tmp_path / "x.json", tmp_path / "out")


def changed(folder: Path, table: str, index: int, **changes) -> Path:
    """The data set with other fields in one entry of a table."""
    file = coco(folder) / "annotations/instances_val2017.json"
    tables = json.loads(file.read_text())
    tables[table][index] |= changes
    file.write_text(json.dumps(tables))
    return folder


@pytest.mark.parametrize("wrong", [[139], {"id": 139}, None])
def test_ids_that_no_table_can_be_joined_by_are_told(tmp_path, wrong):
    (dog, _), refused = bring("coco", changed(tmp_path / "a", "annotations", 0, image_id=wrong), tmp_path / "out-a")
    assert [r.text for r in dog.regions] == ["person"]
    assert [(r.reason, r.uri) for r in refused].count(("unknown-image", "instances_val2017.json")) == 2

    (dog, _), refused = bring("coco", changed(tmp_path / "b", "annotations", 0, category_id=wrong), tmp_path / "out-b")
    assert ("empty-text", 0) in [(r.reason, r.region) for r in refused]

    # Its annotations, which nothing is left to hang on, are told too.
    [other], refused = bring("coco", changed(tmp_path / "c", "images", 0, id=wrong), tmp_path / "out-c")
    assert other.uri == "val2017/000000000285.jpg"
    told = [(r.reason, r.uri, r.region) for r in refused]
    assert told[0] == ("bad-field", "val2017/000000000139.jpg", None)
    assert [reason for reason, *_ in told[1:]] == ["unknown-image"] * 5

    with pytest.raises(CorpusError, match=r"instances_val2017.json: a category's id is a number or a string, got"):
        bring("coco", changed(tmp_path / "d", "categories", 0, id=wrong), tmp_path / "out-d")


@pytest.mark.parametrize("name", ["gone.jpg", "x" * 5000, "a\0.jpg", None, ["a.jpg"]])
def test_the_annotations_of_a_picture_that_is_missing_go_with_it(tmp_path, name):
    [other], refused = bring("coco", changed(tmp_path / "coco", "images", 0, file_name=name), tmp_path / "out")
    assert other.uri == "val2017/000000000285.jpg"
    # Only the annotation of an image that is not listed at all has none to go with.
    assert [r.reason for r in refused] == ["missing-image", "unknown-image"]
