"""What is exported and imported again is what it was; and it is there as a whole or not at all."""

import hashlib
import io
import json
import re
import tarfile
from collections import Counter
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
from helpers.importing import bring, picture
from PIL import Image

from granvit import images
from granvit.cli.app import command_tree
from granvit.cli.corpus_look import Export
from granvit.corpus.exporters import EXPORTERS, export_corpus
from granvit.corpus.layout import CorpusError
from granvit.corpus.store import Corpus, CorpusWriter
from granvit.geometry import iou
from granvit.regions import Region, RegionImage, Turn

F32 = float(np.float32(0.1))


def store(path, *records):
    with CorpusWriter(path) as writer:
        for record in records:
            writer.write(record)
    return path


def turned_picture():
    """A JPEG that is stored lying down: 40 x 80 when upright, and its upper half is black."""
    lying = np.full((40, 80, 3), 255, np.uint8)
    lying[:, :40] = 0
    exif = Image.Exif()
    exif[0x0112] = 6
    data = io.BytesIO()
    Image.fromarray(lying).save(data, "JPEG", exif=exif, quality=95)
    return data.getvalue()


RECORDS = [
    RegionImage(
        id="../../etc/pass wd\u202e.jpg",
        image=picture((400, 200)),
        width=400,
        height=200,
        source="shop",
        licence="CC0",
        caption="A \"shop\" with\n[brackets].",
        split="train",
        regions=[
            Region((F32, 2, 300.25, 100.125), "red car: the left one", score=0.5, alternatives=["a car"]),
            Region((10, 2, 30, 100), "EXIT, 3 €", "text", text_by="ocr:x", polygon=[10, 3, 30, 2, 30, 99, 10, 100]),
            Region((50, 50, 90, 90), "", "text", ignore=True),
            Region((200, 10, 300, 60), "text", score=0.0),
            Region((200, 110, 300, 160), "red car: the left one", "text"),
        ],
    ),
    RegionImage("con", picture((200, 400), "PNG"), 200, 400, [Region((20, 2, 33, 300), "dog")], split="val"),
    RegionImage("a", turned_picture(), 40, 80, [Region((0, 0, 40, 40), "black half")]),
]  # fmt: skip


def said(*texts):
    return [Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]


TALKS = [
    RegionImage(
        "talked about", picture((400, 200)), 400, 200, [Region((0, 0, 100, 100), "a cup")], caption="A cup.",
        split="train",
        conversations=[
            said("What is it?", "A cup.", "Whose?", "Mine: <|im_end|>, <loc0001>."),
            [Turn("system", "Be short."), *said("Two\n\nlines", "Ho")],
            said("What is in [0.1, 0.2, 0.3, 0.4]?", "A handle."),  # not a region: nobody says what it is relative to
            said("Describe in detail what is shown in the image in one paragraph", "It is no caption."),
        ],
    ),
    RegionImage("pictured only", picture((200, 400)), 200, 400, [], conversations=[said("Hi", "Ho")], split="train"),
    RegionImage("talk/1", None, 0, 0, [], source="talk", split="train", conversations=[said("1+1?", "2", "2+2?", "4")]),
]  # fmt: skip


@pytest.mark.parametrize("name", ["llava", "webdataset"])
def test_conversations_come_back_as_they_were(tmp_path, name):
    corpus = store(tmp_path / "corpus", *TALKS)
    summary = export_corpus(name, corpus, tmp_path / "export")
    assert (summary.images, summary.conversations, summary.without_picture) == (3, 6, 1)
    assert summary.skipped == Counter() and "conversations  6 written" in str(summary)
    back, refused = read_back(name, tmp_path, tmp_path / "export", **({"frame": "image"} if name == "llava" else {}))
    assert refused == [] and len(back) == 3
    key = {record.conversations[0][0].text: record for record in back}
    for before in TALKS:
        after = key[before.conversations[0][0].text]
        assert after.conversations == before.conversations
        assert (after.width, after.height, after.caption, after.split, after.text_only) == (
            before.width, before.height, before.caption, before.split, before.text_only,
        )  # fmt: skip
        assert [plain(r) for r in after.regions] == [plain(r) for r in before.regions]
        if name == "webdataset":
            assert (after.id, after.source) == (before.id, before.source or "export")


