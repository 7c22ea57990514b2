"""Tables of pictures, written by `datasets` itself and by hand."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.importing import bring, picture, save

from granvit.corpus.importers import import_corpus, parquet
from granvit.corpus.store import Corpus, CorpusError
from granvit.regions import Turn

PICTURE = picture()


def table(file, **columns):
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)
    return file


def test_a_table_of_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = {"image": [{"bytes": PICTURE, "path": None}] * 2, "text": ["A dog.", None]}
    file = tmp_path / "hub/data/validation-00000-of-00001.parquet"
    file.parent.mkdir(parents=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(file)
    [first, second], refused = bring("parquet", tmp_path / "hub", tmp_path / "out")
    assert first.id == "hub/data/validation-00000-of-00001.parquet:0"
    assert (first.image, first.caption, first.split, first.regions) == (PICTURE, "A dog.", "val", [])
    assert (second.caption, refused) == (None, [])


def test_other_columns(tmp_path):
    save(tmp_path / "t/b.jpg")
    pictures = [{"bytes": PICTURE, "path": "x"}, {"bytes": None, "path": "b.jpg"}]
    file = table(tmp_path / "t/a.parquet", jpg=pictures, id=[7, 8], caption=[["short", "the longest"], []])
    [first, second], _ = bring("parquet", file, tmp_path / "out", image_column="jpg", source="mine", split="test")
    assert [(r.id, r.caption, r.split) for r in (first, second)] == [
        ("mine/7", "the longest", "test"),
        ("mine/8", None, "test"),
    ]
    assert second.image == (tmp_path / "t/b.jpg").read_bytes()
    [plain], _ = bring("parquet", table(tmp_path / "plain.parquet", image=[PICTURE]), tmp_path / "plain")
    assert plain.image == PICTURE


def test_damage(tmp_path):
    src = tmp_path / "t"
    good = table(src / "d.parquet", image=[{"bytes": PICTURE, "path": None}])
    (src / "a.parquet").write_bytes(good.read_bytes()[:-20])
    (src / "b.parquet").write_text("no table")
    table(src / "c.parquet", picture=[PICTURE])
    table(
        src / "e.parquet",
        image=[
            {"bytes": b"no picture", "path": None},
            {"bytes": None, "path": None},
            {"bytes": None, "path": "../secret.jpg"},
            None,
        ],
    )
    records, refused = bring("parquet", src, tmp_path / "out")
    assert [r.uri for r in records] == ["d.parquet:0"]
    assert [(r.reason, r.uri) for r in refused] == [
        ("damaged-parquet", "a.parquet"), ("damaged-parquet", "b.parquet"), ("missing-field", "c.parquet"),
        ("not-an-image", "e.parquet:0"), ("missing-image", "e.parquet:1"), ("path-outside", "e.parquet:2"),
        ("missing-image", "e.parquet:3"),
    ]  # fmt: skip


def test_no_tables(tmp_path):
    with pytest.raises(CorpusError, match=r"holds no \*\.parquet"):
        bring("parquet", tmp_path, tmp_path / "out")


def small(file, groups=1, **columns):
    """A table whose long values are stored once for all rows."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = pa.table(columns)
    with pq.ParquetWriter(file, rows.schema, compression="zstd") as writer:
        for _ in range(groups):
            writer.write_table(rows)
    return file


def detection(tmp_path, objects, names=None, **options):
    features = {
        "objects": {"bbox": {"_type": "Sequence"}, "category": {"feature": {"names": names, "_type": "ClassLabel"}}}
    }
    table_ = pa.table({"image": [PICTURE] * len(objects), "objects": objects})
    if names:
        table_ = table_.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table_, tmp_path / "d.parquet")
    records, refused = bring("parquet", tmp_path / "d.parquet", tmp_path / "out", **options)
    return [[(r.box, r.text) for r in record.regions] for record in records], [(r.reason, r.region) for r in refused]


