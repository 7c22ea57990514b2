import json
import os
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers.drawn import jpeg, picture
from helpers.tiny_recipe import save_parts, shorten_answers, tiny_recipe

from granvit.corpus.store import Corpus, CorpusWriter
from granvit.corpus.synthetic.synthesize import make
from granvit.errors import BusyError, CheckpointError
from granvit.nano.demo import own_corpora, run_demo
from granvit.predict import GranViT
from granvit.regions import Region, RegionImage

STAGES = ("before", "stage1", "stage2")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return save_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder: the embedded corpus is drawn below it."""
    monkeypatch.chdir(tmp_path)
    shorten_answers(monkeypatch)
    return tmp_path


def scores(out) -> dict:
    return json.loads((out / "metrics.json").read_text())


class Tags(HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.images = 0
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.images += tag in ("img", "svg")
        self.links += [v for k, v in values.items() if k in ("src", "href") and v]


def test_the_embedded_demo_leaves_report_metrics_and_checkpoint(here, parts, capsys):
    out = here / "runs" / "demo"
    path = run_demo(out, recipe=tiny_recipe(parts), processes=1)
    assert path == out / "report.html"
    assert {p.name for p in out.iterdir()} >= {"report.html", "metrics.json", "checkpoint", "recipe.json"}

    metrics = scores(out)
    assert set(metrics) == {*STAGES, "baseline", "asked", "seconds"} and metrics["seconds"] > 0
    for stage in STAGES:
        assert {"rouge_l", "exact"} <= metrics[stage]["describe"].keys()
        assert {"acc50", "miou", "parse_rate"} <= metrics[stage]["locate"].keys()
        assert "rouge_l" in metrics[stage]["caption"]
        counts = {task: values["count"] for task, values in metrics[stage].items()}
        assert counts == {task: values["count"] for task, values in metrics["before"].items()}
        assert all(0 <= v <= 1 for values in metrics[stage].values() for k, v in values.items() if k != "count")
    assert metrics["baseline"]["describe"]["rouge_l"] > 0

    page = path.read_text()
    tags = Tags(page)
    assert tags.images >= 2  # curves and pictures, all within the one file
    assert all(link.startswith(("data:", "#")) for link in tags.links)
    assert "the embedded one" in page and "8 to train on, 4 to evaluate on" in page and "stage1 2 steps" in page
    assert "8 pictures to train on, 4 to evaluate on" in capsys.readouterr().out

    picture = make(0, 1, 64, 0.0)
    loaded = GranViT.load(out)
    assert len(loaded.describe(picture.image, [r.box for r in picture.regions])) == len(picture.regions)


def test_the_demo_evaluates_at_most_as_many_images_as_asked(here, parts):
    recipe = tiny_recipe(parts)
    recipe.corpus.documents = 0.0
    run_demo(here / "out", recipe=recipe, limit=2, processes=1)
    assert scores(here / "out")["stage2"]["caption"]["count"] == 2


def own_corpus(folder, change):
    """12 pictures, 4 of them held out, each changed by `change(record)`."""
    with CorpusWriter(folder) as writer:
        for i in range(12):
            record = change(make(i, seed=9, size=64, documents=0.5))
            writer.write(replace(record, id=f"image{i}", split="val" if i % 3 == 0 else "train"))
    return folder


def only(kind: str):
    """Records with something to ask, whatever they were: all their regions become of one kind, without a caption."""

    def change(record: RegionImage) -> RegionImage:
        regions = [replace(region, kind=kind) for region in record.regions]
        return replace(record, regions=regions, caption=None)

    return change


def bare(record: RegionImage) -> RegionImage:
    return replace(record, regions=[], caption=record.caption or "a page of text")


def with_ignored(record: RegionImage) -> RegionImage:
    return replace(record, regions=[replace(r, ignore=i == 0) for i, r in enumerate(record.regions)])


@pytest.mark.parametrize(
    ("change", "tasks"),
    [
        (lambda record: record, {"describe", "locate", "read", "locate_text", "caption"}),
        (only("object"), {"describe", "locate"}),
        (only("text"), {"read", "locate_text"}),
        (with_ignored, {"describe", "locate", "read", "locate_text", "caption"}),
        (lambda record: replace(record, caption=None), {"describe", "locate", "read", "locate_text"}),
    ],
    ids=["everything", "objects", "text", "ignored", "no captions"],
)
def test_a_corpus_of_ones_own(here, parts, change, tasks):
    corpus = own_corpus(here / "corpus", change)
    run_demo(here / "out", corpus, recipe=tiny_recipe(parts, steps=1), processes=1)
    metrics = scores(here / "out")
    for stage in (*STAGES, "baseline"):
        assert set(metrics[stage]) == tasks
    page = (here / "out" / "report.html").read_text()
    assert str(corpus) in page and "8 to train on, 4 to evaluate on" in page
    shown = [r.text for record in Corpus(corpus) if record.split == "val" for r in record.regions if not r.ignore]
    assert any(text in page for text in shown)
    assert not (here / "runs").exists()  # nothing else was drawn


def test_scans_are_trained_on_oftener_and_evaluated_in_tiles(here):
    line, size = Region((60, 10, 100, 22), "TOTAL 5", "text"), (150, 60)
    with CorpusWriter(here / "corpus") as writer:
        for i in range(6):
            scan = RegionImage(f"scan{i}", jpeg(picture(i, size)), *size, [line], split="val" if i < 2 else "train")
            writer.write(scan)
            photo = make(i, seed=9, size=64, documents=0.0)
            writer.write(replace(photo, id=f"photo{i}", split="val" if i < 3 else "train"))
    (photos, scans), whole = own_corpora(here / "corpus", None, 100)
    assert [record.id for record in photos[0]] == ["photo3", "photo4", "photo5"]
    assert [record.id for record in scans[0]] == ["scan2", "scan3", "scan4", "scan5"]
    assert scans[1] > photos[1]

    assert [record.id for record in whole] == ["photo0", "photo1", "photo2", "scan0", "scan1"]
    _, tiles = own_corpora(here / "corpus", 64, 100)
    assert [record.id for record in tiles[:3]] == ["photo0", "photo1", "photo2"] and len(tiles) > 3
    for record in tiles[3:]:
        assert record.id.startswith(("scan0@", "scan1@")) and max(record.width, record.height) == 64
        assert any(region.text == "TOTAL 5" and not region.ignore for region in record.regions)
    _, few = own_corpora(here / "corpus", 64, 2)
    assert [record.id[:4] for record in few] == ["phot", "scan"]


def test_a_corpus_of_captions_alone(here, parts):
    recipe = tiny_recipe(parts, steps=1)
    recipe.stages[1].sample.questions = {"global": 1.0}
    run_demo(here / "out", own_corpus(here / "corpus", bare), recipe=recipe, processes=1)
    assert set(scores(here / "out")["stage2"]) == {"caption"}


def test_a_finished_demo_reports_again_without_training(here, parts):
    run_demo(here / "out", recipe=tiny_recipe(parts, steps=1), processes=1)
    first = scores(here / "out")
    (here / "out" / "report.html").unlink()
    run_demo(here / "out", recipe=tiny_recipe(parts, steps=1), processes=1)
    again = scores(here / "out")
    assert {stage: again[stage] for stage in STAGES} == {stage: first[stage] for stage in STAGES}
    assert (here / "out" / "report.html").exists()


def test_two_processes_take_the_steps_of_one_and_say_what_goes_wrong(here, parts):
    for processes in (1, 2):
        run_demo(here / f"by-{processes}", recipe=tiny_recipe(parts), limit=2, processes=processes)
    for stage in ("stage1", "stage2"):
        losses = [
            [json.loads(line)["loss"] for line in (here / f"by-{p}" / stage / "history.jsonl").read_text().splitlines()]
            for p in (1, 2)
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert scores(here / "by-1").keys() == scores(here / "by-2").keys()
    with pytest.raises(CheckpointError, match="recipe.json"):
        run_demo(here / "by-2", recipe=tiny_recipe(parts, steps=3), limit=2, processes=2)


def test_a_batch_that_cannot_be_shared_is_refused(here, parts):
    with pytest.raises(ValueError, match="3 processes cannot share batches of 2 images"):
        run_demo(here / "it", recipe=tiny_recipe(parts), processes=3)


def test_of_two_demos_in_one_folder_the_second_is_refused(here, parts):
    """Before anything of it is trained; the folder stays as it is."""
    corpus = own_corpus(here / "corpus", lambda record: record)
    code = "import sys; from granvit.files import locked\nwith locked(sys.argv[1]): print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(here / "out")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as other:
        assert other.stdin is not None and other.stdout is not None
        other.stdout.readline()
        with pytest.raises(BusyError, match=f"out: another process is writing here .process {other.pid} on"):
            run_demo(here / "out", corpus, recipe=tiny_recipe(parts, steps=1), processes=1)
        other.stdin.close()
    assert not (here / "out").exists()