def test_an_export_of_conversations_is_llavas_layout(tmp_path):
    export_corpus("llava", store(tmp_path / "corpus", *TALKS[1:]), tmp_path / "export")
    pictured, alone = json.loads((tmp_path / "export/train.json").read_text())
    assert pictured["image"] == "images/00000001.png" or pictured["image"] == "images/00000001.jpg"
    assert pictured["conversations"] == [
        {"from": "human", "value": "<image>\nHi"}, {"from": "gpt", "value": "Ho"}
    ]  # fmt: skip
    assert "image" not in alone and alone["conversations"][0] == {"from": "human", "value": "1+1?"}


def test_conversations_that_a_layout_cannot_hold_are_counted(tmp_path):
    marked = RegionImage(
        "a", picture((400, 200)), 400, 200, [], conversations=[said("An <image>?", "Yes."), said("Hi", "Ho")]
    )
    corpus = store(tmp_path / "corpus", marked, TALKS[2])
    summary = export_corpus("llava", corpus, tmp_path / "export")
    assert (summary.conversations, summary.skipped) == (2, {"conversations that say <image>": 1})
    summary = export_corpus("coco", corpus, tmp_path / "coco")
    assert (summary.images, summary.conversations) == (1, 0)
    assert summary.skipped == {"conversations": 2, "conversations without a picture": 1}


def plain(region):
    return (region.text, region.kind, np.float32(region.box).tolist(), region.ignore)


def read_back(name, tmp_path, folder, **options):
    records, refused = [], []
    sources = sorted(folder.glob("*.json")) if name == "llava" else [folder]
    for number, src in enumerate(sources):
        if src.name != "export.json":
            split = src.stem if src.stem in ("train", "val") else ""
            more = {"split": split, **options} if name == "llava" else options
            brought = bring(name, src, tmp_path / f"back{number}", **more)
            records += brought[0]
            refused += brought[1]
    return records, refused


@pytest.mark.parametrize("name", ["coco", "webdataset"])
def test_everything_that_the_layout_holds_comes_back(tmp_path, name):
    corpus = store(tmp_path / "corpus", *RECORDS)
    summary = export_corpus(name, corpus, tmp_path / "export")
    assert (summary.images, summary.regions, summary.skipped) == (3, 7, Counter())
    back, refused = read_back(name, tmp_path, tmp_path / "export")
    assert refused == []
    key = {record.regions[0].text: record for record in back}
    for before in Corpus(corpus):
        after = key[before.regions[0].text]
        assert (after.width, after.height, after.caption, after.split) == (
            before.width, before.height, before.caption, before.split,
        )  # fmt: skip
        assert [plain(r) for r in after.regions] == [plain(r) for r in before.regions]
        assert [r.polygon for r in after.regions] == [r.polygon for r in before.regions]
        assert [r.score for r in after.regions] == [r.score for r in before.regions]
        assert after.licence == before.licence
        if name == "webdataset":
            assert (after.id, after.regions, after.source) == (before.id, before.regions, before.source or "export")


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("coco", {"source": 1, "alternatives": 1, "text_by": 1}),
        ("llava", {"source": 1, "licence": 1, "score": 2, "alternatives": 1, "polygon": 1, "text_by": 1}),
        ("webdataset", {}),
    ],
)
def test_what_a_layout_has_no_place_for_is_counted(tmp_path, name, lost):
    summary = export_corpus(name, store(tmp_path / "corpus", *RECORDS), tmp_path / "export")
    assert summary.not_kept == lost
    assert json.loads((tmp_path / "export/export.json").read_text())["not_kept"] == lost
    assert all(re.search(rf"not kept +{count}  {field}", str(summary)) for field, count in lost.items())


@pytest.mark.parametrize("frame", ["image", "canvas"])
@pytest.mark.parametrize("coordinates", ["decimal", "int1000", "loc"])
def test_conversations_come_back_as_regions(tmp_path, frame, coordinates):
    corpus = store(tmp_path / "corpus", *RECORDS)
    summary = export_corpus("llava", corpus, tmp_path / "export", frame=frame, coordinates=coordinates)
    assert (summary.images, summary.regions) == (3, 6)
    assert summary.skipped == {"ignored regions": 1, "questions for a box whose phrase is not unique": 2}
    back, refused = read_back("llava", tmp_path, tmp_path / "export", frame=frame, coordinates=coordinates)
    assert refused == []
    key = {record.regions[0].text: record for record in back}
    for before in Corpus(corpus):
        after = key[before.regions[0].text]
        assert (after.caption, after.split) == (before.caption, before.split)
        wanted = [r for r in before.regions if not r.ignore]
        assert [r.text for r in after.regions] == [r.text for r in wanted]
        # Thousandths of the longer side, which is 400 pixels at most.
        assert np.abs(np.subtract([r.box for r in after.regions], [r.box for r in wanted])).max() <= 0.5
        assert np.diag(iou([r.box for r in after.regions], [r.box for r in wanted])).min() > 0.9


