"""COCO's instances: tables joined by ids."""

import json
from pathlib import Path

import pytest
from helpers.importing import bring, save

from granvit.corpus.importers.coco import split_named
from granvit.corpus.store import Corpus, CorpusError
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
            {"id": 6, "image_id": 285, "category_id": 18, "bbox": [5, 5, 5, 10], "iscrowd": 0},
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog", "supercategory": "animal"}],
    }  # fmt: skip
    captions = [
        {"id": 1, "image_id": 139, "caption": "A dog."},
        {"id": 2, "image_id": 139, "caption": "A dog beside a crowd of people."},
        {"id": 3, "image_id": 285, "caption": "Another dog."},
    ]
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / f"annotations/instances_{part}.json").write_text(json.dumps(instances))
    (folder / f"annotations/captions_{part}.json").write_text(json.dumps({"annotations": captions}))
    return folder


def test_coco(tmp_path):
    (dog, other), refused = bring("coco", coco(tmp_path / "coco"), tmp_path / "out")
    assert (dog.id, dog.uri) == ("coco/val2017/000000000139.jpg", "val2017/000000000139.jpg")
    assert (dog.source, dog.split, dog.caption) == ("coco", "val", "A dog beside a crowd of people.")
    assert dog.regions == [
        Region((5.5, 6, 15.5, 18), "dog", polygon=[5.5, 6, 15.5, 6, 15.5, 18]),
        Region((0, 0, 40, 30), "person", ignore=True),
    ]
    assert (other.regions, other.caption) == ([Region((5, 5, 10, 15), "dog")], "Another dog.")
    assert [(r.reason, r.region) for r in refused] == [("degenerate", 2), ("unknown-category", 3), ("unknown-image", 0)]


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
def test_ids_that_no_table_can_be_joined_by_are_reported(tmp_path, wrong):
    (dog, _), refused = bring("coco", changed(tmp_path / "a", "annotations", 0, image_id=wrong), tmp_path / "out-a")
    assert [r.text for r in dog.regions] == ["person"]
    assert [(r.reason, r.uri) for r in refused].count(("unknown-image", "instances_val2017.json")) == 2

    (dog, _), refused = bring("coco", changed(tmp_path / "b", "annotations", 0, category_id=wrong), tmp_path / "out-b")
    assert ("unknown-category", 0) in [(r.reason, r.region) for r in refused]

    # Its annotations, which nothing is left to hang on, are reported too.
    [other], refused = bring("coco", changed(tmp_path / "c", "images", 0, id=wrong), tmp_path / "out-c")
    assert other.uri == "val2017/000000000285.jpg"
    reported = [(r.reason, r.uri, r.region) for r in refused]
    assert reported[0] == ("bad-field", "val2017/000000000139.jpg", None)
    assert [reason for reason, *_ in reported[1:]] == ["unknown-image"] * 5

    with pytest.raises(CorpusError, match=r"instances_val2017.json: a category's id is a number or a string, got"):
        bring("coco", changed(tmp_path / "d", "categories", 0, id=wrong), tmp_path / "out-d")


@pytest.mark.parametrize("name", ["gone.jpg", "x" * 5000, "a\0.jpg", None, ["a.jpg"]])
def test_the_annotations_of_a_picture_that_is_missing_go_with_it(tmp_path, name):
    [other], refused = bring("coco", changed(tmp_path / "coco", "images", 0, file_name=name), tmp_path / "out")
    assert other.uri == "val2017/000000000285.jpg"
    # Only the annotation of an image that is not listed at all has none to go with.
    assert [r.reason for r in refused] == ["missing-image", "unknown-image"]


def tables(*, images=2, annotations=(), categories=("dog",)) -> dict:
    """Images 1, 2, ... of 40 x 30 pixels, and categories 1, 2, ..."""
    return {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 40, "height": 30} for n in range(1, images + 1)],
        "annotations": list(annotations),
        "categories": [{"id": n, "name": name} for n, name in enumerate(categories, start=1)],
    }


def box(key, image_id=1, category_id=1, **changes) -> dict:
    return {"id": key, "image_id": image_id, "category_id": category_id, "bbox": [key, 2, 9, 9], **changes}


