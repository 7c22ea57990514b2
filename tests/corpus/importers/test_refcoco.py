"""RefCOCO in the conversions that are published of it, and the pickle that is never loaded."""

import gzip
import json
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.importing import bring, picture, save
from helpers.paths import real_data

from granvit.corpus.store import CorpusError
from granvit.regions import Region

PHOTO = "COCO_train2014_000000581857.jpg"


def put(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    (gzip.open if file.suffix == ".gz" else open)(file, "wb").write(text.encode())
    return file


def expression(text, bbox=(5.5, 6, 15.5, 18), split="testA", **changes):
    """A row as in the published benchmark lists, one for each expression."""
    return {
        "img_path": PHOTO, "expression": text, "bbox": bbox, "dataset_name": "jxu124/refcocoplus", "height": 30,
        "width": 40, "image_id": 581857, "sent_id": 128, "split": split, **changes,
    }  # fmt: skip


def ref(*texts, **changes):
    """A row as in refs(unc).p."""
    said = [{"tokens": text.split(), "raw": text.upper(), "sent_id": i, "sent": text} for i, text in enumerate(texts)]
    return {
        "sent_ids": [0, 1], "file_name": "COCO_train2014_000000581857_16.jpg", "ann_id": 1719310, "ref_id": 0,
        "image_id": 581857, "split": "train", "sentences": said, "category_id": 1, **changes,
    }  # fmt: skip


def instances(folder):
    tables = {
        "images": [{"id": 581857, "file_name": PHOTO, "width": 40, "height": 30}],
        "annotations": [
            {"id": 1719310, "image_id": 581857, "bbox": [5.5, 6, 10, 12], "category_id": 1, "iscrowd": 0},
            {"id": 2, "image_id": 7, "bbox": [5.5, 6, 10, 12]},
        ],
        "categories": [{"id": 1, "name": "person"}],
    }
    return put(folder / "instances.json", [tables])


def test_one_row_an_expression(tmp_path):
    save(tmp_path / f"data/train2014/{PHOTO}")
    rows = [
        expression("guy with umbrella"),
        expression("black shirt"),
        expression("left", (0, 0, 9, 9)),
        expression("black shirt"),
    ]
    put(tmp_path / "data/REC_refcoco+_unc_testA.jsonl.gz", rows)
    put(tmp_path / "data/REC_refcoco+_unc_val.jsonl", [expression("the dog", split="validation")])
    records, refused = bring("refcoco", tmp_path / "data", tmp_path / "out")
    assert refused == []
    assert [(r.id, r.source, r.split, r.width) for r in records] == [
        (f"refcoco+-testA/{PHOTO}", "refcoco+-testA", "test", 40),
        (f"refcoco+-val/{PHOTO}", "refcoco+-val", "val", 40),
    ]
    assert records[0].regions == [
        Region((5.5, 6, 15.5, 18), "guy with umbrella", alternatives=["black shirt"]),
        Region((0, 0, 9, 9), "left"),
    ]


@pytest.mark.parametrize("name", ["refs(unc).json", "refs(unc).jsonl"])
def test_references_are_joined_with_the_instances(tmp_path, name):
    src = tmp_path / "refcocog"
    save(src / f"images/{PHOTO}")
    rows = [ref("the lady", "woman in blue"), ref("nobody", ann_id=3), ref("nowhere", ann_id=2), ref("x", ann_id=[1])]
    put(src / name, [rows] if name.endswith(".json") else rows)
    with pytest.raises(CorpusError, match="instances.json is missing: these expressions"):
        bring("refcoco", src, tmp_path / "out")
    instances(src)
    [record], refused = bring("refcoco", src, tmp_path / "out")
    assert (record.id, record.split, record.width) == (f"refcocog-train/{PHOTO}", "train", 40)
    assert record.regions == [Region((5.5, 6, 15.5, 18), "the lady", alternatives=["woman in blue"])]
    assert [(r.reason, r.uri, r.region) for r in refused] == [("unknown-annotation", name, i) for i in (1, 2, 3)]
    (src / "instances.json").rename(tmp_path / "elsewhere.json")
    again, _ = bring("refcoco", src, tmp_path / "again", instances=tmp_path / "elsewhere.json")
    assert again == [record]


def test_references_with_their_box_need_no_instances(tmp_path):
    row = ref("the lady", image_path=f"coco/train2014/{PHOTO}", bbox=[5.5, 6, 15.5, 18], split="testB")
    (tmp_path / "refcoco").mkdir()
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "refcoco/test-00000-of-00001.parquet")
    save(tmp_path / f"coco/train2014/{PHOTO}")
    [record], refused = bring("refcoco", tmp_path / "refcoco", tmp_path / "out")
    assert (record.source, record.split, refused) == ("refcoco-testB", "test", [])
    assert record.regions == [Region((5.5, 6, 15.5, 18), "the lady")]