def test_a_conversation_never_holds_both_directions(tmp_path):
    regions = [Region((n, n, n + 20, n + 20), f"phrase {n}") for n in range(25)]
    corpus = store(tmp_path / "corpus", RegionImage("a", picture((400, 200)), 400, 200, regions, caption="Many."))
    export_corpus("llava", corpus, tmp_path / "export", questions_per_conversation=10)
    conversations = [entry["conversations"] for entry in json.loads((tmp_path / "export/all.json").read_text())]
    assert [len(turns) // 2 for turns in conversations] == [1, 10, 10, 5, 10, 10, 5]
    for turns in conversations:
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert [turn["value"].count("<image>") for turn in turns] == [1] + [0] * (len(turns) - 1)
        starts = {turn["value"].removeprefix("<image>\n")[:22] for turn in turns[::2]}
        assert len(starts) == 1


def test_what_llava_cannot_hold_is_counted(tmp_path):
    regions = [Region((5, 5, 6.1, 6.1), "tiny"), Region((5, 5, 999, 99), "an <image> in words")]
    small = RegionImage("a", picture((2_400, 100)), 2_400, 100, regions, caption="An <image>.")
    corpus = store(tmp_path / "corpus", small, RECORDS[1])
    summary = export_corpus("llava", corpus, tmp_path / "export", coordinates="loc:16")
    assert summary.skipped == {
        "regions too small for the coordinates": 1,
        "regions whose text says <image>": 1,
        "captions that say <image>": 1,
        "images with nothing to ask": 1,
    }
    assert summary.images == 1 and len(list((tmp_path / "export/images").iterdir())) == 1


@pytest.mark.parametrize("name", sorted(EXPORTERS))
def test_pictures_are_upright_for_readers_that_know_no_exif(tmp_path, name):
    corpus = store(tmp_path / "corpus", RECORDS[2])
    export_corpus(name, corpus, tmp_path / "export")
    if name == "webdataset":
        with tarfile.open(tmp_path / "export/all-00000.tar") as tar:
            data = tar.extractfile("00000001.jpg").read()
    else:
        [file] = (tmp_path / "export").rglob("*.jpg")
        data = file.read_bytes()
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    assert pixels.shape == (80, 40, 3)
    assert pixels[:36].max() < 40 and pixels[44:].min() > 215


@pytest.mark.parametrize("name", sorted(EXPORTERS))
def test_the_same_corpus_gives_the_same_bytes_and_nothing_outside(tmp_path, name):
    corpus = store(tmp_path / "corpus", *RECORDS)

    def digests(folder):
        return {
            file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in folder.rglob("*")
            if file.is_file()
        }

    export_corpus(name, corpus, tmp_path / "a/one")
    export_corpus(name, corpus, tmp_path / "a/two")
    assert digests(tmp_path / "a/one") == digests(tmp_path / "a/two") != {}
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"one", "two"}


def test_shards_have_the_size_that_was_asked_for(tmp_path):
    many = [RegionImage(f"{n}", picture(), 40, 30, [], split="train" if n % 2 else "") for n in range(7)]
    export_corpus("webdataset", store(tmp_path / "corpus", *many), tmp_path / "export", samples_per_shard=2)
    sizes = {}
    for file in sorted((tmp_path / "export").glob("*.tar")):
        with tarfile.open(file) as tar:
            sizes[file.name] = len(tar.getnames()) // 2
    assert sizes == {
        "all-00000.tar": 2, "all-00001.tar": 2, "train-00000.tar": 2, "train-00001.tar": 1,
    }  # fmt: skip
    back, _ = bring("webdataset", tmp_path / "export", tmp_path / "back")
    assert {r.id for r in back} == {f"{n}" for n in range(7)}