def written(folder: Path, content: dict, name: str = "_annotations.coco.json") -> Path:
    for image in content["images"]:
        save(folder / image["file_name"])
    (folder / name).write_text(json.dumps(content))
    return folder


def reported(refused) -> list[tuple[str, int | None]]:
    return [(r.reason, r.region) for r in refused]


def test_two_images_of_one_id_are_ambiguous_and_their_boxes_go_to_neither(tmp_path):
    content = tables(images=3, annotations=[box(1), box(2), box(3, 3), box(4, "1")])
    content["images"][1]["id"] = 1.0
    [record], refused = bring("coco", written(tmp_path / "set", content), tmp_path / "out")
    assert (record.uri, [r.box for r in record.regions]) == ("set/3.png", [(3, 2, 12, 11)])
    assert reported(refused) == [("ambiguous-id", None)] * 2 + [("ambiguous-id", n) for n in range(3)]
    assert "annotation 4 names the image '1', which several have" in refused[-1].detail


def test_annotations_of_one_id_and_categories_of_one_id_are_ambiguous(tmp_path):
    content = tables(annotations=[box(1), box("1", 2), box(3, category_id=2), box(4)], categories=("dog", "cat", "cow"))
    content["categories"][2]["id"] = "2"
    records, refused = bring("coco", written(tmp_path / "set", content), tmp_path / "out")
    assert [[r.text for r in record.regions] for record in records] == [["dog"], []]
    assert reported(refused) == [("ambiguous-id", 0), ("ambiguous-id", 1), ("ambiguous-id", 0)]


def test_what_is_merely_listed_twice_is_taken_once(tmp_path):
    content = tables(annotations=[box(1), box(1), box(2, 2)])
    content["images"].append(content["images"][0])
    content["categories"].append(content["categories"][0])
    records, refused = bring("coco", written(tmp_path / "set", content), tmp_path / "out")
    assert [len(record.regions) for record in records] == [1, 1]
    assert reported(refused) == [("duplicate-id", 1), ("duplicate-id", None)]


@pytest.mark.parametrize(("one", "other"), [("1", 1), (1, "1"), (1.0, "1"), ("1", 1.0), ("a7", "a7")])
def test_ids_are_joined_by_their_value(tmp_path, one, other):
    content = tables(images=1, annotations=[box(1, other, other)])
    content["images"][0]["id"] = content["categories"][0]["id"] = one
    [record], refused = bring("coco", written(tmp_path / "set", content), tmp_path / "out")
    assert [r.text for r in record.regions] == ["dog"]
    assert refused == []