def test_rows_with_their_photo(tmp_path):
    def row(bbox, *answers):
        photo = {"bytes": picture(), "path": "x.jpg"}
        return {"question_id": "1", "image": photo, "question": "?", "answer": answers, "bbox": bbox,
                "iscrowd": 0, "file_name": "COCO_train2014_000000581857_16.jpg"}  # fmt: skip

    src = tmp_path / "RefCOCOplus/data"
    src.mkdir(parents=True)
    rows = [row([5.5, 6, 10, 12], "the lady", "woman"), row([1, 2, 8, 8], "cup")]
    pq.write_table(pa.Table.from_pylist(rows), src / "testA-00000-of-00001.parquet")
    [record], refused = bring("refcoco", src, tmp_path / "out")
    assert (record.id, record.split, refused) == (f"refcoco+-testA/{PHOTO}", "test", [])
    assert record.image == rows[0]["image"]["bytes"]
    assert record.regions == [
        Region((5.5, 6, 15.5, 18), "the lady", alternatives=["woman"]),
        Region((1, 2, 9, 10), "cup"),
    ]


def test_damaged_rows_are_reported_by_their_number(tmp_path):
    save(tmp_path / f"data/{PHOTO}")
    rows = [
        expression("good"),
        "{",
        "[1]",
        {"img_path": PHOTO},
        {**expression("x"), "img_path": None},
        expression("short box", [1, 2, 3]),
        expression(None, (1, 1, 9, 9)),
        expression("x", img_path="../../etc/passwd"),
        expression("x", img_path="gone.jpg"),
        expression("x", split="holdout"),
        expression("x", img_path="big.jpg", width=41),
    ]
    save(tmp_path / "data/big.jpg")
    [record], refused = bring("refcoco", put(tmp_path / "data/refcoco.jsonl", rows), tmp_path / "out", source="mine")
    assert [r.text for r in record.regions] == ["good"]
    assert record.source == "mine-testA"
    assert [(r.reason, r.uri, r.region) for r in refused] == [
        ("not-json", "refcoco.jsonl", 1),
        ("not-json", "refcoco.jsonl", 2),
        ("missing-field", "refcoco.jsonl", 3),
        ("missing-field", "refcoco.jsonl", 4),
        ("bad-box", PHOTO, 1),
        ("empty-text", PHOTO, 2),
        ("missing-image", "passwd", None),
        ("missing-image", "gone.jpg", None),
        ("bad-split", PHOTO, None),
        ("size-mismatch", "big.jpg", None),
    ]


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl.gz"])
def test_a_table_that_breaks_off_gives_what_is_in_front_of_the_damage(tmp_path, suffix):
    save(tmp_path / f"data/{PHOTO}")
    put(tmp_path / "data/a.jsonl", [expression("good")])
    damaged = put(tmp_path / f"data/b{suffix}", [expression(str(i)) for i in range(2000)])
    damaged.write_bytes(damaged.read_bytes()[:-20])
    [record], refused = bring("refcoco", tmp_path / "data", tmp_path / "out")
    assert record.regions[0].text == "good"
    assert [(r.reason, r.uri) for r in refused] == [
        ("damaged-parquet" if suffix == ".parquet" else "damaged-file", f"b{suffix}")
    ]


class Boom:
    def __reduce__(self):
        return Path.touch, (Path("boom"),)


