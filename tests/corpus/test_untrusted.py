"""A corpus that somebody edited, or that decayed on its disk: nothing of it becomes a path, data or a new checksum."""

import io
import json
import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.drawn import corpus as write_corpus
from PIL import Image

from granvit.cli import main
from granvit.corpus import check, store
from granvit.corpus.check import check_record, read_quarantine, verify
from granvit.corpus.dedup.perceptual_hash import FingerprintFile, store_fingerprints
from granvit.corpus.derive import training_part
from granvit.corpus.exporters.base import part_of
from granvit.corpus.importers.run import import_corpus
from granvit.corpus.layout import CorpusError
from granvit.corpus.store import Corpus
from granvit.regions import Region, RegionImage


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (600, 500), (number, 9 * number, 40)).save(buffer, "PNG")
    return buffer.getvalue()


def record(number: int, **changes) -> RegionImage:
    box = Region((10, 20, 300, 200), f"a thing {number}")
    whole = RegionImage(
        f"set/{number}", png(number), 600, 500, [box], f"{number}.png", "set", "CC0", "a scene", "train"
    )
    return replace(whole, **changes)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def run(*args: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(arg) for arg in args])
    return int(ended.value.code or 0)


# Every command that reads a whole corpus, and what it would write.
READERS = {
    "stats": ["stats", "{in}"],
    "sample": ["sample", "{in}", "{out}", "--count", "3"],
    "merge": ["merge", "{in}", "{good}", "{out}"],
    "split": ["split", "{in}", "{out}"],
    "tile": ["tile", "{in}", "{out}", "--side", "200"],
    "curate": ["curate", "{in}", "{out}"],
    "leakage": ["leakage", "{in}", "--against", "{good}", "--out", "{out}", "--report", "{folder}/found.json"],
    "coco": ["export", "coco", "{in}", "{out}"],
    "webdataset": ["export", "webdataset", "{in}", "{out}"],
    "llava": ["export", "llava", "{in}", "{out}"],
    "audit": ["audit", "{in}", "{out}"],
}


def read_all(tmp_path: Path, name: str) -> int:
    places = {"in": tmp_path / "in", "good": tmp_path / "good", "out": tmp_path / "deep" / "out", "folder": tmp_path}
    return run("corpus", *(arg.format(**places) for arg in READERS[name]))


# --- values of rows --------------------------------------------------------------------------------------------------

VALUES = [
    ({"split": "../../escaped"}, "split is '../../escaped'"),
    ({"split": "/abs/victim"}, "split is '/abs/victim'"),
    ({"id": "a\0b"}, r"id is 'a\\x00b'"),
    ({"id": ""}, "id is empty"),
    ({"uri": "a\x1b[31m"}, "uri is"),
    ({"licence": "a\rb"}, "licence is"),
    ({"source": None}, "source is None"),
    ({"width": 0}, "its size is 0x500"),
    ({"height": -5}, "its size is 600x-5"),
    ({"regions": [Region((0, 0, float("nan"), 5), "x")]}, "region 0: box is"),
    ({"regions": [Region((0, 0, 9, 9), "x"), Region((0, 0, float("inf"), 5), "x")]}, "region 1: box is"),
    ({"regions": [Region((0, 0, 9, 9), "x", "thing")]}, "region 0: kind is 'thing'"),
    ({"regions": [Region((0, 0, 9, 9), None)]}, "region 0: text is missing"),
    ({"regions": [Region((0, 0, 9, 9), "x", score=7.0)]}, "region 0: score is 7.0"),
    ({"regions": [Region((0, 0, 9, 9), "x", alternatives=[None])]}, "region 0: an alternative text is missing"),
    ({"regions": [Region((0, 0, 9, 9), "x", polygon=[0.0, float("nan")])]}, "region 0: a coordinate of the polygon"),
]


@pytest.mark.parametrize(("changes", "problem"), VALUES)
def test_no_consumer_gets_a_record_with_values_that_no_record_has(tmp_path, changes, problem):
    found = write_corpus(tmp_path / "in", [record(0), record(1, **changes)])
    for read in (lambda: found[1], lambda: list(found), lambda: list(found.records()), lambda: training_part(found)):
        with pytest.raises(CorpusError, match=f"part-00000.parquet: row group 0: record .*{problem}"):
            read()
    assert any(problem.split("'")[0] in line for line in verify(tmp_path / "in"))


