"""Each layout as it is really published, what strangers get wrong in it, and that every piece is accounted for."""

import io
import json
from collections import Counter
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
from helpers.paths import real_data
from PIL import Image

from granvit import images
from granvit.cli import main
from granvit.cli.corpus_derive import Split
from granvit.cli.corpus_make import Import, Verify
from granvit.corpus.check import read_quarantine, verify
from granvit.corpus.importers import IMPORTERS, import_corpus
from granvit.corpus.store import Corpus, CorpusError
from granvit.regions import Region


def save(file: Path, size: tuple[int, int] = (40, 30), **options) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (10, 200, 10)).save(file, **options)
    return file


def rejected(out: Path) -> list[tuple[str, str, int | None]]:
    return [(r.reason, r.uri, r.region) for r in read_quarantine(out / "quarantine.jsonl")]


def assert_all_accounted_for(summary, out: Path) -> None:
    entries = read_quarantine(out / "quarantine.jsonl")
    corpus = Corpus(out)
    assert summary.images_seen == summary.images_written + summary.images_quarantined
    assert summary.regions_seen == (summary.regions_written + summary.regions_quarantined + summary.regions_with_image)
    assert summary.images_written == len(corpus)
    assert summary.regions_written == sum(len(r.regions) for r in corpus.records())
    assert summary.images_quarantined == sum(e.region is None for e in entries)
    assert summary.regions_quarantined == sum(e.region is not None for e in entries)
    assert summary.reasons == Counter(e.reason for e in entries)
    assert corpus.manifest["meta"]["quarantined"] == dict(summary.reasons)
    assert verify(out) == []


# jsonl


def row(name: str = "images/a.jpg", regions=(), **changes) -> dict:
    return {
        "image": name,
        "width": 40,
        "height": 30,
        "source": "shop",
        "split": "train",
        "regions": [*regions],
        **changes,
    }


def pack(folder: Path, *rows: dict | str | bytes) -> Path:
    for item in rows:
        name = item["image"] if isinstance(item, dict) and "image" in item else "images/a.jpg"
        if isinstance(name, str) and name.startswith("images/") and not (folder / name).exists():
            save(folder / name)
    texts = [json.dumps(item) if isinstance(item, dict) else item for item in rows]
    lines = [text.encode() if isinstance(text, str) else text for text in texts]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "annotations.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return folder


FULL_ROW = row(
    regions=[
        {"bbox": [1.5, 2, 20, 10], "kind": "object", "caption": "a dog", "captions": ["a dog", "pet"], "label": "dog"},
        {
            "bbox": [0, 0, 9, 9],
            "kind": "text",
            "text": "EXIT",
            "polygon": [[0, 0], [9, 1], [9, 9], [0, 9]],
            "ignore": True,
        },
        {"bbox": [0, 0, 9, 9], "text": "no kind", "score": 0.5, "box_by": "detector:x", "text_by": "ocr:y"},
    ],
    caption="A shop.",
    split="validation",
    licence="CC0",
)


@pytest.mark.parametrize("by_file", [False, True])
def test_jsonl(tmp_path, by_file):
    src = pack(tmp_path / "pack", FULL_ROW)
    summary = import_corpus("jsonl", src / "annotations.jsonl" if by_file else src, tmp_path / "out")
    [got] = Corpus(tmp_path / "out")
    assert got.image == (src / "images/a.jpg").read_bytes()
    assert (got.id, got.uri, got.source) == ("shop/images/a.jpg", "images/a.jpg", "shop")
    assert (got.caption, got.split, got.licence, got.width, got.height) == ("A shop.", "val", "CC0", 40, 30)
    assert got.regions == [
        Region((1.5, 2, 20, 10), "a dog", alternatives=["pet"]),
        Region((0, 0, 9, 9), "EXIT", "text", polygon=[0, 0, 9, 1, 9, 9, 0, 9], ignore=True),
        Region((0, 0, 9, 9), "no kind", "text", score=0.5, box_by="detector:x", text_by="ocr:y"),
    ]
    assert_all_accounted_for(summary, tmp_path / "out")