def test_objects_as_detection_sets_have_them(tmp_path):
    lists = {"bbox": [[1.0, 2.0, 10.0, 5.0], [0.0, 0.0, 4.0, 4.0]], "category": [1, 0], "area": [50.0, 16.0]}
    structs = [{"bbox": b, "category": c} for b, c in zip(lists["bbox"], lists["category"], strict=True)]
    expected = [((1.0, 2.0, 11.0, 7.0), "dog"), ((0.0, 0.0, 4.0, 4.0), "cat")]
    for number, objects in enumerate((lists, structs)):
        (tmp_path / str(number)).mkdir()
        assert detection(tmp_path / str(number), [objects], ["cat", "dog"]) == ([expected], [])


def test_objects_with_corners_and_names(tmp_path):
    objects = [{"bbox": [[1.0, 2.0, 11.0, 7.0]], "category": ["dog"]}]
    assert detection(tmp_path, objects, box_format="xyxy") == ([[((1.0, 2.0, 11.0, 7.0), "dog")]], [])
    with pytest.raises(CorpusError, match="xywh or xyxy"):
        bring("parquet", tmp_path / "d.parquet", tmp_path / "o", box_format="cxcywh")


def test_a_category_without_a_name_is_no_text(tmp_path):
    objects = [
        {"bbox": [[1.0, 2.0, 9.0, 7.0]] * 3, "category": [0, 1, -1]},
        {"bbox": [[1.0, 2.0, 9.0]], "category": [0]},
    ]
    regions, refused = detection(tmp_path, objects, ["cat"])
    assert regions == [[((1.0, 2.0, 10.0, 9.0), "cat")], []]
    assert refused == [("unknown-category", 1), ("unknown-category", 2), ("bad-box", 0)]
    with pytest.raises(CorpusError, match="none of 4 regions could be used.*unknown-category 4"):
        (tmp_path / "unnamed").mkdir()
        detection(tmp_path / "unnamed", objects)


def test_numbers_are_named_by_their_own_class_label(tmp_path):
    """Other columns of an object may be class labels too, and come first."""
    names = {"occluded": ["yes", "no"], "category": ["cat", "dog"]}
    labels = {name: {"feature": {"names": each, "_type": "ClassLabel"}} for name, each in names.items()}
    for number, features in enumerate((labels, {"feature": labels, "_type": "Sequence"}, [labels])):
        objects = [{"occluded": [0], "bbox": [[1.0, 2.0, 10.0, 5.0]], "category": [1]}]
        info = json.dumps({"info": {"features": {"objects": features}}})
        rows = pa.table({"image": [PICTURE], "objects": objects}).replace_schema_metadata({"huggingface": info})
        pq.write_table(rows, tmp_path / f"{number}.parquet")
        [record], _ = bring("parquet", tmp_path / f"{number}.parquet", tmp_path / f"out{number}")
        assert [r.text for r in record.regions] == ["dog"]


def test_numbers_that_pandas_made_floats_of(tmp_path):
    objects = [{"bbox": [[1.0, 2.0, 9.0, 7.0]] * 5, "category": [1.0, 2.0, 0.5, float("nan"), None]}]
    regions, refused = detection(tmp_path, objects, ["cat", "dog"])
    assert regions == [[((1.0, 2.0, 10.0, 9.0), "dog")]]
    assert refused == [("unknown-category", 1), ("unknown-category", 2), ("empty-text", 3), ("empty-text", 4)]
    (tmp_path / "unnamed").mkdir()
    with pytest.raises(CorpusError, match="unknown-category 3"):
        detection(tmp_path / "unnamed", objects)


def test_lists_of_unequal_length_lose_nothing(tmp_path):
    objects = [{"bbox": [[1.0, 2.0, 9.0, 7.0]], "category": ["a", "b"]}]
    assert detection(tmp_path, objects) == ([[((1.0, 2.0, 10.0, 9.0), "a")]], [("bad-box", 1)])