@pytest.mark.parametrize("name", READERS)
def test_no_text_of_a_corpus_becomes_a_path(tmp_path, capsys, name):
    write_corpus(tmp_path / "good", [record(9)])
    (tmp_path / "victim").write_text("mine")
    for split in ("../../victim", str(tmp_path / "victim"), "../escaped"):
        write_corpus(tmp_path / "in", [record(0), record(1, split=split)])
        before = names(tmp_path)
        assert read_all(tmp_path, name) == 1
        assert f"split is '{split}'" in capsys.readouterr().err
        assert [n for n in names(tmp_path) if n != "deep"] == before
        (tmp_path / "deep").rmdir() if (tmp_path / "deep").exists() else None
        for file in (tmp_path / "in").iterdir():
            file.unlink()


def test_exporters_name_no_file_by_a_text():
    assert [part_of(record(0, split=split)) for split in ("", "train", "val")] == ["all", "train", "val"]
    with pytest.raises(CorpusError, match=r"split is '\.\./a'"):
        part_of(record(0, split="../a"))


def test_a_text_that_is_no_utf8_is_one_sentence(tmp_path):
    write_corpus(tmp_path / "in", [record(0)])
    file = tmp_path / "in" / "part-00000.parquet"
    table = pq.read_table(file)
    wrong = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"]).buffers())
    pq.write_table(table.set_column(0, pa.field("id", pa.string()), wrong), file)
    with pytest.raises(CorpusError, match="part-00000.parquet: row group 0: .*utf-8"):
        Corpus(tmp_path / "in")[0]


# --- the manifest ----------------------------------------------------------------------------------------------------


def edited(folder: Path, edit) -> Path:
    write_corpus(folder, [record(0), record(1)])
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    edit(manifest)
    file.write_text(json.dumps(manifest))
    return folder


def shard(**changes):
    return lambda manifest: manifest["shards"][0].update(changes)


MANIFESTS = [
    (shard(name="../../outside.parquet"), r"shards\[0\].name is '../../outside.parquet'"),
    (shard(name="/etc/passwd"), r"shards\[0\].name is"),
    (shard(name="part-../../x.parquet"), r"shards\[0\].name is"),
    (shard(name=7), r"shards\[0\].name is 7, it should be a text"),
    (shard(rows="2"), r'shards\[0\].rows is "2", it should be a whole number'),
    (shard(rows=-1), r"shards\[0\].rows is -1"),
    (shard(rows=10**400), r"shards\[0\].rows is 1000"),
    (shard(rows=0), "the corpus is empty"),
    (shard(bytes=None), r"shards\[0\].bytes is null"),
    (shard(regions=1.5), r"shards\[0\].regions is 1.5"),
    (shard(sha256="zz"), r"shards\[0\].sha256 is 'zz'"),
    (lambda m: m["shards"][0].pop("bytes"), r"shards\[0\].bytes is missing"),
    (lambda m: m["shards"].append(dict(m["shards"][0])), "part-00000.parquet is listed twice"),
    (lambda m: m["shards"].append(3), r"shards\[1\] is 3, it should be an object"),
    (lambda m: m.update(shards={"a": 1}), "shards is .*, it should be a list"),
    (lambda m: m.pop("images"), "images is missing"),
    (lambda m: m.update(images="2"), 'images is "2"'),
    (lambda m: m.update(regions_by_kind=None), "regions_by_kind is null"),
    (lambda m: m.update(images_by_split={"train": "many"}), 'images_by_split.train is "many"'),
    (lambda m: m.update(images_by_source={"\ud800": 2}), "images_by_source holds the name"),
    (lambda m: m.update(meta=[]), r"meta is \[\], it should be an object"),
    (lambda m: m.update(schema_version="1"), 'schema_version is "1"'),
]


@pytest.mark.parametrize(("edit", "problem"), MANIFESTS)
def test_an_edited_manifest_is_one_line_with_file_and_field(tmp_path, capsys, edit, problem):
    folder = edited(tmp_path / "in", edit)
    with pytest.raises(CorpusError, match=f"manifest.json: .*{problem}"):
        Corpus(folder)
    assert len(verify(folder)) == 1
    assert run("corpus", "verify", folder) == 1 and run("corpus", "stats", folder) == 1
    reported = capsys.readouterr()
    assert "Traceback" not in reported.err and reported.err.count("\n") == 1