def test_jsonl_bad_lines_are_named_by_their_number(tmp_path):
    good = row("images/good.jpg")
    bad = {
        b'{"image": "images/a.jpg", ': "not-json",
        b"[1, 2]": "not-json",
        b'{"image": "caf\xe9.jpg"}': "not-json",
        b"[" * 100_000: "not-json",
        json.dumps({k: v for k, v in row().items() if k != "regions"}).encode(): "missing-field",
        json.dumps({**row(), "regions": None}).encode(): "bad-field",
        json.dumps(row(width="forty")).encode(): "bad-field",
        json.dumps(row(image=7)).encode(): "bad-field",
        json.dumps(row("/etc/passwd")).encode(): "path-outside",
        json.dumps(row("images/../../secret.jpg")).encode(): "path-outside",
        json.dumps(row("C:\\secret.jpg")).encode(): "path-outside",
        json.dumps(row("..\\secret.jpg")).encode(): "path-outside",
        json.dumps(row("images/none.jpg")).encode(): "missing-image",
        json.dumps(row("images")).encode(): "missing-image",
        json.dumps(row("images/\0.jpg")).encode(): "missing-image",
        json.dumps(row("x" * 5000)).encode(): "missing-image",
    }
    save(tmp_path / "secret.jpg")
    src = pack(tmp_path / "pack", good, *bad)
    summary = import_corpus("jsonl", src, tmp_path / "out")
    assert rejected(tmp_path / "out") == [
        (reason, f"annotations.jsonl:{number}", None) for number, reason in enumerate(bad.values(), start=2)
    ]
    assert summary.images_written == 1
    assert summary.images_seen == 1 + len(bad)
    assert_all_accounted_for(summary, tmp_path / "out")


def test_lines_in_utf_16_are_refused_alike_and_not_read_by_halves(tmp_path):
    src = pack(tmp_path / "pack", *(row(f"images/{n}.jpg") for n in range(3)))
    text = (src / "annotations.jsonl").read_text().rstrip("\n")
    (src / "annotations.jsonl").write_bytes(text.encode("utf-16"))
    with pytest.raises(CorpusError, match=r"none of 3 images could be imported \(not-json 3\)"):
        import_corpus("jsonl", src, tmp_path / "out")


def test_jsonl_bad_regions_keep_their_index_and_their_image(tmp_path):
    regions = [
        {"bbox": [1, 2, 3], "caption": "x"},
        {"bbox": "1 2 3 4", "caption": "x"},
        {"caption": "x"},
        {"bbox": [1, 2, 20, 20]},
        "no region",
        {"bbox": [1, 2, float("nan"), 20], "caption": "x"},
        {"bbox": [1, 2, 20, 20], "caption": "x", "kind": "face"},
        {"bbox": [1, 2, 20, 20], "text": 154},
        {"bbox": [1, 2, 20, 20], "caption": "x", "score": "high"},
    ]
    summary = import_corpus("jsonl", pack(tmp_path / "pack", row(regions=regions)), tmp_path / "out")
    assert [(reason, region) for reason, _, region in rejected(tmp_path / "out")] == [
        ("bad-box", 0), ("bad-box", 1), ("bad-box", 2), ("empty-text", 3), ("empty-text", 4), ("bad-box", 5),
        ("bad-kind", 6), ("bad-score", 8),
    ]  # fmt: skip
    assert [r.text for r in Corpus(tmp_path / "out")[0].regions] == ["154"]
    assert_all_accounted_for(summary, tmp_path / "out")


def test_several_packs_become_one_corpus_and_duplicates_are_set_aside(tmp_path):
    region = {"bbox": [1, 2, 20, 20], "caption": "x"}
    one = pack(
        tmp_path / "one", row("images/a.jpg", [region], source="one"), row("images/a.jpg", [region], source="one")
    )
    two = pack(tmp_path / "two", row("images/a.jpg", [region], source="two"))
    summary = import_corpus("jsonl", [one, two], tmp_path / "out")
    assert [r.id for r in Corpus(tmp_path / "out")] == ["one/images/a.jpg", "two/images/a.jpg"]
    assert rejected(tmp_path / "out") == [("duplicate-id", "images/a.jpg", None)]
    assert (summary.regions_seen, summary.regions_written, summary.regions_with_image) == (3, 2, 1)
    assert_all_accounted_for(summary, tmp_path / "out")