def test_an_import_without_one_usable_region_fails_and_says_why(tmp_path):
    content = tables(annotations=[box(1, category_id=7), box(2, 3), box(3, 4)])
    with pytest.raises(CorpusError, match=r"set: none of 3 regions could be used \(unknown-image 2, unknown-cat"):
        bring("coco", written(tmp_path / "set", content), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["quarantine.jsonl"]
    with pytest.raises(CorpusError, match="none of 0 regions could be used: it states none; pictures alone"):
        bring("coco", written(tmp_path / "bare", tables()), tmp_path / "out")


def test_each_place_must_give_something(tmp_path):
    good = written(tmp_path / "good", tables(annotations=[box(1)]))
    bad = written(tmp_path / "bad", tables(annotations=[box(1, 9)]))
    with pytest.raises(CorpusError, match=r"bad: none of 1 regions could be used \(unknown-image 1\)"):
        bring("coco", [good, bad], tmp_path / "out")


def test_captions_of_no_listed_image_are_reported(tmp_path):
    root = coco(tmp_path / "coco")
    file = root / "annotations/captions_val2017.json"
    said = [(139, "A dog."), (139, "A dog, brown."), ("285.0", "B."), (7, "C."), (285, float("nan")), (285, ["D"])]
    file.write_text(json.dumps({"annotations": [{"image_id": key, "caption": text} for key, text in said]}))
    records, _ = bring("coco", root, tmp_path / "out")
    assert [r.caption for r in records] == ["A dog, brown.", "B."]
    left_out = Corpus(tmp_path / "out").manifest["meta"]["left_out"]
    assert {what: count for what, count in left_out.items() if "caption" in what} == {
        "further caption of an image": 1, "caption of an image that is not listed": 1, "caption that is no text": 2,
    }  # fmt: skip
    file.write_text(json.dumps({"annotations": [{"image_id": 7, "caption": "A dog."}]}))
    with pytest.raises(CorpusError, match="captions_val2017.json: none of 1 captions is one of a listed image"):
        bring("coco", root, tmp_path / "other")


def test_what_a_record_has_no_place_for_is_counted(tmp_path):
    corners = [1, 1, 9, 1, 9, 9]
    annotations = [
        box(1, segmentation=[corners], keypoints=[1, 2, 2]),
        box(2, segmentation=[corners, corners], attributes={"occluded": False}),
        box(3, segmentation={"counts": "a", "size": [30, 40]}, attributes={"text": "EXIT"}),
        box(4, segmentation=[[1, 1, 9, 10**400, 9, 9]], keypoints=[]),
    ]
    content = tables(annotations=annotations)
    [record, _], refused = bring("coco", written(tmp_path / "set", content), tmp_path / "out")
    assert [r.polygon for r in record.regions] == [corners, None, None, None]
    assert refused == []
    meta = Corpus(tmp_path / "out").manifest["meta"]
    assert meta["left_out"] == {
        "keypoints of an annotation": 1,
        "mask of several polygons": 1, "mask of run lengths": 1, "attributes other than a text": 1,
    }  # fmt: skip
    assert meta["changed"] == {"polygon-dropped": 1}


@pytest.mark.parametrize("field", ["iscrowd", "ignore"])
def test_a_flag_in_a_string_is_what_it_says(tmp_path, field):
    values = [0, "0", "false", False, None, 1, "1", "true", "perhaps", [0]]
    annotations = [box(n, **{field: value}) for n, value in enumerate(values, start=1)]
    [record, _], refused = bring("coco", written(tmp_path / "set", tables(annotations=annotations)), tmp_path / "out")
    assert [r.ignore for r in record.regions] == [False] * 5 + [True] * 3
    assert reported(refused) == [("bad-field", 8), ("bad-field", 9)]


@pytest.mark.parametrize("size", [("40", "30"), (40.0, 30), (-1, -1), (None, None), (0, 30)])
def test_sizes_that_state_the_same_or_nothing_cost_no_picture(tmp_path, size):
    content = tables(annotations=[box(1)])
    content["images"][0] |= dict(zip(("width", "height"), size, strict=True))
    records, refused = bring("coco", written(tmp_path / "set", content), tmp_path / "out")
    assert [(r.width, r.height) for r in records] == [(40, 30)] * 2
    assert refused == []


def test_a_size_of_another_type_is_reported_with_the_regions_that_it_costs(tmp_path):
    content = tables(annotations=[box(1), box(2, 2), box(3, 2)])
    content["images"][1]["width"] = "wide"
    [_], [refusal] = bring("coco", written(tmp_path / "set", content), tmp_path / "out")
    assert (refusal.reason, refusal.regions) == ("bad-field", 2)
    assert refusal.detail == "width should be a whole number of pixels, got 'wide'"


def test_a_box_of_another_type_is_reported_as_it_is_written(tmp_path):
    boxes = [["1", "2", "3", "4"], [1, 2, 3], [1, 2, None, 4], "1,2,3,4", None, [1, 2, True, 4]]
    annotations = [box(1), *(box(n, bbox=value) for n, value in enumerate(boxes, start=2))]
    _, refused = bring("coco", written(tmp_path / "set", tables(annotations=annotations)), tmp_path / "out")
    assert reported(refused) == [("bad-box", n) for n in range(1, 7)]
    assert [r.detail for r in refused] == [f"four numbers are expected, got {value!r}" for value in boxes]


def test_names_and_encodings_of_windows(tmp_path):
    content = tables(annotations=[box(1), box(2, 2)], categories=("狗狗",))
    folder = written(tmp_path / "set", content)
    content["images"][0]["file_name"] = "sub\\1.png"
    content["images"][1]["file_name"] = "..\\set\\2.png"
    save(folder / "sub/1.png")
    file = folder / "_annotations.coco.json"
    file.write_bytes(json.dumps(content, ensure_ascii=False).encode("gbk"))
    with pytest.raises(CorpusError, match=r"_annotations.coco.json is not UTF-8: name its encoding"):
        bring("coco", folder, tmp_path / "out")
    [record], [refusal] = bring("coco", folder, tmp_path / "out", encoding="gbk")
    assert (record.uri, record.regions[0].text) == ("set/sub/1.png", "狗狗")
    assert refusal.reason == "path-outside"


def test_entries_that_are_no_objects_cost_themselves_only(tmp_path):
    content = tables(annotations=[box(1), 7, None])
    folder = written(tmp_path / "set", content)
    content["images"].append("3.png")
    (folder / "_annotations.coco.json").write_text(json.dumps(content))
    records, refused = bring("coco", folder, tmp_path / "out")
    assert len(records) == 2
    assert reported(refused) == [("bad-field", None), ("unknown-image", 0), ("unknown-image", 1)]


def test_a_folder_named_after_its_split_states_it(tmp_path):
    for name in ("train", "valid", "test"):
        written(tmp_path / "roboflow" / name, tables(images=1, annotations=[box(1)]))
    records, _ = bring("coco", tmp_path / "roboflow", tmp_path / "out")
    assert {r.id: r.split for r in records} == {
        "coco/train/1.png": "train", "coco/valid/1.png": "val", "coco/test/1.png": "test",
    }  # fmt: skip
    records, _ = bring("coco", tmp_path / "roboflow/test", tmp_path / "one")
    assert [r.split for r in records] == ["test"]


def test_a_picture_in_the_files_of_two_splits_is_held_out(tmp_path):
    root = tmp_path / "coco"
    content = tables(annotations=[box(1), box(2, 2)])
    for part in ("train", "val"):
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        (root / f"annotations/instances_{part}.json").write_text(json.dumps(content))
        content["images"].pop()
    written(root / "images", tables(), "unused.txt")
    records, refused = bring("coco", root, tmp_path / "out")
    assert {r.uri: r.split for r in records} == {"images/1.png": "val", "images/2.png": "train"}
    assert [r.reason for r in refused] == ["unknown-image", "duplicate-id"]


@pytest.mark.parametrize(
    ("name", "split"),
    [("val", "val"), ("my_test_set", "test"), ("instances_minival2014", "val"), ("instances_train2017", "train"),
     ("valves", ""), ("training", "train"), ("trainval2007", "train"), ("instances_default", "")],
)  # fmt: skip
def test_the_split_is_in_the_name_of_the_file(name, split):
    assert split_named(name) == split


def test_scores_and_terms(tmp_path):
    root = coco(tmp_path / "coco")
    file = root / "annotations/instances_val2017.json"
    tables = json.loads(file.read_text())
    tables["licenses"] = [
        {"id": 1, "name": "CC BY\n4.0", "url": "x"}, {"id": "2", "url": "https://example.org/by"},
        {"id": 3, "name": "a"}, {"id": 3, "name": "b"}, 7,
    ]  # fmt: skip
    scores, terms = (0.5, 0, 1.5, None, None, "high"), (1.0, 2, 3, 4, None)
    for annotation, score in zip(tables["annotations"], scores, strict=True):
        annotation["score"] = score
    tables["images"] = [
        {"id": n, "file_name": f"{n:012d}.jpg", "license": term} for n, term in zip(range(139, 144), terms, strict=True)
    ]
    for number in range(139, 144):
        save(root / f"val2017/{number:012d}.jpg")
    file.write_text(json.dumps(tables))
    (root / "annotations/captions_val2017.json").unlink()
    records, refused = bring("coco", root, tmp_path / "out")
    assert [r.licence for r in records] == ["CC BY 4.0", "https://example.org/by", "", "", ""]
    assert [r.score for r in records[0].regions] == [0.5, 0]
    left_out = Corpus(tmp_path / "out").manifest["meta"]["left_out"]
    assert left_out["licence of an image that is not listed, or several times"] == 2
    records, _ = bring("coco", root, tmp_path / "named", licence="mine")
    assert {r.licence for r in records} == {"mine"}
