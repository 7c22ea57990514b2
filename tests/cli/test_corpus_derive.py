"""The commands that curate, compare, look at and divide corpora, as a person runs them."""

import json
import re

import pytest
from helpers.drawn import corpus, jpeg, mirrored, picture, record

from granvit.cli import main
from granvit.corpus.store import Corpus
from granvit.regions import Region


@pytest.fixture
def granvit(tmp_path, monkeypatch, capsys):
    """Runs a corpus command beside the corpora "mine" and "bench": (exit status, standard output, standard error)."""
    odd = Region((20, 20, 220, 210), 'a <b>"bold"</b> thing & more', score=0.5, text_by="captioner:x")
    records = [
        record(f"{i}", jpeg(picture(i)), regions=[odd, Region((0, 0, 99, 99), "", ignore=True)]) for i in range(6)
    ]
    records += [record("flip", jpeg(mirrored(picture(2))), caption="the scene " * 40, split="val", source="other")]
    records += [record("gone", None, source="other", regions=[Region((0, 0, 300, 9), "TOTAL 1", "text")])]
    corpus(tmp_path / "mine", records)
    corpus(tmp_path / "bench", [record("b", jpeg(picture(4), 40))])
    monkeypatch.chdir(tmp_path)

    def run(*args: str):
        with pytest.raises(SystemExit) as left:
            main(["corpus", *args])
        out, err = capsys.readouterr()
        return left.value.code or 0, out, err

    return run


def test_curate(granvit):
    status, out, err = granvit("curate", "mine", "out", "--filters.object-box.min-score", "0.4", "--workers", "1")
    assert status == 0 and "images   7 of 8 kept\n  dropped: near-duplicate 1" in out and "out/curation.json" in out
    assert len(Corpus("out")) == 7
    status, out, err = granvit("curate", "mine", "out")
    assert status == 1 and "out is not empty" in err and err.count("\n") == 1
    status, _, _ = granvit("curate", "mine", "out", "--overwrite", "--caps", "web", "2", "other", "0")
    assert status == 0 and len(Corpus("out")) == 2
    status, _, err = granvit("curate", "nothing", "out", "--overwrite")
    assert status == 1 and err == "granvit: nothing is not a folder; a corpus is one, with a manifest.json\n"


def test_a_preset_and_the_rule_that_took_most(granvit, tmp_path):
    photos = [record(f"{i}", None, (500, 375), regions=[Region((0, 0, 200, 200), "a dog")]) for i in range(3)]
    corpus(tmp_path / "photos", [*photos, record("large", None)])
    status, _, err = granvit("curate", "photos", "out")
    assert status == 0 and len(Corpus("out")) == 1
    assert err.startswith(
        "granvit: more than half of the images are dropped (3 of 4), most of them (3) by short-side: "
    )
    status, _, err = granvit("curate", "photos", "out", "--overwrite", "--preset", "photos")
    assert (status, err, len(Corpus("out"))) == (0, "", 4)
    flag = ["--filters.object-image.min-short-side", "380"]
    status, _, err = granvit("curate", "photos", "out", "--overwrite", "--preset", "photos", *flag)
    assert status == 0 and len(Corpus("out")) == 1


@pytest.mark.parametrize("command", [["sample", "--count", "1"], ["curate", "--filters.min-regions", "0"]])
def test_a_corpus_that_holds_nothing_of_what_was_asked_for_fails(granvit, tmp_path, command):
    """Images that stay, and no region of them: the sample's only image has none, the only one of all is too small."""
    empty = [record(f"{i}", None, regions=[]) for i in range(20)]
    corpus(tmp_path / "few", [*empty, record("full", None, regions=[Region((0, 0, 9, 9), "a dot")])])
    name, *flags = command
    status, _, err = granvit(name, "few", "out", *flags)
    assert status == 1 and "holds none of the 1 regions of" in err.splitlines()[-1]


def test_leakage(granvit, tmp_path):
    status, out, _ = granvit("leakage", "mine", "--against", "bench", "--out", "clean", "--workers", "1")
    assert status == 0 and "8 images compared with 1 pictures: 1 are benchmark images" in out
    assert re.search(r"picture [01]\.\d\d  4  =  b", out) and "1 not compared by picture: no-image-bytes" in out
    assert json.loads((tmp_path / "leakage.json").read_text())["leaked"] == 1
    assert (tmp_path / "leakage.txt").read_text() == "4\n"
    assert "4" not in {r.id for r in Corpus("clean").records()} and len(Corpus("clean")) == 7
    assert granvit("leakage", "mine", "--against", "nowhere")[::2] == (1, "granvit: nowhere does not exist\n")
    assert granvit("leakage", "mine", "--against", "bench", "--similarity", "2")[0] == 1


def test_stats(granvit):
    status, out, _ = granvit("stats", "mine")
    assert status == 0 and "web: 6 images (no split 100%), 0 without regions" in out
    assert "12 regions, 6 to be ignored; by human" in out and "text     1 regions" in out
    found = json.loads(granvit("stats", "mine", "--json")[1])
    assert found["web"]["kinds"]["object"]["ignored"] == 6 and found["other"]["captioned"] == 1


def test_head(granvit):
    status, out, _ = granvit("head", "mine", "--count", "1", "--regions", "1")
    assert status == 0
    assert (
        out == '0  512x480  web\n  object [20, 20, 220, 210] 0.50  a <b>"bold"</b> thing & more\n  ... 1 more regions\n'
    )
    assert "the scene the scene" in granvit("head", "mine", "--count", "9")[1]


def test_show(granvit, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert granvit("show", "mine", "--out", "pages/a.html")[:2] == (0, "pages/a.html: 8 images\n")
    page = (tmp_path / "pages/a.html").read_text()
    assert page.count("<figure") == 8 and page.count("data:image/webp;base64,") == 7
    assert "the corpus has no file for this image" in page and "a &lt;b&gt;" in page and "<b>" not in page
    assert not re.search(r'(src|href)="(?!data:)', page) and opened == []
    granvit("show", "mine", "--count", "1", "--open")
    assert opened == [(tmp_path / "show.html").as_uri()]


def test_merge_split_and_sample(granvit):
    status, out, err = granvit("merge", "mine", "bench", "all")
    assert (status, out) == (0, "all: 9 images\n") and "no split named in bench: a tenth" in err
    assert granvit("merge", "mine", "out")[0] == 1
    assert "two records have the id" in granvit("merge", "mine", "mine", "twice")[2]
    status, out, _ = granvit("split", "all", "parts", "--val", "0.3")
    assert status == 0 and re.fullmatch(r"parts/train: \d images\nparts/val: \d images\n", out)
    assert granvit("sample", "all", "few", "--count", "4", "--seed", "3")[:2] == (0, "few: 4 of 9 images\n")
    assert granvit("sample", "all", "few", "--count", "4")[0] == 1


def test_tile(granvit):
    assert "gone: not-an-image" in granvit("tile", "mine", "tiles", "--side", "300")[2]
    status, out, _ = granvit("tile", "mine", "tiles", "--side", "300", "--kind", "object")
    # Six pictures and a copy in two by two tiles each; the bold thing fits into the first one alone.
    assert status == 0 and out.startswith("tiles: ") and "1 images whole" in out
    assert len(Corpus("tiles")) == int(out.split()[1]) + 1
    assert "a tile of 2 pixels is no image" in granvit("tile", "mine", "more", "--side", "2")[2]