def test_objects_as_datasets_writes_them(tmp_path):
    datasets = pytest.importorskip("datasets")
    box = datasets.Sequence(datasets.Value("float32"), length=4)
    fields = {"bbox": box, "category": datasets.ClassLabel(names=["cat", "dog"])}
    objects = {"bbox": [[1, 2, 10, 5]], "category": [1]}
    for number, (inner, value) in enumerate(
        [(datasets.Sequence(fields), objects), ([fields], [{"bbox": [1, 2, 10, 5], "category": 1}])]
    ):
        features = datasets.Features({"image": datasets.Image(), "objects": inner})
        rows = {"image": [{"bytes": PICTURE, "path": None}], "objects": [value]}
        file = tmp_path / f"{number}.parquet"
        datasets.Dataset.from_dict(rows, features=features).to_parquet(file)
        [record], _ = bring("parquet", file, tmp_path / f"out{number}")
        assert [(r.box, r.text) for r in record.regions] == [((1.0, 2.0, 11.0, 7.0), "dog")]


def test_pictures_as_paths_and_lists(tmp_path):
    save(tmp_path / "t/b.jpg")
    table(tmp_path / "t/a.parquet", image=["b.jpg", "none.jpg", ""])
    table(tmp_path / "t/c.parquet", image=[[PICTURE], [], [PICTURE, PICTURE]])
    records, refused = bring("parquet", tmp_path / "t", tmp_path / "out")
    assert [r.uri for r in records] == ["a.parquet:0", "c.parquet:0"]
    assert [r.reason for r in refused] == ["missing-image", "missing-image", "missing-image", "several-images"]


def test_what_is_not_read_is_counted(tmp_path):
    table(tmp_path / "a.parquet", image=[PICTURE] * 2, caption=[["a", "bb", "c"], ["d"]], width=[1, 2])
    summary = import_corpus("parquet", tmp_path / "a.parquet", tmp_path / "out")
    assert summary.left_out == {"column 'width'": 2, "further captions of a picture": 2}


def test_the_folder_tells_the_split(tmp_path):
    table(tmp_path / "default/test/0000.parquet", image=[PICTURE])
    [record], _ = bring("parquet", tmp_path / "default", tmp_path / "out")
    assert record.split == "test"


def test_a_text_that_is_no_utf8_costs_its_row(tmp_path):
    bad = pa.StringArray.from_buffers(
        3, pa.py_buffer(np.array([0, 4, 8, 12], np.int32)), pa.py_buffer(b"goodcaf\xe9fine")
    )
    table(tmp_path / "a.parquet", image=[PICTURE] * 3, caption=bad)
    records, refused = bring("parquet", tmp_path / "a.parquet", tmp_path / "out")
    assert [r.caption for r in records] == ["good", "fine"]
    assert [(r.reason, r.uri) for r in refused] == [("bad-encoding", "a.parquet:1")]


def test_a_value_that_many_rows_share_is_decoded_within_bounds(tmp_path, monkeypatch):
    long = "a" * (2 << 20)
    file = small(tmp_path / "a.parquet", image=[PICTURE] * 64, caption=[long] * 64)
    assert file.stat().st_size < 20_000
    monkeypatch.setattr(parquet, "_MAX_BATCH_BYTES", 8 << 20)
    sizes = []
    decode = parquet.row_of
    monkeypatch.setattr(parquet, "row_of", lambda batch, i: sizes.append(batch.nbytes) or decode(batch, i))
    assert len(list(parquet.read_rows(file))) == 64
    assert max(sizes) < 8 << 20
    monkeypatch.setattr(parquet, "MAX_FILE_BYTES", 1 << 20)
    assert {row.reason for row in parquet.read_rows(file)} == {"too-costly"}
    monkeypatch.setattr(parquet, "MAX_FILE_BYTES", 8 << 20)
    summary = import_corpus("parquet", file, tmp_path / "out")
    assert (summary.images_written, summary.changes["caption-dropped"]) == (64, 64)


