"""Leakage: planted benchmark images are found whatever was done to them, by name too, and nothing else is."""

import gzip
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.drawn import COPIES, corpus, cropped, jpeg, picture, record
from helpers.paths import real_data
from PIL import Image

from granvit.cli.corpus_derive import Leakage
from granvit.corpus.dedup.copy_search import CopyFinder
from granvit.corpus.dedup.leakage import UNREAD_ARCHIVE, Benchmark, find_leaks, keys, load_benchmarks, write_without
from granvit.corpus.dedup.perceptual_hash import thumbnail
from granvit.corpus.layout import CorpusError
from granvit.corpus.store import Corpus


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """Eight pictures in a folder, and one file that is none."""
    folder = tmp_path_factory.mktemp("benchmark")
    for i in range(8):
        (folder / f"{i}.jpg").write_bytes(jpeg(picture(i)))
    (folder / "broken.jpg").write_bytes(b"<html>404</html>")
    return folder


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Every kind of copy of every benchmark picture, among others; an enlargement whose crop the benchmark has."""
    records = [record(f"{name}/{i}", copy(picture(i), i)) for i in range(8) for name, copy in COPIES.items()]
    records += [record(f"other/{i}", jpeg(picture(i))) for i in range(100, 125)]
    records += [record("file/3", jpeg(picture(3))), record("absent", None), record("broken", b"nothing")]
    return corpus(tmp_path_factory.mktemp("planted") / "corpus", records)


def test_planted_copies_are_found_and_nothing_else(benchmark, planted, tmp_path):
    benchmarks = load_benchmarks([benchmark])
    assert benchmarks.problems == [(f"{benchmark.name}/broken.jpg", "not-an-image")]
    report = find_leaks(planted, benchmarks)
    assert set(report.ids) == {r.id for r in planted.records() if r.id.split("/")[0] in {*COPIES, "file"}}
    for leak in report.leaks:
        assert leak.benchmark == f"{benchmark.name}/{leak.id.split('/')[1]}.jpg", leak
        assert leak.mirrored == (leak.id.split("/")[0] in ("mirrored", "all of it"))
    assert [leak.id for leak in report.leaks if leak.how == "file"] == ["file/3"]
    assert +report.unseen == {"no-image-bytes": 1, "not-an-image": 1}
    assert report.images == len(planted)


def test_kept_fingerprints_give_the_same_report(benchmark, planted, tmp_path):
    benchmarks = load_benchmarks([benchmark])
    fresh = find_leaks(planted, benchmarks).to_json()
    assert find_leaks(planted, benchmarks, fingerprints=tmp_path / "prints.parquet").to_json() == fresh
    assert find_leaks(planted, benchmarks, fingerprints=tmp_path / "prints.parquet", workers=1).to_json() == fresh


def test_the_benchmark_may_be_the_crop(tmp_path):
    whole = corpus(tmp_path / "whole", [record(f"{i}", jpeg(picture(i))) for i in range(6)])
    records = [record(f"{i}", jpeg(cropped(picture(i), 0.9, i).resize((300, 280)))) for i in range(6)]
    crops = corpus(tmp_path / "crops", records)
    report = find_leaks(whole, load_benchmarks([crops.path]))
    assert [(leak.id, leak.benchmark) for leak in report.leaks] == [(f"{i}", f"{i}") for i in range(6)]


def test_the_clean_corpus_lacks_them_and_the_lists_name_them(benchmark, planted, tmp_path):
    report = find_leaks(planted, load_benchmarks([benchmark]))
    kept = write_without(planted, report.ids, tmp_path / "clean")
    clean = Corpus(tmp_path / "clean")
    assert len(clean) == kept == len(planted) - len(report.ids)
    assert find_leaks(clean, load_benchmarks([benchmark])).leaks == []
    ids = report.write(tmp_path / "leaks.json")
    assert ids.read_text().splitlines() == report.ids
    reported = json.loads((tmp_path / "leaks.json").read_text())
    assert reported["leaked"] == len(report.ids) and reported["by_how"]["file"] == 1
    with pytest.raises(CorpusError, match="no image was written"):
        write_without(planted, [r.id for r in planted.records()], tmp_path / "none")


def test_blank_pictures_are_no_copies_of_each_other():
    blank = [thumbnail(jpeg(Image.new("RGB", (300, 300), shade))) for shade in ("white", "black", "white")]
    finder = CopyFinder(np.stack(blank + [thumbnail(jpeg(picture(1)))]))
    assert finder.search(np.stack(blank), 0.1) == []
    assert CopyFinder(np.stack(blank)).search(np.stack([thumbnail(jpeg(picture(1)))]), 0.1) == []


# Lists of names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("COCO_train2014_000000580957.jpg", {"coco:580957"}),
        ("images/000000580957.jpg", {"coco:580957"}),
        ("coco_mix/images/coco_000000580957.jpg", {"coco:580957"}),
        ("COCO_train2014_000000581857_16.jpg", {"coco:581857"}),  # REFER's, with the annotation's number
        ("IMG_202301011234_16.jpg", {"name:img_202301011234_16"}),
        ("580957.jpg", {"name:580957"}),
        ("C:\\data\\A.B.PNG", {"name:a.b"}),
        ("1000000580957.jpg", {"name:1000000580957"}),
        # What is behind a dot is an ending only where it is one of a picture or an annotation.
        ("2101.00001", {"name:2101.00001"}),
        ("papers/2101.00001.png", {"name:2101.00001"}),
        ("1.tar_1401.0001.gz_metric_arxiv_0", {"name:1.tar_1401.0001.gz_metric_arxiv_0"}),
        ("x/Screenshot 2023-01-01 at 10.15.48", {"name:screenshot 2023-01-01 at 10.15.48"}),
        ("gt_img_1.TXT", {"name:gt_img_1"}),
        ("scan.nef", {"name:scan"}),
        (".jpg", {"name:.jpg"}),
        ("https://x.org/a/photo.jpg?size=large#top", {"name:photo"}),
        ("what?.jpg", {"name:what?"}),
        ("set/a.parquet:1", {"name:a.parquet:1"}),
        ("images/000000580957.jpg@128,0,512", {"coco:580957"}),  # a tile
        ("images/000000580957.jpg@128,0,512@0,64,128", {"coco:580957"}),  # of which a tile
        ("images/000000580957.jpg@128,0", {"coco:580957"}),  # as earlier versions called it
        ("sat/area@7,7", {"name:area@7,7"}),
        ("cafe\u0301.jpg", {"name:caf\u00e9"}),
        ("CAFE\u0301", {"name:caf\u00e9"}),
        ("", set()),
    ],
)
def test_names_of_an_image(name, expected):
    assert keys(name) == expected


def lists(folder: Path) -> dict[str, bytes]:
    row = {"img_path": "COCO_train2014_000000000007.jpg", "image_id": 7, "expression": "left"}
    return {
        "ids.txt": b"COCO_val2014_000000000007.jpg\n\n  x/y.png \n",
        "numbers.txt": b"7\n",
        "rows.jsonl": (json.dumps(row) + "\n").encode(),
        "rows.jsonl.gz": gzip.compress((json.dumps(row) + "\n").encode()),
        "array.json": b"[7, 8]",
        "marked.txt": b"\xef\xbb\xbf7\r\n",
        "long.txt": b"1" * 5_000 + b"\n7\n",
        "instances.json": json.dumps({"images": [{"id": 1, "file_name": "000000000007.jpg"}]}).encode(),
    }


@pytest.mark.parametrize("name", lists(Path()))
def test_a_list_matches_cocos_names_however_they_are_written(name, tmp_path):
    (tmp_path / name).write_bytes(lists(tmp_path)[name])
    names = ["COCO_train2014_000000000007", "mix/images/coco_000000000007.jpg", "7.jpg", "000000000077.jpg", "y"]
    source = corpus(tmp_path / "corpus", [record(n, None) for n in names])
    report = find_leaks(source, load_benchmarks([tmp_path / name]))
    expected = names[:2] + (["y"] if name == "ids.txt" else [])
    assert report.ids == expected and all(leak.how == "name" for leak in report.leaks)
    assert find_leaks(source, load_benchmarks([tmp_path / name])).images == 5


@pytest.mark.parametrize("content", [b"1007129816\n36979\n", b'[{"image_id": 1007129816}, {"image_id": 36979}]'])
def test_a_long_number_is_a_file_name_too(content, tmp_path):
    """Flickr30k calls its pictures by numbers, and its lists give the numbers alone."""
    file = tmp_path / ("test.txt" if content[:1] == b"1" else "test.json")
    file.write_bytes(content)
    source = corpus(tmp_path / "corpus", [record(n, None) for n in ("1007129816.jpg", "36979.jpg", "000000036979.jpg")])
    assert find_leaks(source, load_benchmarks([file])).ids == ["1007129816.jpg", "000000036979.jpg"]


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_a_list_is_cut_at_the_ends_of_its_lines_alone(inside, tmp_path):
    rows = [{"image": "x.jpg", "question": f"foo{inside}bar"}, {"image": "y.jpg"}]
    text = "".join(json.dumps(row, ensure_ascii=False) + end for row, end in zip(rows, ("\r\n", "\n"), strict=True))
    # Of a control character JSON wants the escape.
    text = text.replace(inside, json.dumps(inside)[1:-1]) if inside < " " else text
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8", newline="")
    (tmp_path / "names.txt").write_text(f"a{inside}b.jpg\r\nc.jpg\rd.jpg\n", encoding="utf-8", newline="")
    assert load_benchmarks([tmp_path / "rows.jsonl"]).listed.keys() == {"name:x", "name:y"}
    assert load_benchmarks([tmp_path / "names.txt"]).listed.keys() == {f"name:a{inside}b", "name:c", "name:d"}


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"image": None, "image_id": 391895}, "coco:391895"),
        ({"file_name": "", "image": {"bytes": None}, "image_id": 391895.0}, "coco:391895"),
        ({"image": True, "id": "a.jpg"}, "name:a"),
    ],
)
def test_a_field_that_holds_no_name_is_passed_over(row, key, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    assert key in load_benchmarks([tmp_path / "rows.jsonl"]).listed


def test_a_benchmark_without_pictures_is_compared_by_name(tmp_path, capsys):
    named = [("ref/COCO_train2014_000000000007.jpg", ""), ("ref/12345", "docs/2101.00001.png"), ("ref/3.jpg", "3.jpg")]
    rows = [replace(record(id, None), uri=uri) for id, uri in named]
    bench = corpus(tmp_path / "bench", rows)
    benchmarks = load_benchmarks([bench.path])
    assert benchmarks.benchmarks == [Benchmark(str(bench.path), by_name_alone=2)]
    assert benchmarks.problems == [("ref/3.jpg", "no-image-bytes")]  # a number of one digit tells nothing
    mine = [record(n, None) for n in ("coco/000000000007.jpg", "arxiv/2101.00001", "arxiv/2101.00002", "mine/3.jpg")]
    source = corpus(tmp_path / "corpus", [*mine, record("12345.jpg", None)])
    report = find_leaks(source, benchmarks)
    assert [(leak.id, leak.how, leak.benchmark) for leak in report.leaks] == [
        ("coco/000000000007.jpg", "name", "ref/COCO_train2014_000000000007.jpg"),
        ("arxiv/2101.00001", "name", "ref/12345"),
    ]
    assert Leakage(source.path, (bench.path,), report=tmp_path / "leaks.json").run() == 0
    printed = capsys.readouterr()
    assert f"{bench.path}: 2 images have no picture, so they go by name alone" in printed.err
    assert (
        "not compared: ref/3.jpg: no-image-bytes" in printed.err
        and "1 benchmark images were not compared" in printed.out
    )


def test_the_report_says_what_was_compared_with_what(benchmark, planted, tmp_path):
    (tmp_path / "names.txt").write_text("x.jpg\ny.jpg\nx.jpg\n")
    benchmarks = load_benchmarks([benchmark, tmp_path / "names.txt"])
    broken = [(f"broken/{i}", "not-an-image") for i in range(150)]
    benchmarks.problems += broken
    report = find_leaks(planted, benchmarks, similarity=0.5).to_json()
    assert report["against"] == [
        {"place": str(benchmark), "pictures": 8, "listed": 0, "by_name_alone": 0},
        {"place": str(tmp_path / "names.txt"), "pictures": 0, "listed": 2, "by_name_alone": 0},
    ]
    assert report["similarity"] == 0.5
    names = report["not_compared"]["not-an-image"].pop("names")
    assert report["not_compared"] == {"not-an-image": {"images": 151}}
    assert names == [f"{benchmark.name}/broken.jpg", *(name for name, _ in broken)][:100]
    # Of names alone no similarity is asked.
    assert find_leaks(planted, load_benchmarks([tmp_path / "names.txt"])).to_json()["similarity"] is None


@pytest.mark.parametrize("report", ["bench.json", "leaks.txt", "corpus/manifest.json", "bench.txt"])
def test_a_report_never_takes_the_place_of_what_is_read(report, tmp_path, capsys):
    source = corpus(tmp_path / "corpus", [record("a", jpeg(picture(1)))])
    listed = tmp_path / "bench.txt"
    listed.write_text("a.jpg\n")
    before = (source.path / "manifest.json").read_bytes()
    assert Leakage(source.path, (listed,), report=tmp_path / report).run() == 1
    said = capsys.readouterr().err
    assert "name another file" in said or "the name must end in .json" in said
    assert listed.read_text() == "a.jpg\n" and (source.path / "manifest.json").read_bytes() == before
    assert not (tmp_path / "leaks.txt").exists() and not (tmp_path / "bench.json").exists()


def test_a_folder_of_lists_is_read_whole(tmp_path):
    for name, data in lists(tmp_path).items():
        (tmp_path / name).write_bytes(data)
    assert load_benchmarks([tmp_path]).listed.keys() == {
        "coco:7", "coco:8", "name:y", f"name:{'1' * 5_000}"
    }  # fmt: skip


def packed(folder: Path, kind: str) -> Path:
    """A folder that holds the picture 1 in a file of this kind, and a licence."""
    folder.mkdir()
    data = jpeg(picture(1))
    if kind == "tar":
        with tarfile.open(folder / "a.tar", "w") as tar:
            info = tarfile.TarInfo("1.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    elif kind == "parquet":
        pq.write_table(pa.table({"image": [{"bytes": data, "path": None}]}), folder / "a.parquet")
    else:
        rows = {"image": [{"bytes": data, "path": None}]}
        datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image()})).save_to_disk(folder)
    (folder / "LICENSE.txt").write_text("This benchmark is CC BY 4.0")
    return folder


@pytest.mark.parametrize("kind", ["tar", "parquet", "datasets"])
def test_a_text_beside_packed_pictures_is_no_list(kind, tmp_path):
    benchmarks = load_benchmarks([packed(tmp_path / "bench", kind)])
    assert (len(benchmarks.names), benchmarks.listed, benchmarks.problems) == (1, {}, [])
    source = corpus(tmp_path / "corpus", [record("a", jpeg(picture(1)))])
    assert [leak.how for leak in find_leaks(source, benchmarks).leaks] == ["file"]


def test_pictures_of_every_kind_in_a_folder_are_compared(tmp_path):
    folder = packed(tmp_path / "bench", "tar")
    packed(folder / "more", "parquet")
    (folder / "more/2.jpg").write_bytes(jpeg(picture(2)))
    (folder / "3.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    for archive in ("val.zip", "more/test.TAR.zst"):
        (folder / archive).write_bytes(b"pictures, perhaps")
    benchmarks = load_benchmarks([folder])
    assert sorted(name.rpartition("/")[2] for name in benchmarks.names) == ["1.jpg", "2.jpg", "a.parquet:0"]
    unread = {("3.heic", "unsupported-format"), *((name, UNREAD_ARCHIVE) for name in ("val.zip", "more/test.TAR.zst"))}
    assert set(benchmarks.problems) == unread and len(benchmarks.problems) == 3


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.json", b"{", "a.json: "),
        ("a.json", b'{"annotations": []}', "an array is expected"),
        ("a.jsonl", b'{"x": 1}\n', "entry 1 has none of the fields"),
        ("a.jsonl.gz", b"no gzip", "a.jsonl.gz"),
        ("a.txt", b"\xff\xfe", "a.txt"),
        ("a.txt", b"\n", "a.txt: no benchmark image"),
        ("a.json", b"[]", "a.json: no benchmark image"),
        ("a.pdf", b"%PDF", "neither Parquet nor a tar"),
        ("missing", None, "does not exist"),
    ],
)
def test_damaged_lists_name_themselves(name, data, message, tmp_path):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    (tmp_path / "sound.txt").write_text("x.jpg\n")
    with pytest.raises(CorpusError, match=message):
        load_benchmarks([tmp_path / "sound.txt", tmp_path / name])


# Real photographs


@pytest.mark.slow
def test_copies_among_real_photographs():
    folders = real_data("coco_mix", "voc_animals", "f30k_vqa")
    files = sorted(file for folder in folders for file in (folder / "images").glob("*.jpg"))
    images = [Image.open(f).convert("RGB") for f in files[::2]]
    finder = CopyFinder(np.stack([thumbnail(f.read_bytes()) for f in files[::2]]))
    for name, copy in COPIES.items():
        copies = np.stack([thumbnail(copy(image, i)) for i, image in enumerate(images)])
        found = finder.search(copies, 0.4)
        right = {copy.picture for copy in found if copy.picture == copy.original}
        false = [copy for copy in found if copy.picture != copy.original]
        assert len(right) >= 0.95 * len(images) and len(false) <= 0.001 * len(images), (name, len(right), len(false))
    others = np.stack([thumbnail(f.read_bytes()) for f in files[1::2]])
    assert len(finder.search(others, 0.4)) <= 0.001 * len(others)
