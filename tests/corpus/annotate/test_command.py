"""`granvit corpus annotate` from its flags to its exit status."""

import pytest
from helpers.cheap import InlineWorkers
from helpers.serving import MODEL, ChatServer, expected, painted
from helpers.text_page import LINES, page
from PIL import Image

from granvit.cli import main
from granvit.cli.corpus_make import Annotate
from granvit.corpus.annotate import pipeline
from granvit.corpus.check import read_quarantine, verify
from granvit.corpus.store import Corpus, CorpusWriter

pytest.importorskip("rapidocr")


def granvit(*args) -> int:
    with pytest.raises(SystemExit) as exit:
        main(["corpus", "annotate", *map(str, args)])
    return exit.value.code


def test_pages_become_a_corpus_of_text(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "_pool", InlineWorkers)
    (tmp_path / "scans").mkdir()
    page()[0].save(tmp_path / "scans" / "a.png")
    Image.new("RGB", (60, 60), "white").save(tmp_path / "scans" / "blank.png")
    (tmp_path / "scans" / "broken.png").write_bytes(b"\x89PNG")
    assert granvit(tmp_path / "scans", tmp_path / "out", "--ocr.level", "both", "--licence", "CC0") == 0
    printed, log = capsys.readouterr()
    assert "images   2 of 3 written" in printed and "not-an-image" in printed
    # No terminal: lines instead of a bar that is written over.
    assert "\r" not in log and log.splitlines()[-1].startswith("3/3 images [") and "refused: not-an-image 1" in log
    assert verify(tmp_path / "out") == []
    first = Corpus(tmp_path / "out")[0]
    assert [region.text for region in first.regions][:3] == [LINES[0], *LINES[0].split()[:2]]
    assert (first.id, first.licence, first.caption) == ("scans/a.png", "CC0", None)
    meta = Corpus(tmp_path / "out").manifest["meta"]
    assert meta["annotated"]["ocr"]["level"] == "both" and meta["routed"] == {"text": 2}
    assert granvit(tmp_path / "scans", tmp_path / "out") == 1
    assert "holds another corpus" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "reported"),
    [
        (["--how", "detect"], "--detect.model"),
        (["--how", "keep"], "no corpus"),
        (["--batch", "0"], "--batch 0: must be at least 1"),
    ],
)
def test_what_cannot_be_done_is_reported_in_one_line(tmp_path, capsys, flags, reported):
    page()[0].save(tmp_path / "a.png")
    if flags[1] == "keep":
        flags = [*flags, "--caption.model", "some"]
    assert granvit(tmp_path, tmp_path.parent / "out", *flags) == 1
    error = capsys.readouterr().err
    assert reported in error and error.count("\n") == 1


def test_auto_without_a_detector_that_finds_no_text_says_so_and_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "_pool", InlineWorkers)
    (tmp_path / "photos").mkdir()
    for name in "ab":
        Image.new("RGB", (60, 60), "white").save(tmp_path / "photos" / f"{name}.png")
    for _ in range(2):  # and again where it is done already
        assert granvit(tmp_path / "photos", tmp_path / "out", "--how", "auto") == 1
        printed, error = capsys.readouterr()
        assert "images   2 of 2 written" in printed
        reported = "not one region was found in 2 images: 2 images are no text images, and no detector is named"
        assert error.splitlines()[-1].startswith(f"granvit: {tmp_path / 'out'}: {reported} (--detect.model)")


def test_auto_without_a_detector_says_how_many_images_got_no_boxes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "_pool", InlineWorkers)
    (tmp_path / "mixed").mkdir()
    page()[0].save(tmp_path / "mixed" / "a.png")
    Image.new("RGB", (60, 60), "white").save(tmp_path / "mixed" / "b.png")
    assert granvit(tmp_path / "mixed", tmp_path / "out", "--how", "auto") == 0
    assert "1 images are no text images and got no boxes" in capsys.readouterr().err.splitlines()[-1]


def test_blank_pages_are_reported_as_blank(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "_pool", InlineWorkers)
    (tmp_path / "scans").mkdir()
    Image.new("RGB", (60, 60), "white").save(tmp_path / "scans" / "a.png")
    assert granvit(tmp_path / "scans", tmp_path / "out") == 1
    assert "not one region was found in 1 images" in capsys.readouterr().err


