"""`granvit corpus annotate` from its flags to its exit status."""

import pytest
from cheap import InlineCrew
from PIL import Image
from test_ocr import LINES, page

from granvit.cli import main
from granvit.corpus.annotate import pipeline
from granvit.corpus.commands.annotating import Annotate
from granvit.corpus.store import Corpus
from granvit.corpus.verify import verify

pytest.importorskip("rapidocr")


def granvit(*args) -> int:
    with pytest.raises(SystemExit) as exit:
        main(["corpus", "annotate", *map(str, args)])
    return exit.value.code


def test_pages_become_a_corpus_of_text(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "_crew", InlineCrew)
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
    ("flags", "told"),
    [
        (["--how", "detect"], "--detect.model"),
        (["--how", "keep"], "no corpus"),
        (["--batch", "0"], "start at 1"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(tmp_path, capsys, flags, told):
    page()[0].save(tmp_path / "a.png")
    if flags[1] == "keep":
        flags = [*flags, "--caption.model", "some"]
    assert granvit(tmp_path, tmp_path.parent / "out", *flags) == 1
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_models_that_are_not_named_are_not_used(tmp_path):
    plan = Annotate(tmp_path, tmp_path, how="auto").plan()
    assert plan.detect is None and plan.caption is None and [step.name for step in plan.steps] == [plan.ocr.name]