def test_a_wrong_size_or_a_damaged_picture_takes_its_regions_along(tmp_path):
    region = {"bbox": [1, 2, 20, 20], "caption": "x"}
    src = pack(
        tmp_path / "pack",
        row("images/a.jpg", [region] * 2, width=80),
        row("images/b.jpg", [region] * 3),
        row("images/c.jpg", [region]),
    )
    (src / "images/b.jpg").write_bytes((src / "images/b.jpg").read_bytes()[:-8])
    summary = import_corpus("jsonl", src, tmp_path / "out")
    assert [reason for reason, *_ in rejected(tmp_path / "out")] == ["size-mismatch", "truncated"]
    assert summary.regions_with_image == 5
    assert_all_accounted_for(summary, tmp_path / "out")


def test_every_picture_is_decoded_once(tmp_path, monkeypatch):
    decoded = []
    decode = images.decode
    monkeypatch.setattr(images, "decode", lambda data: decoded.append(data) or decode(data))
    import_corpus("jsonl", pack(tmp_path / "pack", row("images/a.jpg"), row("images/b.jpg")), tmp_path / "out")
    assert len(decoded) == 2


# image_folder


def test_image_folder(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "photos/b/2.JPG", exif=exif)
    save(tmp_path / "photos/a.png")
    (tmp_path / "photos/b/notes.txt").write_text("no picture")
    (tmp_path / "photos/b/broken.webp").write_bytes(b"RIFF")
    summary = import_corpus("image_folder", tmp_path / "photos", tmp_path / "out", licence="mine", split="test")
    got = [(r.id, r.width, r.height, r.licence, r.split) for r in Corpus(tmp_path / "out")]
    assert got == [("photos/a.png", 40, 30, "mine", "test"), ("photos/b/2.JPG", 30, 40, "mine", "test")]
    assert rejected(tmp_path / "out") == [("not-an-image", "b/broken.webp", None)]
    assert_all_accounted_for(summary, tmp_path / "out")


# Splits


def splits(src, out, **options) -> dict[str, str]:
    import_corpus("jsonl", src, out, **options)
    return {record.uri: record.split for record in Corpus(out).records()}


def receipt(number: int, company: str, split: str = "train") -> dict:
    lines = [{"bbox": [1, 2, 20, 20], "caption": "logo"}, {"bbox": [1, 2, 20, 20], "text": company}]
    return row(f"images/{number}.jpg", lines, split=split)


def test_val_fraction_is_deterministic_and_leaves_test_images_alone(tmp_path):
    src = pack(tmp_path / "pack", *[receipt(i, "A", "test" if i < 20 else "train") for i in range(120)])
    kept = splits(src, tmp_path / "a")
    assert Counter(kept.values()) == {"test": 20, "train": 100}
    chosen = splits(src, tmp_path / "b", val_fraction=0.3)
    assert chosen == splits(src, tmp_path / "c", val_fraction=0.3)
    counts = Counter(chosen.values())
    assert counts["test"] == 20
    assert 15 <= counts["val"] <= 45
    more = splits(src, tmp_path / "d", val_fraction=0.5)
    assert all(more[uri] == "val" for uri, split in chosen.items() if split == "val")


def test_splits_are_in_the_summary_and_none_held_out_is_said(tmp_path, capsys):
    src = pack(tmp_path / "pack", *[receipt(i, "A") for i in range(3)])
    summary = import_corpus("jsonl", src, tmp_path / "a", val_fraction=0.9)
    assert summary.splits["val"] and f"{summary.splits['val']} val" in str(summary)
    assert Import("jsonl", (src, tmp_path / "b"), val_fraction=1e-9).run() == 0
    assert "--val-fraction 1e-09 chose none of these images" in capsys.readouterr().err
    assert Split(tmp_path / "b", tmp_path / "parts", val=1e-9).run() == 0
    assert "--val 1e-09 chose none of these images" in capsys.readouterr().err


def test_first_line_keeps_a_company_together(tmp_path):
    companies = [f"COMPANY {i} " for i in range(40)]
    src = pack(
        tmp_path / "pack", *[receipt(i, companies[i % 40] if i < 40 else companies[i % 40].lower()) for i in range(80)]
    )
    chosen = splits(src, tmp_path / "out", val_fraction=0.5, group="first-line")
    assert all(chosen[f"images/{i}.jpg"] == chosen[f"images/{i + 40}.jpg"] for i in range(40))
    assert 8 <= Counter(chosen.values())["val"] / 2 <= 32