def test_a_page_that_lies_is_counted_as_such(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "_pool", InlineWorkers)
    (tmp_path / "scans").mkdir()
    page()[0].rotate(180).save(tmp_path / "scans" / "a.png")
    assert granvit(tmp_path / "scans", tmp_path / "out") == 0
    assert "kept, but          1  page-turned-180" in capsys.readouterr().out
    corpus = Corpus(tmp_path / "out")
    assert corpus.manifest["meta"]["changed"]["page-turned-180"] == 1 and verify(tmp_path / "out") == []
    assert [region.text for region in corpus[0].regions] == list(LINES)


@pytest.fixture
def boxed(tmp_path):
    """A corpus of two pictures with three boxes each."""
    with CorpusWriter(tmp_path / "boxed") as writer:
        for name in "ab":
            writer.write(painted(name, 3).record)
    return tmp_path / "boxed"


@pytest.fixture
def server(tmp_path):
    (tmp_path / "server").mkdir()
    server = ChatServer(tmp_path / "server")
    server.start()
    yield server
    server.kill()


@pytest.mark.parametrize("fault", ["400", "401", "404", "quota", "500"])
def test_captions_that_fail_for_the_servers_reasons_are_asked_for_again(
    tmp_path, monkeypatch, capsys, boxed, server, fault
):
    """The same command, once the server is mended, makes the corpus as if nothing had happened."""
    monkeypatch.setattr(pipeline, "_pool", InlineWorkers)

    def command(behaviour: str) -> int:
        endpoint = f"{server.address}/{behaviour}/{behaviour}/v1"
        flags = ["--caption.model", MODEL, "--caption.endpoint", endpoint, "--caption.no-whole-image"]
        flags += ["--caption.patience-s", "0.3", "--caption.cache", tmp_path / "cache.sqlite"]
        return granvit(boxed, tmp_path / "out", "--how", "keep", *flags)

    for _ in range(2):
        assert command(fault) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("granvit: ") and "does not answer" in error and "start the run again" in error
        assert not (tmp_path / "out" / "manifest.json").exists()
    assert command("plain") == 0
    assert len(server.events("asked", "plain")) == 6
    written = [[region.text for region in record.regions] for record in Corpus(tmp_path / "out")]
    assert written == [expected(painted(name, 3)) for name in "ab"]
    assert Corpus(tmp_path / "out").manifest["meta"]["quarantined"] == {}


def test_captions_of_which_not_one_can_be_used_are_reported(tmp_path, monkeypatch, capsys, boxed, server):
    monkeypatch.setattr(pipeline, "_pool", InlineWorkers)
    endpoint = ["--caption.model", MODEL, "--caption.endpoint", f"{server.address}/refuse/me/v1"]
    flags = [*endpoint, "--caption.keep-label", "--caption.cache", tmp_path / "cache.sqlite"]
    assert granvit(boxed, tmp_path / "out", "--how", "keep", *flags) == 1
    reported = "not one caption was made for 2 images (refused: caption-refused 6, whole-image-caption-refused 2)"
    assert reported in capsys.readouterr().err


def test_what_else_is_in_a_folder_is_counted_and_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "_pool", InlineWorkers)
    scans = tmp_path / "scans"
    scans.mkdir()
    for name in ("a.png", "b.jfif", "noending"):
        page()[0].save(scans / name, "PNG" if name == "a.png" else "JPEG")
    (scans / "c.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    (scans / "d.pdf").write_bytes(b"%PDF-1.7 ...")
    (scans / "notes.txt").write_text("notes")
    assert granvit(scans, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "images   3 of 3 written" in printed and "not listed        2 files or members" in printed
    assert "quarantined        2  unsupported-format" in printed
    assert "left out           1  files that are no pictures (notes.txt)" in printed
    assert Corpus(tmp_path / "out").manifest["meta"]["left_out"] == {"files that are no pictures (notes.txt)": 1}
    refused = read_quarantine(tmp_path / "out" / "quarantine.jsonl")
    assert [(r.uri, r.reason) for r in refused] == [("c.heic", "unsupported-format"), ("d.pdf", "unsupported-format")]


def test_a_folder_of_other_formats_alone_says_so(tmp_path, capsys):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "d.pdf").write_bytes(b"%PDF-1.7 ...")
    assert granvit(tmp_path / "scans", tmp_path / "out") == 1
    assert "holds no picture" in (error := capsys.readouterr().err) and "1 pictures in formats that are not" in error


def test_models_that_are_not_named_are_not_used(tmp_path):
    plan = Annotate(tmp_path, tmp_path, how="auto").plan()
    assert plan.detect is None and plan.caption is None and [step.name for step in plan.steps] == [plan.ocr.name]
