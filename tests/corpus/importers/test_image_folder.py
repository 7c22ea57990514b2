"""A folder of all that people keep among their pictures: each file is read, refused with a reason, or counted."""

import os

import pytest
from helpers.importing import bring, picture, save

from granvit.corpus.check import read_quarantine
from granvit.corpus.importers import import_corpus
from granvit.corpus.importers.image_folder import kind_of
from granvit.corpus.store import Corpus, CorpusError


def write(file, data):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def test_pictures_are_known_by_their_contents_and_nothing_goes_uncounted(tmp_path):
    src = tmp_path / "photos"
    read = {
        "a.jfif": picture(), "b": picture(form="PNG"), "c.jpg_large": picture(), "d.avif": picture(form="AVIF"),
        "e.tif": picture(form="TIFF"), "f.heic": picture(), "sub/g.JPG": picture(),
        "h.pgm": b"P5 16 16 255\n" + bytes(256),
    }  # fmt: skip
    heic = b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(40)
    refused = {
        "i.heic": heic, "j.jpg": heic, "k.pdf": b"%PDF-1.7\n", "l.dng": picture(form="TIFF"), "m.svg": b"<?xml?><svg/>",
        "n": b"8BPS\0\1", "o.cr3": b"\0\0\0\x18ftypcrx ",
    }  # fmt: skip
    bad = {"p.jpg": b"<html>404", "q.png": b""}
    others = {"labels.json": b"{}", "readme.txt": b"Photos.", "r.BM": b"BMW is a car, and this is a text", "s": b""}
    macos = {"._a.jfif": b"\0\5\x16\7" + bytes(60), ".DS_Store": b"\0\0\0\1Bud1", "__MACOSX/t.jpg": picture()}
    for name, data in (read | refused | bad | others | macos).items():
        write(src / name, data)
    summary = import_corpus("image_folder", src, tmp_path / "out")
    assert {record.uri for record in Corpus(tmp_path / "out")} == set(read)
    reasons = {r.uri: r.reason for r in read_quarantine(tmp_path / "out/quarantine.jsonl")}
    assert reasons == dict.fromkeys(refused, "unsupported-format") | dict.fromkeys(bad, "not-an-image")
    assert summary.left_out == {"files that are no pictures": len(others), "files that macOS adds": len(macos)}
    assert summary.images_seen == len(read) + len(refused) + len(bad)


def test_an_apple_double_is_known_by_its_content():
    assert kind_of("._a.jpg", picture()) == "picture"
    assert kind_of("x/._a.jpg", b"\0\5\x16\7") == "macos"


def test_links_out_of_the_folder_are_refused_or_followed(tmp_path):
    src = tmp_path / "photos"
    save(src / "in/a.jpg")
    save(tmp_path / "elsewhere/b.jpg")
    (src / "link.jpg").symlink_to("../elsewhere/b.jpg")
    (src / "folder").symlink_to("../elsewhere")
    (src / "inside").symlink_to("in")
    (src / "broken.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(src / "pipe.jpg")
    records, refused = bring("image_folder", src, tmp_path / "out")
    assert {r.uri for r in records} == {"in/a.jpg", "inside/a.jpg"}
    expected = {"link.jpg": "link-outside", "folder": "link-outside", "broken.jpg": "missing-image"}
    assert {r.uri: r.reason for r in refused} == expected | {"pipe.jpg": "missing-image"}
    assert "--follow-links" in next(r.detail for r in refused if r.uri == "folder")
    records, refused = bring("image_folder", src, tmp_path / "followed", follow_links=True)
    assert {r.uri for r in records} == {"in/a.jpg", "inside/a.jpg", "link.jpg", "folder/b.jpg"}
    assert {r.uri for r in refused} == {"broken.jpg", "pipe.jpg"}


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("sroie", {"img/1.jpg": "secret.jpg", "box/1.csv": "box.csv"}),
        ("icdar", {"1.jpg": "secret.jpg", "gt_1.txt": "box.csv"}),
        ("docbank", {"1_ori.jpg": "secret.jpg", "1.txt": "box.csv"}),
        ("funsd", {"training_data/images/1.png": "secret.jpg", "training_data/annotations/1.json": "rows.jsonl"}),
        ("voc", {"JPEGImages/1.jpg": "secret.jpg", "Annotations/1.xml": "box.csv"}),
        ("jsonl", {"annotations.jsonl": "rows.jsonl"}),
        ("webdataset", {"1.tar": "rows.jsonl"}),
        ("parquet", {"1.parquet": "rows.jsonl"}),
        ("grit", {"1.jsonl": "rows.jsonl"}),
        ("image_folder", {"1.jpg": "secret.jpg"}),
    ],
)
def test_no_layout_follows_a_link_out_of_its_folder(tmp_path, name, files):
    """All that there is lies elsewhere and is linked; whatever the layout, none of it may come in."""
    real = tmp_path / "elsewhere"
    save(real / "secret.jpg")
    (real / "box.csv").write_text("1,1,9,1,9,9,1,9,secret\n")
    (real / "rows.jsonl").write_text('{"image": "secret.jpg", "width": 40, "height": 30, "regions": []}\n')
    src = tmp_path / "src"
    for link, target in files.items():
        (src / link).parent.mkdir(parents=True, exist_ok=True)
        (src / link).symlink_to(real / target)
    with pytest.raises(CorpusError) as error:
        import_corpus(name, src, tmp_path / "out")
    accounts = [file.read_text() for file in tmp_path.rglob("*quarantine.jsonl")]
    assert "--follow-links" in "".join([str(error.value), *accounts])