def test_the_first_line_is_one_that_is_read(tmp_path):
    """Words that nobody could read have one text, "###", in all pictures: they'd all go into one split."""
    unread = {"bbox": [1, 2, 20, 20], "text": "###", "ignore": True}
    rows = [row(f"images/{i}.jpg", [unread, {"bbox": [1, 2, 20, 20], "text": f"COMPANY {i}"}]) for i in range(40)]
    chosen = splits(pack(tmp_path / "pack", *rows), tmp_path / "out", val_fraction=0.5, group="first-line")
    assert 8 <= Counter(chosen.values())["val"] <= 32


@pytest.mark.parametrize("group", ["id", "first-line"])
def test_tiles_of_one_picture_go_to_one_side(group, tmp_path):
    tiles = [(i, x) for i in range(40) for x in (0, 20)]
    for i, x in tiles:
        save(tmp_path / f"pack/{i}.jpg@{x},0,20", format="JPEG")
    rows = [row(f"{i}.jpg@{x},0,20", [{"bbox": [1, 2, 20, 20], "text": f"line {i} {x}"}]) for i, x in tiles]
    chosen = splits(pack(tmp_path / "pack", *rows), tmp_path / "out", val_fraction=0.5, group=group)
    assert all(chosen[f"{i}.jpg@0,0,20"] == chosen[f"{i}.jpg@20,0,20"] for i in range(40))
    assert 16 <= Counter(chosen.values())["val"] <= 64


def test_a_picture_that_is_trained_on_first_and_held_out_later_is_reported_by_name(tmp_path):
    region = {"bbox": [1, 2, 20, 20], "caption": "x"}
    train = pack(tmp_path / "train", row("images/a.jpg", [region]), row("images/b.jpg", [region]))
    test = pack(tmp_path / "test", row("images/a.jpg", [region], split="test"), row("images/c.jpg", [region]))
    import_corpus("jsonl", [train, test], tmp_path / "out")
    assert rejected(tmp_path / "out") == [("split-conflict", "images/a.jpg", None)]
    import_corpus("jsonl", [test, train], tmp_path / "other")
    assert rejected(tmp_path / "other") == [("duplicate-id", "images/a.jpg", None)]
    assert {r.uri: r.split for r in Corpus(tmp_path / "other").records()}["images/a.jpg"] == "test"


# Errors and commands