def test_a_manifest_that_is_no_json(tmp_path, capsys):
    write_corpus(tmp_path / "in", [record(0)])
    for content in (b"", b"[" * 100_000, b'{"a": ' * 100_000, b"\xff", b"null", b"3"):
        (tmp_path / "in" / "manifest.json").write_bytes(content)
        assert run("corpus", "verify", tmp_path / "in") == 1
        assert "manifest.json: damaged" in capsys.readouterr().out


# --- shards that are no files of the folder ---------------------------------------------------------------------------


def test_a_shard_is_a_regular_file_of_its_folder(tmp_path):
    write_corpus(tmp_path / "in", [record(0)])
    file, outside = tmp_path / "in" / "part-00000.parquet", tmp_path / "outside.parquet"
    file.rename(outside)
    file.symlink_to(outside)
    with pytest.raises(CorpusError, match="part-00000.parquet: is a link that leads out of the corpus"):
        Corpus(tmp_path / "in")
    file.unlink()
    for make in (os.mkfifo, os.mkdir):
        make(file)
        with pytest.raises(CorpusError, match="part-00000.parquet: is not a regular file"):
            Corpus(tmp_path / "in")
        os.rmdir(file) if file.is_dir() else file.unlink()
    outside.rename(tmp_path / "in" / "data")
    file.symlink_to("data")
    assert Corpus(tmp_path / "in")[0].id == "set/0"
    os.mkfifo(tmp_path / "in" / "pipe")
    (tmp_path / "in" / "manifest.json").unlink()
    (tmp_path / "in" / "manifest.json").symlink_to("pipe")
    with pytest.raises(CorpusError, match="manifest.json: not a regular file"):
        Corpus(tmp_path / "in")


# --- bits that flipped -----------------------------------------------------------------------------------------------


def flip(file: Path, within: bytes) -> None:
    """Flips one bit in the middle of bytes that the file holds."""
    data = bytearray(file.read_bytes())
    data[data.index(within) + len(within) // 2] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("name", READERS)
def test_wrong_bytes_are_never_copied_under_a_new_checksum(tmp_path, capsys, name):
    write_corpus(tmp_path / "good", [record(99)])
    write_corpus(tmp_path / "in", [record(number) for number in range(30)])  # two shards of at most twenty
    flip(tmp_path / "in" / "part-00001.parquet", png(25))
    assert read_all(tmp_path, name) == 1
    reported = capsys.readouterr().err
    assert "part-00001.parquet: the checksum differs from manifest.json: the file was altered" in reported
    assert [n for n in names(tmp_path) if n.startswith("deep/")] == []


def test_annotation_does_not_copy_wrong_bytes_either(tmp_path, monkeypatch):
    from granvit.corpus.annotate.sources import open_source

    write_corpus(tmp_path / "in", [record(0), record(1)])
    flip(tmp_path / "in" / "part-00000.parquet", png(1))
    source = open_source(tmp_path / "in")
    file = next(iter(source.files()))
    with pytest.raises(CorpusError, match="the checksum differs"):
        source.read(file.name, 0)


def test_a_shard_is_checked_once(tmp_path, monkeypatch):
    found = write_corpus(tmp_path / "in", [record(number) for number in range(30)])
    hashed, real = [], store.sha256
    monkeypatch.setattr(store, "sha256", lambda file: hashed.append(file.name) or real(file))
    for _ in range(2):
        list(found), list(found.records())
    assert hashed == ["part-00000.parquet", "part-00001.parquet"]
    again = Corpus(tmp_path / "in")
    assert [again[i].id for i in (0, 29)] == ["set/0", "set/29"] and len(hashed) == 2
    next(iter(training_part(again)))
    assert len(hashed) == 3


# --- fingerprints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: t.drop_columns(["thumb"]), "column 'thumb' is missing"),
        (lambda t: t.set_column(0, "row", pa.array(["a", "b"])), "column 'row' is string, not int64"),
        (lambda t: t.set_column(0, "row", pa.array([0, 7])), "column 'row' does not name images"),
        (lambda t: t.set_column(0, "row", pa.array([1, 0])), "column 'row' does not name images"),
        (lambda t: t.set_column(0, "row", pa.array([0, None], pa.int64())), "column 'row' has gaps"),
    ],
)
def test_edited_fingerprints_are_refused(tmp_path, change, problem):
    found = write_corpus(tmp_path / "in", [record(0), record(1)])
    file = tmp_path / "prints.parquet"
    assert len(store_fingerprints(found, file).rows) == 2
    table = pq.read_table(file)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), file)
    with pytest.raises(CorpusError, match=f"prints.parquet: {problem}"):
        FingerprintFile(file, found)