def test_a_pickle_is_never_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "refcoco").mkdir()
    (tmp_path / "refcoco/refs(unc).p").write_bytes(pickle.dumps(Boom()))
    for src in (tmp_path / "refcoco", tmp_path / "refcoco/refs(unc).p"):
        with pytest.raises(CorpusError, match="is a pickle, which is never loaded"):
            bring("refcoco", src, tmp_path / "out")
    assert not (tmp_path / "boom").exists()


def test_no_table_and_no_photo_are_clear_errors(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="holds no table"):
        bring("refcoco", tmp_path / "empty", tmp_path / "out")
    with pytest.raises(CorpusError, match="found none of its pictures in .*: name their folder"):
        bring("refcoco", put(tmp_path / "a/refcoco.jsonl", [expression("x")]), tmp_path / "out")


def test_the_published_lists_are_read_whole(tmp_path):
    """All boxes and expressions of RefCOCO's testA; a grey photo of the stated size stands for each of COCO's."""
    (folder,) = real_data("rec_refcoco")
    with gzip.open(folder / "REC_refcoco_unc_testA.jsonl.gz") as lines:
        rows = [json.loads(line) for line in lines][:120]
    for row in rows:
        save(tmp_path / "photos" / row["img_path"], (row["width"], row["height"]))
    records, refused = bring(
        "refcoco", put(tmp_path / "REC_refcoco_unc_testA.jsonl.gz", rows), tmp_path / "out", images=tmp_path / "photos"
    )
    assert refused == []
    assert {r.source for r in records} == {"refcoco-testA"}
    assert {r.uri for r in records} == {row["img_path"] for row in rows}
    texts = {(r.uri, text) for r in records for region in r.regions for text in (region.text, *region.alternatives)}
    assert texts == {(row["img_path"], row["expression"].strip()) for row in rows}
    assert sum(len(r.regions) for r in records) == len({(row["img_path"], *row["bbox"]) for row in rows})


def test_the_tables_are_joined_by_the_value_of_ids_and_those_of_several_are_ambiguous(tmp_path):
    src = tmp_path / "data"
    save(src / f"train2014/{PHOTO}")
    put(src / "refs.jsonl", [ref("a", ann_id="1"), ref("b", ann_id=2.0), ref("c", ann_id=3), ref("d", ann_id=4)])
    rows = [{"id": key, "image_id": image, "bbox": [5, 6, number, 12]}
            for number, (key, image) in enumerate([(1, "7"), (2, 7.0), (3, 7), ("3", 7), (4, 8)], 10)]  # fmt: skip
    image = {"file_name": PHOTO, "width": "40", "height": 30}
    images = [{**image, "id": "7"}, {**image, "id": 8}, {"id": 8, "file_name": "other.jpg"}]
    put(src / "instances.json", [{"images": images, "annotations": rows, "categories": []}])
    [record], refused = bring("refcoco", src, tmp_path / "out")
    assert [(r.box, r.text) for r in record.regions] == [((5, 6, 15, 18), "a"), ((5, 6, 16, 18), "b")]
    assert [(r.reason, r.region) for r in refused] == [("ambiguous-id", 2), ("ambiguous-id", 3)]


def test_rows_that_disagree_about_their_photo_are_ambiguous(tmp_path):
    save(tmp_path / f"data/train2014/{PHOTO}")
    save(tmp_path / "data/train2014/b.jpg")
    rows = [expression("a"), expression("b", (0, 0, 9, 9), width=41), expression("c", img_path="b.jpg")]
    put(tmp_path / "data/x.jsonl", rows)
    [record], [refusal] = bring("refcoco", tmp_path / "data", tmp_path / "out")
    assert record.uri == "b.jpg"
    assert (refusal.reason, refusal.uri, refusal.regions) == ("ambiguous-id", PHOTO, 2)


@pytest.mark.parametrize("split", [["testA"], {"name": "testA"}, True, 1])
def test_a_split_of_another_type_is_refused_and_not_trained_on(tmp_path, split):
    save(tmp_path / f"data/train2014/{PHOTO}")
    put(tmp_path / "data/x.jsonl", [expression("a", split="train"), expression("b", (0, 0, 9, 9), split=split)])
    [record], [refusal] = bring("refcoco", tmp_path / "data", tmp_path / "out")
    assert [r.text for r in record.regions] == ["a"]
    assert (refusal.reason, refusal.region) == ("bad-split", 1)