def test_nothing_importable_is_a_clear_error_and_leaves_the_account(tmp_path):
    src = pack(tmp_path / "pack", row("/etc/passwd"), "nonsense")
    with pytest.raises(CorpusError, match=r"none of 2 images could be imported \(path-outside 1, not-json 1\)"):
        import_corpus("jsonl", src, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["quarantine.jsonl"]
    with pytest.raises(CorpusError, match="missing"):
        Corpus(tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="none of 0 images"):
        import_corpus("image_folder", tmp_path / "empty", tmp_path / "out")


def test_wrong_calls_are_refused_before_anything_is_written(tmp_path):
    src = pack(tmp_path / "pack", row())
    for call, message in (
        (dict(name="yolo", src=src), "unknown importer 'yolo': use one of chartqa, coco, .*jsonl"),
        (
            dict(name="jsonl", src=src, images=src),
            "'jsonl' does not take --images; it takes --encoding, --licence, --short-an",
        ),
        (dict(name="jsonl", src=[src, tmp_path / "nowhere"]), "nowhere does not exist"),
        (dict(name="jsonl", src=src, val_fraction=1.0), "val_fraction"),
    ):
        with pytest.raises(CorpusError, match=message):
            import_corpus(out=tmp_path / "out", **call)
    assert not (tmp_path / "out").exists()


def test_every_importer_states_layout_boxes_and_terms():
    for reader in IMPORTERS.values():
        assert all(word in reader.__doc__ for word in ("`src`", "oxes", "Terms"))


def test_the_help_names_the_layouts_that_take_an_option_and_others_refuse_it(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["corpus", "import", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for option, of in (
        (
            "--split {None,train,val,test}",
            "all but flickr30k_entities, jsonl, lvis, objects365, refcoco, visual_genome:",
        ),
        ("--images {None}|PATH", "all but docbank, funsd, grit, image_folder, jsonl, parquet, sroie, voc, webdataset:"),
        ("--encoding {None}|STR", "coco, docbank, flickr30k_entities, funsd, icdar, jsonl, sroie, voc, webdataset:"),
    ):
        assert f"{option} {of}" in shown
    with pytest.raises(SystemExit):
        main(
            ["corpus", "import", "jsonl", str(pack(tmp_path / "pack", row())), str(tmp_path / "out"), "--split", "val"]
        )
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("granvit: the layout 'jsonl' does not take --split; it takes --encoding,")


def test_commands(tmp_path, capsys):
    assert set(get_args(get_type_hints(Import)["name"])) == set(IMPORTERS)
    src = pack(tmp_path / "pack", FULL_ROW, row("images/none.jpg"))
    (src / "images/none.jpg").unlink()
    assert Import("jsonl", (src, tmp_path / "out")).run() == 0
    shown = capsys.readouterr().out
    assert "1 of 2 written" in shown
    assert "missing-image" in shown
    assert Verify(tmp_path / "out").run() == 0
    assert "in order" in capsys.readouterr().out
    assert Import("jsonl", (src, tmp_path / "out")).run() == 1
    assert "not empty" in capsys.readouterr().err
    assert Import("jsonl", (src, tmp_path / "out"), overwrite=True).run() == 0
    assert Import("jsonl", (src,)).run() == 1
    (tmp_path / "out/part-00000.parquet").unlink()
    assert Verify(tmp_path / "out").run() == 1
    assert "part-00000.parquet: missing" in capsys.readouterr().out


def test_the_command_says_why_nothing_was_used_and_takes_an_encoding(tmp_path, capsys):
    src = pack(tmp_path / "pack", row(regions=[{"bbox": [1, 2, 20, 20]}]))
    assert Import("jsonl", (src, tmp_path / "out")).run() == 1
    assert "pack: none of 1 regions could be used (empty-text 1); see " in capsys.readouterr().err
    assert not (tmp_path / "out/manifest.json").exists()
    save(tmp_path / "voc/JPEGImages/a.jpg")
    (tmp_path / "voc/Annotations").mkdir()
    xml = "<annotation><object><name>狗</name><bndbox>{}</bndbox></object></annotation>".format(
        "".join(f"<{name}>{value}</{name}>" for name, value in (("xmin", 1), ("ymin", 1), ("xmax", 20), ("ymax", 20)))
    )
    (tmp_path / "voc/Annotations/a.xml").write_bytes(xml.encode("gb18030"))
    assert Import("voc", (tmp_path / "voc", tmp_path / "voc-out")).run() == 1
    assert "none of 1 images could be imported (bad-xml 1)" in capsys.readouterr().err
    assert Import("voc", (tmp_path / "voc", tmp_path / "voc-out"), encoding="gb18030").run() == 0
    assert Corpus(tmp_path / "voc-out")[0].regions[0].text == "狗"


# Real data


@pytest.mark.parametrize("name", ["sroie", "coco_mix"])
def test_real_packs_import_completely(tmp_path, name):
    (folder,) = real_data(name)
    lines = (folder / "annotations.jsonl").read_text().splitlines()[:12]
    (tmp_path / "annotations.jsonl").write_text("\n".join(lines))
    (tmp_path / "images").symlink_to(folder / "images")
    summary = import_corpus("jsonl", tmp_path, tmp_path / "out", follow_links=True)
    rows = [json.loads(line) for line in lines]
    assert (summary.images_written, summary.images_quarantined) == (12, 0)
    assert summary.regions_written == sum(len(r["regions"]) for r in rows) > 12
    for got, stated in zip(Corpus(tmp_path / "out"), rows, strict=True):
        np.testing.assert_allclose([r.box for r in got.regions], [r["bbox"] for r in stated["regions"]], atol=1e-3)
        assert [r.text for r in got.regions] == [r.get("text") or r["caption"] for r in stated["regions"]]
        assert images.decode(got.image).size == (stated["width"], stated["height"])
    assert_all_accounted_for(summary, tmp_path / "out")


def test_a_real_receipt_decodes_like_pillow(tmp_path):
    (receipts,) = real_data("sroie")
    data = next((receipts / "images").iterdir()).read_bytes()
    plain = Image.open(io.BytesIO(data)).convert("RGB")
    assert images.decode(data).tobytes() == plain.tobytes()
