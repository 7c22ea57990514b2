"""A corpus is whole or absent, is read back exactly, opens in other tools, and betrays every change."""

import io
import json
import multiprocessing
import operator
import os
import pickle
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from granvit.corpus import store
from granvit.corpus.check import verify
from granvit.corpus.store import Corpus, CorpusError, CorpusWriter
from granvit.regions import Region, RegionImage, Turn

ROOT = Path(__file__).resolve().parents[2]


def picture(width: int = 40, height: int = 30, colour: tuple[int, int, int] = (200, 10, 10)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def record(number: int) -> RegionImage:
    return RegionImage(
        id=f"set/{number}.png",
        image=picture(colour=(number, 0, 0)),
        width=40,
        height=30,
        regions=[
            Region((1.5, 2, 20, 10.25), "ein Hund 🐕", score=0.5, box_by="detector:x", alternatives=["dog", "pet"]),
            Region((0, 0, 40, 30), "TOTAL", "text", polygon=[0, 0, 40, 0, 40, 30, 0, 30], ignore=True),
        ][: number % 3],
        uri=f"{number}.png",
        source="a" if number % 2 else "b",
        licence="CC0",
        caption=None if number % 2 else "a scene",
        split="val" if number == 0 else "train",
    )


def write(path: Path, count: int = 7, rows_per_shard: int = 4, **options) -> list[RegionImage]:
    records = [record(i) for i in range(count)]
    with CorpusWriter(path, rows_per_shard, **options) as writer:
        for item in records:
            writer.write(item)
    return records


@pytest.fixture
def small_groups(monkeypatch):
    monkeypatch.setattr(store, "ROW_GROUP_ROWS", 3)


# Reading back


def test_round_trip_in_order_and_at_random(tmp_path, small_groups):
    records = write(tmp_path, 11)
    corpus = Corpus(tmp_path)
    assert [shard["rows"] for shard in corpus.manifest["shards"]] == [4, 4, 3]
    assert len(corpus) == 11
    assert list(corpus) == records
    assert [corpus[i] for i in (10, 0, 3, 4, 7, 8, 3, -1, -11)] == [records[i] for i in (10, 0, 3, 4, 7, 8, 3, -1, 0)]
    for outside in (11, -12):
        with pytest.raises(IndexError, match="11 images"):
            corpus[outside]


def test_records_skip_the_picture_only(tmp_path, small_groups):
    records = write(tmp_path)
    assert list(Corpus(tmp_path).records()) == [replace(r, image=None) for r in records]


numbers = st.floats(0, 30, width=32)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
regions = st.builds(
    Region,
    box=st.tuples(numbers, numbers, numbers, numbers),
    text=texts,
    kind=st.sampled_from(["object", "text"]),
    score=st.none() | st.floats(0, 1, width=32),
    alternatives=st.lists(texts, max_size=3),
    polygon=st.none() | st.lists(numbers, min_size=1, max_size=8),
    ignore=st.booleans(),
)


rounds = st.lists(st.tuples(texts.filter(bool), texts.filter(bool)), min_size=1, max_size=3)
conversations = rounds.map(
    lambda pairs: [Turn(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]
)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(regions, max_size=5), st.none() | st.binary(max_size=50), st.none() | texts,
    st.lists(conversations, max_size=3),
)  # fmt: skip
def test_any_record_round_trips(tmp_path_factory, some_regions, image, caption, said):
    path = tmp_path_factory.mktemp("corpus")
    original = replace(record(1), regions=some_regions, image=image, caption=caption, conversations=said)
    with CorpusWriter(path) as writer:
        writer.write(original)
    assert Corpus(path)[0] == original
    assert Corpus(path).manifest["conversations"] == len(said)


def test_a_corpus_that_an_earlier_version_wrote_opens_as_before(tmp_path):
    """The folder was written by version 0.2.0 with `write(folder, 3)`."""
    before = Path(__file__).parent / "written_before"
    corpus = Corpus(before)
    assert corpus.manifest["schema_version"] == 1 and verify(before) == []
    assert list(corpus) == [record(i) for i in range(3)]
    assert [corpus[i] for i in (2, 0)] == [record(2), record(0)]
    assert list(corpus.records()) == [replace(record(i), image=None) for i in range(3)]
    again = tmp_path / "again"
    with CorpusWriter(again) as writer:
        for item in corpus:
            writer.write(item)
    assert Corpus(again).manifest["schema_version"] == 2 and list(Corpus(again)) == list(corpus)


def test_a_record_of_conversations_alone(tmp_path):
    alone = RegionImage(
        "talk/1", None, 0, 0, [], source="talk", conversations=[[Turn("user", "Hi"), Turn("assistant", "Ho")]]
    )
    with CorpusWriter(tmp_path) as writer:
        writer.write(alone)
        writer.write(record(1))
    assert list(Corpus(tmp_path)) == [alone, record(1)] and verify(tmp_path) == []
    assert [found.text_only for found in Corpus(tmp_path).records()] == [True, False]


def test_row_groups_stay_small_in_rows_and_bytes(tmp_path, monkeypatch):
    write(tmp_path / "many", 150, rows_per_shard=1000)
    many = pq.ParquetFile(tmp_path / "many" / "part-00000.parquet").metadata
    assert [many.row_group(i).num_rows for i in range(many.num_row_groups)] == [64, 64, 22]
    monkeypatch.setattr(store, "ROW_GROUP_BYTES", len(picture()) + 1)
    write(tmp_path / "large", 5, rows_per_shard=1000)
    large = pq.ParquetFile(tmp_path / "large" / "part-00000.parquet").metadata
    assert large.num_row_groups == 3


def test_pictures_are_stored_as_they_are_and_the_rest_is_packed(tmp_path):
    write(tmp_path)
    group = pq.ParquetFile(tmp_path / "part-00000.parquet").metadata.row_group(0)
    codecs = {group.column(i).path_in_schema: group.column(i).compression for i in range(group.num_columns)}
    assert codecs.pop("image.bytes") == "UNCOMPRESSED"
    assert set(codecs.values()) == {"ZSTD"}
    assert picture(colour=(2, 0, 0)) in (tmp_path / "part-00000.parquet").read_bytes()


def test_usable_from_other_processes_and_threads(tmp_path, small_groups):
    records = write(tmp_path, 11)
    corpus = Corpus(tmp_path)
    assert corpus[5] == records[5]
    assert pickle.loads(pickle.dumps(corpus))[5] == records[5]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(operator.getitem, (corpus, 5)) == records[5]
    order = [i * 7 % 11 for i in range(110)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(corpus.__getitem__, order)) == [records[i] for i in order]


def test_manifest_counts(tmp_path):
    write(tmp_path, meta={"importer": "none"})
    manifest = Corpus(tmp_path).manifest
    assert (manifest["images"], manifest["regions"]) == (7, 6)
    assert manifest["regions_by_kind"] == {"object": 4, "text": 2}
    assert manifest["images_by_source"] == {"a": 3, "b": 4}
    assert manifest["images_by_split"] == {"val": 1, "train": 6}
    assert manifest["meta"] == {"importer": "none"}


# Other tools


def test_opens_in_datasets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    records = write(tmp_path / "corpus")
    (tmp_path / "corpus" / "quarantine.jsonl").write_text('{"id": "x"}\n')
    by_files = {"path": "parquet", "data_files": str(tmp_path / "corpus" / "*.parquet")}
    for how in (by_files, {"path": str(tmp_path / "corpus")}):
        loaded = datasets.load_dataset(**how, split="train", cache_dir=str(tmp_path / "cache"))
        assert loaded.num_rows == len(records)
        assert isinstance(loaded[2]["image"], Image.Image)
        assert loaded[2]["image"].size == (40, 30)
        assert loaded[2]["regions"][0]["text"] == "ein Hund 🐕"
        assert loaded[2]["regions"][0]["box"] == [1.5, 2, 20, 10.25]


def test_opens_in_duckdb(tmp_path):
    duckdb = pytest.importorskip("duckdb")
    write(tmp_path)
    rows = duckdb.sql(
        f"SELECT r.kind, count(*), min(r.box[1]) FROM (SELECT unnest(regions) AS r FROM '{tmp_path}/*.parquet') "
        "GROUP BY r.kind ORDER BY r.kind"
    ).fetchall()
    assert rows == [("object", 4, 1.5), ("text", 2, 0.0)]


# Whole or absent


def test_a_writer_that_raises_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="mid-way"):
        with CorpusWriter(tmp_path / "corpus", rows_per_shard=2) as writer:
            for i in range(5):
                writer.write(record(i))
            raise RuntimeError("mid-way")
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / "corpus")
    assert verify(tmp_path / "corpus") == []