def test_dictionaries_that_the_table_keeps(tmp_path, monkeypatch):
    texts = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 0], pa.int32()), pa.array(["a" * 3000, "short"]))
    pictures = pa.DictionaryArray.from_arrays(pa.array([0] * 4, pa.int32()), pa.array([PICTURE]))
    table(tmp_path / "a.parquet", image=pictures, caption=texts)
    monkeypatch.setattr(parquet, "MAX_FILE_BYTES", 1000)
    records, refused = bring("parquet", tmp_path / "a.parquet", tmp_path / "out")
    assert [(r.uri, r.image, r.caption) for r in records] == [
        ("a.parquet:1", PICTURE, "short"), ("a.parquet:2", PICTURE, None)
    ]  # fmt: skip
    assert [(r.reason, r.uri) for r in refused] == [("too-costly", "a.parquet:0"), ("too-costly", "a.parquet:3")]


def test_a_row_group_that_is_nothing_but_compression_is_refused_and_the_next_one_read(tmp_path, monkeypatch):
    zeros = [bytes(4 << 20)]
    with pq.ParquetWriter(tmp_path / "a.parquet", pa.schema([("image", pa.binary())]), compression="zstd") as writer:
        writer.write_table(pa.table({"image": zeros}))
        writer.write_table(pa.table({"image": [PICTURE]}))
    monkeypatch.setattr(parquet, "_MAX_GROUP_BYTES", 1 << 20)
    [record], refused = bring("parquet", tmp_path / "a.parquet", tmp_path / "out")
    assert record.image == PICTURE
    assert [(r.reason, r.detail.partition(":")[0]) for r in refused] == [("too-costly", "row group 0 of 1 rows")]


def test_a_damaged_row_group_does_not_cost_the_others(tmp_path):
    with pq.ParquetWriter(tmp_path / "a.parquet", pa.schema([("image", pa.binary())]), compression="zstd") as writer:
        for _ in range(3):
            writer.write_table(pa.table({"image": [PICTURE] * 5}))
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    at = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(1).column(0).dictionary_page_offset
    data[at : at + 30] = b"\xff" * 30
    (tmp_path / "a.parquet").write_bytes(data)
    records, refused = bring("parquet", tmp_path / "a.parquet", tmp_path / "out")
    assert [r.uri for r in records] == [f"a.parquet:{n}" for n in (*range(5), *range(10, 15))]
    assert [(r.reason, r.uri) for r in refused] == [("damaged-parquet", f"a.parquet:{n}") for n in range(5, 10)]


def test_a_pipe_among_the_tables(tmp_path):
    table(tmp_path / "a.parquet", image=[PICTURE])
    os.mkfifo(tmp_path / "b.parquet")
    records, refused = bring("parquet", tmp_path, tmp_path.parent / f"{tmp_path.name}-out")
    assert (len(records), [r.reason for r in refused]) == (1, ["damaged-parquet"])


def test_rows_that_a_few_bytes_claim(tmp_path):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": pa.nulls(100_000, pa.binary())}), file)
    with pytest.raises(CorpusError, match="none of 1 images.*damaged-parquet 1"):
        import_corpus("parquet", file, tmp_path / "out")


def said(*texts):
    return [Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]


SHOWN = {"bytes": PICTURE, "path": None}


