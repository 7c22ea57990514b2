import subprocess
import sys
from dataclasses import replace

import pytest

from granvit.corpus.check import verify
from granvit.corpus.layout import CorpusError
from granvit.corpus.store import Corpus
from granvit.corpus.synthetic import synthesize as synthesizing
from granvit.corpus.synthetic.synthesize import make, synthesize
from granvit.images import decode


def test_synthesize_is_the_same_whatever_the_number_of_workers(tmp_path):
    one = synthesize(tmp_path / "one", 40, 2, 64, 0.5, workers=1, progress=False)
    two = synthesize(tmp_path / "two", 40, 2, 64, 0.5, workers=2, progress=False)
    assert one.manifest["shards"] == two.manifest["shards"]
    assert verify(tmp_path / "one") == verify(tmp_path / "two") == []
    assert [r.id[-7:] for r in two] == [f"{i:07d}" for i in range(40)]
    assert two[33] == replace(make(33, 2, 64, 0.5), split="train")


def test_workers_that_cannot_start_end_the_drawing(tmp_path):
    """As those of a script that draws without asking whether it is the main module: they must not be waited for."""
    script = tmp_path / "script.py"
    script.write_text(
        "from granvit.corpus.synthetic.synthesize import synthesize\n"
        f"synthesize({str(tmp_path / 'out')!r}, 64, 2, 64, workers=2, progress=False)\n"
    )
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert 'must draw under `if __name__ == "__main__":`' in ended.stderr.splitlines()[-1]
    assert not (tmp_path / "out" / "corpus.json").exists()


def test_synthesize_draws_once(tmp_path, monkeypatch):
    first = synthesize(tmp_path / "it", 3, 1, 64, split="val", workers=1, progress=False)
    assert {r.split for r in first} == {"val"} and len(first) == 3
    assert decode(first[0].image or b"").size == (64, 64)
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "it").iterdir()}

    def drawn(*args, **options):
        raise AssertionError("drawn again")

    monkeypatch.setattr(synthesizing, "make", drawn)
    assert list(synthesize(tmp_path / "it", 3, 1, 64, split="val", workers=1, progress=False)) == list(first)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "it").iterdir()} == files


@pytest.mark.parametrize(
    "asked", [{"count": 4}, {"seed": 2}, {"size": 48}, {"documents": 0.5}, {"prints": 0.5}, {"split": "val"}], ids=str
)
def test_synthesize_leaves_what_else_is_there_alone(tmp_path, asked):
    settings = {"count": 3, "seed": 1, "size": 64, "documents": 0.15, "split": "train", "workers": 1, "progress": False}
    before = list(synthesize(tmp_path / "it", **settings))
    with pytest.raises(CorpusError, match="not empty"):
        synthesize(tmp_path / "it", **{**settings, **asked})
    assert list(Corpus(tmp_path / "it")) == before


def test_synthesize_replaces_what_an_older_version_drew(tmp_path, monkeypatch):
    monkeypatch.setattr(synthesizing, "VERSION", synthesizing.VERSION - 1)
    synthesize(tmp_path / "it", 3, 1, 64, workers=1, progress=False)
    monkeypatch.undo()
    made = synthesize(tmp_path / "it", 3, 1, 64, workers=1, progress=False)
    assert made.manifest["meta"]["embedded"]["version"] == synthesizing.VERSION and verify(tmp_path / "it") == []


@pytest.mark.parametrize(
    "wrong", [{"count": 0}, {"size": 16}, {"documents": 1.5}, {"documents": -0.1}, {"prints": 1.1}], ids=str
)
def test_synthesize_refuses_what_cannot_be_drawn(tmp_path, wrong):
    with pytest.raises(ValueError, match="at least 1"):
        synthesize(tmp_path / "it", **{"count": 1, "size": 64, "workers": 1, "progress": False, **wrong})
    assert not (tmp_path / "it").exists()


def test_synthesize_refuses_a_foreign_folder(tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(CorpusError, match="letter.txt"):
        synthesize(tmp_path, 2, workers=1, progress=False)
    assert (tmp_path / "letter.txt").read_text() == "mine"