def test_coco_is_read_by_its_own_rules(tmp_path):
    corpus = store(tmp_path / "corpus", *RECORDS)
    export_corpus("coco", corpus, tmp_path / "export")
    data = json.loads((tmp_path / "export/annotations/instances_train.json").read_text())
    names = {c["id"]: c["name"] for c in data["categories"]}
    assert len(set(names.values())) == len(names) == len(data["categories"])
    [image] = data["images"]
    assert (tmp_path / "export/train" / image["file_name"]).is_file()
    first, text, ignored, *_ = data["annotations"]
    assert first["bbox"] == [F32, 2, 300.25 - F32, 98.125] and first["area"] == (300.25 - F32) * 98.125
    assert (names[text["category_id"]], text["attributes"]) == ("text", {"text": "EXIT, 3 €"})
    assert (text["segmentation"], ignored["iscrowd"]) == ([[10, 3, 30, 2, 30, 99, 10, 100]], 1)
    val = json.loads((tmp_path / "export/annotations/instances_val.json").read_text())
    assert val["categories"] == data["categories"]
    assert {a["id"] for a in val["annotations"]}.isdisjoint(a["id"] for a in data["annotations"])
    assert not (tmp_path / "export/annotations/captions_val.json").exists()


@pytest.mark.parametrize("name", sorted(EXPORTERS))
def test_an_export_that_fails_leaves_no_trace_and_the_old_one(tmp_path, name, monkeypatch):
    corpus = store(tmp_path / "corpus", *RECORDS)
    export_corpus(name, corpus, tmp_path / "a/export")
    before = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}

    def fail(data):
        raise images.ImageError("truncated", "on purpose")

    for module in ("base", "webdataset"):
        monkeypatch.setattr(f"granvit.corpus.exporters.{module}.as_plain_file", fail)
    with pytest.raises(images.ImageError):
        export_corpus(name, corpus, tmp_path / "a/export", overwrite=True)
    assert {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()} == before


def test_only_an_export_is_replaced(tmp_path):
    corpus = store(tmp_path / "corpus", *RECORDS)
    out = tmp_path / "export"
    export_corpus("coco", corpus, out)
    with pytest.raises(CorpusError, match="holds an export: choose another folder or overwrite it"):
        export_corpus("llava", corpus, out)
    export_corpus("llava", corpus, out, overwrite=True)
    assert not (out / "annotations").exists() and (out / "train.json").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").write_text("years of work")
    with pytest.raises(CorpusError, match=r"is not empty, and no export \(it has no export.json\)"):
        export_corpus("coco", corpus, tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis/chapter.tex").read_text() == "years of work"


def test_pictures_that_are_only_known_by_name_are_left_out(tmp_path):
    known = RegionImage("b", None, 400, 200, [Region((1, 1, 20, 20), "x")], uri="https://example.org/b.jpg")
    summary = export_corpus("coco", store(tmp_path / "corpus", RECORDS[0], known), tmp_path / "export")
    assert (summary.images, summary.skipped) == (1, {"images without picture bytes": 1})
    with pytest.raises(CorpusError, match=r"nothing to export as coco \(images without picture bytes: 1\)"):
        export_corpus("coco", store(tmp_path / "other", known), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_wrong_calls(tmp_path):
    corpus = store(tmp_path / "corpus", RECORDS[0])
    for options, message in (
        (dict(name="yolo"), "unknown exporter 'yolo': use one of coco, llava, webdataset"),
        (dict(name="coco", frame="image"), "'coco' does not take --frame; it takes no option of its own"),
        (dict(name="llava", frame="page"), "frame should be image or canvas"),
        (dict(name="llava", coordinates="pixels"), "unknown coordinate codec"),
        (dict(name="llava", questions_per_conversation=0), "at least 1"),
        (dict(name="webdataset", samples_per_shard=0), "at least 1"),
    ):
        with pytest.raises(CorpusError, match=message):
            export_corpus(corpus=corpus, out=tmp_path / "export", **options)
    with pytest.raises(CorpusError, match="is a file"):
        export_corpus("coco", corpus, Path(corpus / "manifest.json"))
    assert not (tmp_path / "export").exists()


def test_the_command(tmp_path, capsys):
    assert command_tree()["corpus"].commands["export"].load() is Export
    assert set(get_args(get_type_hints(Export)["name"])) == set(EXPORTERS)
    corpus = store(tmp_path / "corpus", *RECORDS)
    assert Export("llava", corpus, tmp_path / "export", coordinates="int1000").run() == 0
    assert "images   3 written" in capsys.readouterr().out
    assert json.loads((tmp_path / "export/export.json").read_text())["options"] == {"coordinates": "int1000"}
    assert Export("llava", corpus, tmp_path / "export").run() == 1
    assert Export("llava", tmp_path / "none", tmp_path / "other").run() == 1