# --- imports ---------------------------------------------------------------------------------------------------------


def pack(folder: Path, *rows: dict) -> Path:
    folder.mkdir()
    for number, _ in enumerate(rows):
        (folder / f"{number}.png").write_bytes(png(number))
    whole = [{"image": f"{n}.png", "width": 600, "height": 500, **row} for n, row in enumerate(rows)]
    (folder / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in whole))
    return folder


THING = {"bbox": [10, 20, 300, 200], "kind": "object", "caption": "a thing"}


def test_an_import_of_nothing_leaves_its_account_and_nothing_else(tmp_path):
    src = pack(tmp_path / "src", {"regions": [{**THING, "bbox": [900, 900, 950, 950]}]})
    with pytest.raises(CorpusError, match=rf"see {tmp_path}/out/quarantine.jsonl"):
        import_corpus("jsonl", src, tmp_path / "out")
    assert names(tmp_path / "out") == ["quarantine.jsonl"]
    assert [r.reason for r in read_quarantine(tmp_path / "out" / "quarantine.jsonl")] == ["outside"]
    (src / "annotations.jsonl").write_text(
        json.dumps({"image": "0.png", "width": 600, "height": 500, "regions": [THING]})
    )
    import_corpus("jsonl", src, tmp_path / "out")
    assert names(tmp_path / "out") == ["manifest.json", "part-00000.parquet", "quarantine.jsonl"]


def test_an_import_of_nothing_leaves_an_earlier_corpus_and_its_account(tmp_path):
    src = pack(tmp_path / "src", {"regions": [THING]}, {"regions": [{**THING, "bbox": [3, 3, 1, 1]}]})
    import_corpus("jsonl", src, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (src / "0.png").write_bytes(b"no picture")
    with pytest.raises(CorpusError, match=rf"see {tmp_path}/out\.quarantine\.jsonl"):
        import_corpus("jsonl", src, tmp_path / "out", overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert len(read_quarantine(tmp_path / "out.quarantine.jsonl")) == 2
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_one_record_that_cannot_be_stored_does_not_end_an_import(tmp_path, monkeypatch):
    """A number of 401 digits, a file larger than a column holds, a name that no UTF-8 file can hold."""
    huge = int("9" * 401)
    src = pack(
        tmp_path / "src",
        {"regions": [THING]},
        {"regions": [{**THING, "polygon": [[0, 0], [huge, 0], [5, 5]]}]},
        {"regions": [{**THING, "bbox": [0, 0, huge, 5]}, THING]},
        {"regions": [THING]},
    )
    (src / "3.png").write_bytes(png(3) + bytes(10_000))
    monkeypatch.setattr(check, "MAX_IMAGE_BYTES", 9_000)
    summary = import_corpus("jsonl", src, tmp_path / "out")
    assert (summary.images_seen, summary.images_written) == (4, 3)
    assert summary.reasons["too-large"] == 1
    assert summary.regions_seen == summary.regions_written + summary.regions_quarantined + summary.regions_with_image
    assert verify(tmp_path / "out") == []


def test_the_gate_takes_no_number_that_cannot_be_stored():
    huge = int("9" * 401)
    for box in ((0, 0, huge, 5), ("a", 0, 1, 1), (None, 0, 1, 1)):
        checked = check_record(record(0, regions=[Region(box, "x")]))
        assert [rejection.reason for rejection in checked.rejections] == ["bad-box"]
    checked = check_record(record(0, regions=[Region((0, 0, 9, 9), "x", polygon=[0, 0, huge, 0, 5, 5])]))
    assert checked.record.regions[0].polygon is None and checked.changes["polygon-dropped"] == 1
    checked = check_record(record(0, regions=[Region((0, 0, 9, 9), "x", box_by="\ud800")]))
    assert [rejection.reason for rejection in checked.rejections] == ["bad-name"]