def test_a_killed_writer_leaves_nothing_readable(tmp_path):
    code = f"""
import os, signal
from granvit.corpus.store import CorpusWriter
from granvit.regions import RegionImage
with CorpusWriter({str(tmp_path / "corpus")!r}, rows_per_shard=2) as writer:
    for i in range(5):
        writer.write(RegionImage(str(i), b"x", 1, 1, []))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL
    assert any(tmp_path.rglob("part-00001.parquet"))
    with pytest.raises(CorpusError, match="not a folder"):
        Corpus(tmp_path / "corpus")
    records = write(tmp_path / "corpus")
    assert list(Corpus(tmp_path / "corpus")) == records
    assert sorted(p.name for p in tmp_path.rglob("*")) == [
        "corpus", "manifest.json", "part-00000.parquet", "part-00001.parquet"
    ]  # fmt: skip


def test_overwriting_keeps_the_old_corpus_until_the_new_is_whole(tmp_path):
    old = write(tmp_path, 9)
    with pytest.raises(CorpusError, match="not empty.*overwrite"):
        CorpusWriter(tmp_path).__enter__()
    with pytest.raises(RuntimeError):
        with CorpusWriter(tmp_path, overwrite=True) as writer:
            writer.write(record(1))
            raise RuntimeError
    assert list(Corpus(tmp_path)) == old
    new = write(tmp_path, 2, overwrite=True)
    assert list(Corpus(tmp_path)) == new
    assert verify(tmp_path) == []


def test_never_overwrites_files_of_others(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(CorpusError, match="thesis.tex"):
            CorpusWriter(tmp_path, overwrite=overwrite).__enter__()
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    with pytest.raises(CorpusError, match="is a file"):
        CorpusWriter(tmp_path / "thesis.tex").__enter__()


def test_an_empty_corpus_is_an_error_at_both_ends(tmp_path):
    with pytest.raises(CorpusError, match="no image was written"):
        write(tmp_path / "corpus", 0)
    assert not (tmp_path / "corpus" / "manifest.json").exists()
    write(tmp_path / "corpus")
    edit_manifest(tmp_path / "corpus", shards=[], images=0)
    with pytest.raises(CorpusError, match="manifest.json: the corpus is empty"):
        Corpus(tmp_path / "corpus")


def test_an_id_is_written_once(tmp_path):
    with pytest.raises(CorpusError, match="set/1.png"):
        with CorpusWriter(tmp_path) as writer:
            writer.write(record(1))
            assert "set/1.png" in writer
            assert "set/2.png" not in writer
            writer.write(record(1))


# Clear errors


def edit_manifest(path: Path, **changes) -> None:
    file = path / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_missing_or_foreign_manifest(tmp_path):
    with pytest.raises(CorpusError, match="not a folder"):
        Corpus(tmp_path / "nowhere")
    with pytest.raises(CorpusError, match="manifest.json is missing"):
        Corpus(tmp_path)
    write(tmp_path)
    edit_manifest(tmp_path, schema_version=99)
    with pytest.raises(CorpusError, match="manifest.json: schema_version is 99"):
        Corpus(tmp_path)
    for damaged in ("{", "[]", "{}", '{"schema_version": 1, "shards": [{}]}'):
        (tmp_path / "manifest.json").write_text(damaged)
        with pytest.raises(CorpusError, match="manifest.json: damaged"):
            Corpus(tmp_path)


def rewritten(path: Path, change) -> Corpus:
    write(path)
    table = pq.read_table(path / "part-00000.parquet")
    pq.write_table(change(table), path / "part-00000.parquet")
    return Corpus(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.drop_columns(["regions", "split"]),
            "part-00000.parquet: the column.s. split, regions are missing",
        ),
        (lambda t: t.set_column(2, "width", t["id"]), "part-00000.parquet: column 'width' is string"),
        (lambda t: t.replace_schema_metadata({"granvit_schema": "7"}), "part-00000.parquet: granvit_schema is '7'"),
        (lambda t: t.replace_schema_metadata(None), "part-00000.parquet: granvit_schema is ''"),
        (lambda t: t.slice(1), "part-00000.parquet: has 3 rows, manifest.json says 4"),
    ],
)
def test_a_foreign_shard_is_named_with_its_column(tmp_path, change, message):
    corpus = rewritten(tmp_path, change)
    for read in (lambda: corpus[0], lambda: next(iter(corpus)), lambda: next(corpus.records())):
        with pytest.raises(CorpusError, match=message):
            read()
    assert verify(tmp_path) != []


def test_a_damaged_shard_is_named(tmp_path):
    write(tmp_path)
    (tmp_path / "part-00000.parquet").write_bytes(b"PAR1 this is no Parquet PAR1")
    (tmp_path / "part-00001.parquet").unlink()
    corpus = Corpus(tmp_path)
    for index, name in ((0, "part-00000"), (5, "part-00001")):
        with pytest.raises(CorpusError, match=name):
            corpus[index]


# Verification


def test_verify_passes_a_good_corpus_without_touching_it(tmp_path):
    write(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert verify(tmp_path) == []
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_verify_finds_one_flipped_bit_anywhere(tmp_path):
    write(tmp_path, 3)
    file = tmp_path / "part-00000.parquet"
    good = file.read_bytes()
    for position in range(0, len(good), max(1, len(good) // 40)):
        file.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        assert any("checksum" in problem for problem in verify(tmp_path)), position


def test_verify_finds_missing_and_additional_shards(tmp_path):
    write(tmp_path)
    (tmp_path / "part-00001.parquet").rename(tmp_path / "part-00002.parquet")
    problems = verify(tmp_path)
    assert any("part-00001.parquet: missing" in p for p in problems)
    assert any("part-00002.parquet: not in manifest.json" in p for p in problems)
    assert any("manifest.json: images is 7, the shards hold 4" in p for p in problems)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 8}, "images is 8, the shards hold 7"),
        ({"regions": 5}, "regions is 5, the shards hold 6"),
        ({"regions_by_kind": {"object": 6}}, "regions_by_kind of 'text' is 0, the shards hold 2"),
        ({"images_by_split": {"val": 1, "train": 6, "test": 1}}, "images_by_split of 'test' is 1, the shards hold 0"),
        ({"images_by_source": {}}, "images_by_source of 'a' is 0, the shards hold 3"),
    ],
)
def test_verify_finds_wrong_counts(tmp_path, changes, message):
    write(tmp_path)
    edit_manifest(tmp_path, **changes)
    assert any(message in problem for problem in verify(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": b"no picture"}, "row 1 (set/2.png): not-an-image"),
        ({"width": 41}, "size-mismatch"),
        ({"regions": [Region((0, 0, 50, 10), "x")]}, "clipped"),
        ({"regions": [Region((50, 0, 60, 10), "x")]}, "region 0: outside"),
        ({"regions": [Region((0, 0, 20, 10), "x\0")]}, "cleaned"),
    ],
)
def test_verify_finds_records_that_never_passed_the_gate(tmp_path, changes, message):
    with CorpusWriter(tmp_path) as writer:
        writer.write(record(1))
        writer.write(replace(record(2), **changes))
    problems = verify(tmp_path)
    assert len(problems) == 1
    assert message in problems[0]


def test_verify_finds_duplicate_ids(tmp_path):
    with CorpusWriter(tmp_path, rows_per_shard=1) as writer:
        writer.write(record(1))
        writer.write(record(2))
    (tmp_path / "part-00001.parquet").write_bytes((tmp_path / "part-00000.parquet").read_bytes())
    assert any("duplicate-id" in problem for problem in verify(tmp_path))