def test_messages_with_a_list_of_pictures(tmp_path):
    """As instruction sets of the hub have them: contents of parts, texts alone, several pictures."""
    ask = [{"type": "image", "text": None}, {"type": "text", "text": "What is <image>?"}]
    asked = [{"role": "user", "content": ask}, {"role": "assistant", "content": [{"type": "text", "text": "Green."}]}]
    rows = [
        {"images": [SHOWN], "messages": asked},
        {"images": [], "messages": [{"role": m["role"], "content": m["content"][-1:]} for m in asked]},
        {"images": [SHOWN, SHOWN], "messages": asked},
        {"images": [], "messages": asked},
        {"images": [SHOWN], "messages": asked[:1]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train-0.parquet")
    [pictured, alone, kept], refused = bring("parquet", tmp_path / "train-0.parquet", tmp_path / "out", source="hub")
    assert pictured.conversations == alone.conversations == [said("What is <image>?", "Green.")]
    assert (pictured.image, pictured.split, alone.text_only, alone.split) == (PICTURE, "train", True, "train")
    assert alone.id == "hub/train-0.parquet:1"
    assert (kept.image, kept.conversations) == (PICTURE, [])
    assert [(r.reason, r.conversation, r.conversations) for r in refused] == [
        ("several-images", None, 1), ("image-token", None, 1), ("bad-turns", 0, 0),
    ]  # fmt: skip


def test_the_cauldron(tmp_path):
    texts = [{"user": "What?", "assistant": "A field.", "source": "x"}, {"user": "Colour?", "assistant": "Green."}]
    bad = [{"user": "What?", "assistant": None, "source": "x"}]
    rows = [{"images": [SHOWN], "texts": texts}, {"images": [SHOWN], "texts": bad}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train-0.parquet")
    [got, empty], refused = bring("parquet", tmp_path / "train-0.parquet", tmp_path / "out")
    assert got.conversations == [said("What?", "A field.", "Colour?", "Green.")] and empty.conversations == []
    assert [(r.reason, r.conversation) for r in refused] == [("bad-field", 0)]


def test_one_picture_and_conversations(tmp_path):
    """LLaVA-OneVision's columns."""
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A field."}]
    plain = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    rows = [
        {"id": "a", "image": SHOWN, "conversations": turns, "data_source": "x"},
        {"id": "b", "image": None, "conversations": plain, "data_source": "x"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train-0.parquet")
    [got, alone], refused = bring("parquet", tmp_path / "train-0.parquet", tmp_path / "out")
    assert (got.id, got.conversations, refused) == ("train-0/a", [said("What?", "A field.")], [])
    assert (alone.id, alone.conversations, alone.text_only) == ("train-0/b", [said("Hi", "Ho")], True)
    left_out = import_corpus("parquet", tmp_path / "train-0.parquet", tmp_path / "again").left_out
    assert left_out == {"column 'data_source'": 2}


def test_what_stands_beside_what_is_read_is_counted(tmp_path):
    first, second = ([{"role": r, "content": f"{r} {n}"} for r in ("user", "assistant")] for n in (1, 2))
    cauldron = [{"user": "What?", "assistant": "A field."}]
    rows = [
        {"image": SHOWN, "caption": "short", "text": "much longer", "conversations": first, "messages": second},
        {"image": None, "caption": "of nothing", "conversations": [], "messages": second},
        {"image": SHOWN, "text": "alone", "texts": cauldron, "messages": first},
        {"image": SHOWN, "texts": [], "messages": second},
    ]
    names = ("image", "caption", "text", "conversations", "messages", "texts")
    pq.write_table(pa.Table.from_pylist([{n: row.get(n) for n in names} for row in rows]), tmp_path / "a.parquet")
    summary = import_corpus("parquet", tmp_path / "a.parquet", tmp_path / "out")
    assert summary.left_out == {
        "field 'text' beside 'caption'": 1, "field 'messages' beside 'conversations'": 1,
        "field 'messages' beside 'texts'": 1, "captions of rows without a picture": 1,
    }  # fmt: skip
    records = [(r.caption, [talk[1].text for talk in r.conversations]) for r in Corpus(tmp_path / "out")]
    assert records == [
        ("short", ["assistant 1"]), (None, ["assistant 2"]), ("alone", ["A field."]), (None, ["assistant 2"])
    ]  # fmt: skip
