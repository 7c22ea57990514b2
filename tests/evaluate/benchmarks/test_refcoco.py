import json
from collections import Counter

import pytest
from helpers.paths import real_data
from PIL import Image

from granvit.evaluate.benchmarks import open_benchmark
from granvit.evaluate.benchmarks.refcoco import EXPRESSIONS

PHOTO = "COCO_train2014_000000000001.jpg"


def row(expression, split="testA", box=(1, 2, 30, 40), photo=PHOTO, name="jxu124/refcoco"):
    return {
        "img_path": photo,
        "expression": expression,
        "bbox": list(box),
        "dataset_name": name,
        "width": 64,
        "height": 48,
        "split": split,
    }


def write(folder, rows):
    (folder / "train2014").mkdir()
    for photo in {r["img_path"] for r in rows}:
        Image.new("RGB", (64, 48), "red").save(folder / "train2014" / photo)
    (folder / "refs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def test_every_expression_is_a_question_and_val_is_none(tmp_path):
    rows = [
        row("left cup"),
        row("the cup"),
        row("left cup"),  # said twice is asked twice, as published scores do
        row("spoon", box=(5, 6, 20, 22)),
        row("a table", "testB", photo="COCO_train2014_000000000002.jpg"),
        row("left cup", "test", name="jxu124/refcocog"),
        row("merged", "validation"),
    ]
    eval_set = open_benchmark("refcoco", write(tmp_path, rows))
    images = list(eval_set.images())
    assert [t.name for t in eval_set.tasks] == ["refcoco-testA", "refcoco-testB", "refcocog-test"]
    assert [t.expected for t in eval_set.tasks] == [5657, 5095, 9602]
    assert eval_set.image_count == len(images) == 2
    items = [item for image in images for item in image.items]
    assert [(i.task, i.key, i.asked, i.box) for i in items] == [
        ("refcoco-testA", "0", "left cup", (1, 2, 30, 40)),
        ("refcoco-testA", "1", "the cup", (1, 2, 30, 40)),
        ("refcoco-testA", "2", "left cup", (1, 2, 30, 40)),
        ("refcoco-testA", "3", "spoon", (5, 6, 20, 22)),
        ("refcocog-test", "0", "left cup", (1, 2, 30, 40)),
        ("refcoco-testB", "0", "a table", (1, 2, 30, 40)),
    ]
    assert all(i.how == "phrase" for i in items) and images[0].load().startswith(b"\xff\xd8")
    # Answers are written into the items of one reading only.
    items[0].said = "x"
    assert next(eval_set.images()).items[0].said == ""


def test_what_cannot_be_asked_is_reported(tmp_path):
    (tmp_path / "refs.jsonl").write_text(json.dumps(row("merged", "validation")) + "\n")
    with pytest.raises(ValueError, match="no split testA, testB or test"):
        open_benchmark("refcoco", tmp_path)
    (tmp_path / "refs.jsonl").write_text(json.dumps({"bbox": [1, 2, 3, 4]}) + "\n")
    with pytest.raises(ValueError, match="refs.jsonl: row 0: missing-field"):
        open_benchmark("refcoco", tmp_path)
    (tmp_path / "refs.jsonl").write_text(json.dumps(row("cup")) + "\n")
    with pytest.raises(ValueError, match="found none of its pictures in .*name their folder"):
        open_benchmark("refcoco", tmp_path)


def test_the_published_expressions_are_all_there(tmp_path):
    (folder,) = real_data("rec_refcoco")
    eval_set = open_benchmark("refcoco", folder, tmp_path)
    counts = Counter(item.task for image in eval_set.images() for item in image.items)
    published = {name: count for name, count in EXPRESSIONS.items() if not name.endswith("-val")}
    assert counts == published == {task.name: task.expected for task in eval_set.tasks}
    assert published == {
        "refcoco-testA": 5657,
        "refcoco-testB": 5095,
        "refcoco+-testA": 5726,
        "refcoco+-testB": 4889,
        "refcocog-test": 9602,
    }
