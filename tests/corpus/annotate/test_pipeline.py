"""The corpus is the same whoever works on it and whatever is killed; what kills, hangs or is damaged is set aside."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from helpers.cheap import CheapConfig, InlineWorkers, contents, plan, png
from helpers.paths import PYTHONPATH

from granvit.corpus.annotate import pipeline, shards
from granvit.corpus.annotate.base import MODEL, AnnotateError
from granvit.corpus.annotate.caption import AnswerCache, Caption, CaptionConfig
from granvit.corpus.annotate.caption_answers import Answer
from granvit.corpus.annotate.detect import DetectConfig
from granvit.corpus.annotate.ocr import OcrConfig
from granvit.corpus.annotate.pipeline import annotate
from granvit.corpus.annotate.plan import Plan
from granvit.corpus.annotate.shards import Task, run_task
from granvit.corpus.annotate.sources import open_source
from granvit.corpus.annotate.workers import CRASHED, TIMEOUT, AnnotatorBug
from granvit.corpus.check import read_quarantine, verify
from granvit.corpus.layout import CorpusError
from granvit.corpus.store import Corpus, CorpusWriter
from granvit.errors import BusyError, GranvitError
from granvit.loading.run_folder import by_content
from granvit.regions import Region, RegionImage, Turn


@pytest.fixture
def photos(tmp_path):
    """Twenty pictures, one of them cut off."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number:02d}.png").write_bytes(png(number)[: 60 if number == 7 else None])
    return folder


def run(src, out, made=None, **options):
    """With real worker processes."""
    return annotate(src, out, made or plan(), **{"workers": 1, "device": "cpu", **options})


@pytest.fixture
def inline(monkeypatch):
    """Without worker processes, which take a second to start."""
    monkeypatch.setattr(pipeline, "_pool", InlineWorkers)


def reasons(out: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for rejection in read_quarantine(out / "quarantine.jsonl"):
        found.setdefault(rejection.reason, []).append(rejection.uri)
    return found


def test_the_corpus_holds_what_the_annotators_say_and_is_the_same_for_one_worker_or_two(photos, tmp_path):
    summary = run(photos, tmp_path / "one", licence="CC0")
    run(photos, tmp_path / "two", licence="CC0", workers=2)
    assert verify(tmp_path / "one") == []
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    records = list(Corpus(tmp_path / "one"))
    assert [record.uri for record in records] == [f"{n:02d}.png" for n in range(20) if n != 7]
    eleventh = records[10]
    assert (eleventh.id, eleventh.image, eleventh.source, eleventh.licence) == (
        "photos/11.png",
        png(11),
        "photos",
        "CC0",
    )
    # Shards of 8 in batches of 3: the picture 11 is the first of the second shard's second batch.
    name = "cheap:object"
    assert eleventh.regions == [Region((0, 0, 40, 15), "11/22/7 0 of 3", "object", 0.5, name, name)]
    assert [shard["rows"] for shard in Corpus(tmp_path / "one").manifest["shards"]] == [7, 8, 4]
    assert reasons(tmp_path / "one").keys() == {"truncated", "odd-green"}
    counts = summary.counts
    assert (counts.images_seen, counts.images_written, counts.images_quarantined) == (20, 19, 1)
    assert (counts.regions_written, counts.kinds) == (19, {"natural": 19})
    assert counts.reasons == {"truncated": 1, "odd-green": 4}


def test_a_finished_corpus_is_left_alone_and_another_refused(photos, tmp_path, inline):
    out = tmp_path / "out"
    first = run(photos, out)
    before = contents(out)
    again = run(photos, out)
    assert again.counts == first.counts and again.resumed == 20
    with pytest.raises(CorpusError, match="another corpus"):
        run(photos, out, plan(share=0.7))
    (photos / "99.png").write_bytes(png(99))
    with pytest.raises(CorpusError, match="another corpus"):
        run(photos, out)
    assert contents(out) == before


def test_an_image_that_kills_is_found_and_all_others_kept(photos, tmp_path):
    (photos / "03kill.png").write_bytes(png(3))
    summary = run(photos, tmp_path / "out")
    assert verify(tmp_path / "out") == []
    assert reasons(tmp_path / "out")["crashed-annotator"] == ["03kill.png"]
    assert (summary.counts.images_written, summary.counts.images_quarantined) == (19, 2)


@pytest.mark.slow
def test_an_image_that_takes_for_ever_is_given_up(photos, tmp_path):
    (photos / "12hang.png").write_bytes(png(12))
    summary = run(photos, tmp_path / "out", plan(image_seconds=3.0))
    assert reasons(tmp_path / "out")["timeout"] == ["12hang.png"]
    assert summary.counts.images_written == 19


def test_a_bug_and_a_missing_model_stop_the_run_and_it_can_go_on(photos, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(AnnotateError, match="not installed"):
        run(photos, tmp_path / "absent", plan(absent=True))
    (photos / "15bug.png").write_bytes(png(15))
    with pytest.raises(AnnotatorBug, match=r"(?s)15bug.png:0.*ZeroDivisionError: a bug"):
        run(photos, out)
    assert not (out / "manifest.json").exists()
    # The first two shards are done, the third is not.
    assert sorted(path.name for path in (out / ".annotate" / "shards").iterdir()) == ["00000", "00001"]
    with pytest.raises(AnnotateError, match=r"begun with annotated.detect.share 0.5, .* 0.7"):
        run(photos, out, plan(share=0.7))
    (photos / "15bug.png").rename(photos / "15.jpg")
    with pytest.raises(AnnotateError, match="input.sha256"):
        run(photos, out)


def test_a_folder_in_use_is_refused(photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("mine")
    with pytest.raises(CorpusError, match=r"not empty \(it holds letter.txt\)"):
        run(photos, tmp_path / "out")
    with pytest.raises(CorpusError, match="outside the images"):
        run(photos, photos / "out")


def test_nothing_usable_is_an_error_and_the_quarantine_tells_why(tmp_path, inline):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"no picture")
    with pytest.raises(CorpusError, match=r"none of 1 images could be annotated \(not-an-image 1\)"):
        run(tmp_path / "photos", tmp_path / "out")
    assert reasons(tmp_path / "out") == {"not-an-image": ["a.png"]}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["quarantine.jsonl"]


def write_corpus(path: Path) -> list[RegionImage]:
    human = Region((1, 2, 30, 20), "dog", "object")
    records = [RegionImage(f"set/{n}", png(n), 40, 30, [human], f"{n}.png", "set", "CC0", "a dog") for n in range(4)]
    with CorpusWriter(path) as writer:
        for record in records:
            writer.write(record)
    return records


@pytest.mark.parametrize("how", ["keep", "detect"])
def test_what_goes_with_a_refused_image_is_told(tmp_path, inline, how):
    said = [[Turn("user", "Hi"), Turn("assistant", "Ho")]] * 3
    boxes = [Region((1, 2, 30, 20), "dog"), Region((1, 2, 30, 20), "STOP", "text")]
    files = {"absent": None, "broken": b"no picture", "slow": png(1), "killing": png(2), "sound": png(3)}
    with CorpusWriter(tmp_path / "corpus") as writer:
        for name, data in files.items():
            writer.write(RegionImage(name, data, 40, 30, boxes, f"{name}.png", "set", conversations=said))
    source = open_source(tmp_path / "corpus", keep=how == "keep")
    made = plan(how="keep", caption=CheapConfig()) if how == "keep" else plan()
    given_up = {2: (TIMEOUT, "longer"), 3: (CRASHED, "the worker died over this image")}
    task = Task(0, [("manifest.json", n) for n in range(5)], 2, given_up)
    assert list(run_task(task, source, made.build(), tmp_path / "out"))
    found = read_quarantine(shards.shard_folder(tmp_path / "out", 0) / "quarantine.jsonl")
    reasons = ["missing-image", "not-an-image", TIMEOUT, CRASHED]
    assert [(r.reason, r.id, r.uri) for r in found] == [
        (reason, name, f"{name}.png") for reason, name in zip(reasons, files, strict=False)
    ]
    # With "detect" the corpus's regions were to be replaced, and so none is lost.
    assert {(r.regions, r.conversations) for r in found} == {(2 if how == "keep" else 0, 3)}


def test_boxes_of_a_corpus_are_kept_or_replaced(tmp_path, inline):
    write_corpus(tmp_path / "corpus")
    run(tmp_path / "corpus", tmp_path / "kept", plan(how="keep", caption=CheapConfig()))
    run(tmp_path / "corpus", tmp_path / "new", plan())
    kept, new = Corpus(tmp_path / "kept")[3], Corpus(tmp_path / "new")[3]
    assert (kept.id, kept.caption, kept.licence) == ("set/3", "a dog", "CC0")
    assert [region.text for region in kept.regions] == ["dog", "3/6/7 0 of 1"]
    assert [region.text for region in new.regions] == ["3/6/7 0 of 1"] and new.caption is None


@dataclass(frozen=True)
class Telling(CaptionConfig):
    """A captioner that says one thing of everything, and is asked by nobody but a `Caption`."""

    def build(self, device="cpu"):
        return Caption(self, self, AnswerCache(Path(self.cache)))

    def ask(self, requests, keep):
        return [Answer("a thing of some kind")] * len(requests)


def test_a_page_whose_boxes_are_kept_gets_no_caption_of_the_whole(tmp_path, inline):
    text, crowd, thing = Region((1, 2, 30, 20), "STOP", "text"), Region((1, 2, 9, 9), "", ignore=True), (1, 2, 30, 20)
    marked = {
        "page": [text],
        "page with a crowd": [text, crowd],
        "street": [text, Region(thing, "dog")],
        "nothing to see": [crowd],
        "nothing": [],
    }
    with CorpusWriter(tmp_path / "corpus") as writer:
        for n, (name, regions) in enumerate(marked.items()):
            writer.write(RegionImage(name, png(n), 40, 30, regions, source="set"))
    made = plan(how="keep", caption=Telling("m", cache=str(tmp_path / "c")))
    summary = run(tmp_path / "corpus", tmp_path / "out", made)
    captioned = [record.id for record in Corpus(tmp_path / "out") if record.caption]
    assert captioned == ["street", "nothing to see", "nothing"]
    assert summary.counts.kinds == {"text": 2, "natural": 3} and summary.missing == ""
    with CorpusWriter(tmp_path / "pages") as writer:
        writer.write(RegionImage("page", png(1), 40, 30, [text], source="set"))
    summary = run(tmp_path / "pages", tmp_path / "read", made)
    assert summary.missing == "not one caption was made: the boxes of all 1 images hold text, and no object"
    # Where it was read that text covers little of a picture, it is a photograph, with signs in it.
    signs = replace(made, how="auto", ocr=CheapConfig("text", 0.01))
    run(tmp_path / "pages", tmp_path / "signs", signs)
    assert [bool(record.caption) for record in Corpus(tmp_path / "signs")] == [True]


@pytest.mark.parametrize(("share", "kind", "text"), [(0.04, "object", "dog"), (0.06, "text", "3/6/7 0 of 1")])
def test_auto_routes_by_text_coverage(tmp_path, share, kind, text, inline):
    write_corpus(tmp_path / "corpus")
    made = plan(how="auto", ocr=CheapConfig("text", share), detect=None, text_coverage=0.05)
    summary = run(tmp_path / "corpus", tmp_path / "out", made)
    record = Corpus(tmp_path / "out")[3]
    # A natural image keeps its boxes and its caption, and what OCR found or refused on it is forgotten.
    assert [(region.kind, region.text) for region in record.regions] == [(kind, text)]
    assert record.caption == (None if kind == "text" else "a dog")
    assert summary.counts.kinds == {"text" if kind == "text" else "natural": 4}
    assert ("odd-green" in summary.counts.reasons) == (kind == "text")
    replaced = {"region-replaced": 4, "caption-replaced": 4}
    assert +summary.counts.changes == (replaced if kind == "text" else {})


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({"how": "detect", "detect": None}, "name a detector"),
        ({"how": "keep"}, "captioner"),
        ({"batch": 0}, "start at 1"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(settings, missing):
    with pytest.raises(AnnotateError, match=missing):
        plan(**settings)


# Killed with SIGKILL, at moments that differ from run to run


def start(src: Path, out: Path, workers: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "helpers.cheap", str(src), str(out), str(workers)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": PYTHONPATH})


def workers_of(driver: subprocess.Popen) -> list[int]:
    children = Path(f"/proc/{driver.pid}/task/{driver.pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def in_work(out: Path) -> set[Path]:
    """The unfinished shards, those of dead workers too."""
    return set((out / ".annotate" / "tmp").glob("*"))


def kill_and_go_on(src: Path, out: Path, kills: int, seed: int) -> tuple[int, int]:
    """Annotate with up to so many kills, of the driver and of a worker in turn; gives how many hit each."""
    draw = random.Random(seed)
    drivers = workers = 0
    driver, before = start(src, out, 2), set()
    while drivers + workers < kills and driver.poll() is None:
        if not in_work(out) - before:
            time.sleep(0.005)
            continue
        time.sleep(draw.uniform(0, 0.15))
        alive = workers_of(driver) if driver.poll() is None else []
        if not alive:
            continue
        before = in_work(out)
        if workers <= drivers:
            os.kill(draw.choice(alive), signal.SIGKILL)
            workers += 1
        else:
            driver.kill()
            driver.wait()
            drivers += 1
            driver = start(src, out, draw.choice((1, 2)))
    assert driver.wait() == 0
    return drivers, workers


def test_killed_and_resumed_it_is_the_same_corpus(photos, tmp_path):
    run(photos, tmp_path / "whole")
    assert kill_and_go_on(photos, tmp_path / "killed", 3, seed=0) == (1, 2)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_ten_times_it_is_the_same_corpus(tmp_path, seed):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(160):
        (folder / f"{number:03d}.png").write_bytes(png(number))
    run(folder, tmp_path / "whole")
    assert kill_and_go_on(folder, tmp_path / "killed", 10, seed) == (5, 5)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert verify(tmp_path / "killed") == []


def test_killed_while_the_corpus_is_put_together(photos, tmp_path, monkeypatch, inline):
    """Between the files' moving into place and the manifest: the next run finishes it."""
    run(photos, tmp_path / "whole")

    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(shards, "write_text", die)
        run(photos, tmp_path / "killed")
    assert (tmp_path / "killed" / "part-00000.parquet").exists()
    assert run(photos, tmp_path / "killed").resumed == 20
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_driver_does_not_share_its_folder(photos, tmp_path):
    code = "import sys; from granvit.files import locked\nwith locked(sys.argv[1]): print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as other:
        assert other.stdin is not None and other.stdout is not None
        other.stdout.readline()
        with pytest.raises(BusyError, match=f"another process is writing here .process {other.pid} on"):
            run(photos, tmp_path / "out")
        other.stdin.close()
    run(photos, tmp_path / "out")


@dataclass(frozen=True)
class Modelled(CheapConfig):
    """The cheap annotator as if it had weights."""

    model: str = field(default="", metadata=MODEL)


def test_a_run_does_not_go_on_with_other_weights_in_the_same_folder(photos, tmp_path, inline, monkeypatch):
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"old")
    made = plan(detect=Modelled(model=str(weights.parent)))
    run(photos, tmp_path / "out", made)
    assert run(photos, tmp_path / "out", made).resumed == 20  # finished, and nothing has changed
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline, "join_shards", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run(photos, tmp_path / "half", made)
    weights.write_bytes(b"new")
    with pytest.raises(CorpusError, match=f"it was made with other weights or settings in {weights.parent}: choose"):
        run(photos, tmp_path / "out", made)
    with pytest.raises(AnnotateError, match=f"was begun with other weights or settings in {weights.parent}: give"):
        run(photos, tmp_path / "half", made)
    # As earlier versions left them, which did not note it.
    for file in (tmp_path / "out/manifest.json", tmp_path / "half/.annotate/plan.json"):
        state = json.loads(file.read_text())
        state.get("meta", state)["annotated"]["detect"].pop("model_holds")
        file.write_text(json.dumps(state))
    for out in ("out", "half"):
        with pytest.raises(GranvitError, match=f"with {weights.parent}, before it was noted what a model holds"):
            run(photos, tmp_path / out, made)


def test_what_every_model_on_the_disk_holds_is_noted(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "empty").mkdir()
    here, held = str(tmp_path), by_content(str(tmp_path))
    assert held.startswith("sha256 ")
    noted = Plan("auto", OcrConfig(detector=here), DetectConfig(here), CaptionConfig(here)).settings()
    assert noted["ocr"]["detector_holds"] == noted["detect"]["model_holds"] == noted["caption"]["model_holds"] == held
    assert "recognizer_holds" not in noted["ocr"]
    # A folder that has only the name of a model, and one on the hub.
    for name in (str(tmp_path / "empty"), "Qwen/Qwen2.5-VL-7B-Instruct", "long" * 100):
        assert "model_holds" not in Plan("detect", detect=DetectConfig(name)).settings()["detect"]
    os.mkfifo(tmp_path / "empty" / "model.safetensors")
    with pytest.raises(GranvitError, match="model.safetensors: not a regular file"):
        Plan("detect", detect=DetectConfig(str(tmp_path / "empty"))).settings()


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000, '{"annotated": 3}'])
def test_an_edited_plan_is_one_sentence(photos, tmp_path, inline, content):
    (tmp_path / "out" / ".annotate").mkdir(parents=True)
    (tmp_path / "out" / ".annotate" / "plan.json").write_text(content)
    with pytest.raises(GranvitError, match="plan.json: damaged|was begun with"):
        run(photos, tmp_path / "out")


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda meta: meta.pop("changed"), "manifest.json: damaged: meta.changed is missing"),
        (lambda meta: meta.update(routed=[1]), r"manifest.json: damaged: meta.routed is \[1\], it should be an object"),
        (lambda meta: meta["quarantined"].update(x="1"), 'meta.quarantined.x is "1", it should be a whole number'),
    ],
)
def test_an_edited_account_of_a_finished_corpus_is_one_sentence(photos, tmp_path, inline, edit, problem):
    run(photos, tmp_path / "out")
    file = tmp_path / "out" / "manifest.json"
    manifest = json.loads(file.read_text())
    edit(manifest["meta"])
    file.write_text(json.dumps(manifest))
    with pytest.raises(CorpusError, match=problem):
        run(photos, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "problem"), [("[]", "should be an object"), ('{"images_seen": "8"}', "images_seen")]
)
def test_an_edited_summary_of_a_shard_is_one_sentence(photos, tmp_path, inline, monkeypatch, content, problem):
    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(shards, "write_text", die)
        run(photos, tmp_path / "out")
    (tmp_path / "out" / ".annotate" / "shards" / "00000" / "summary.json").write_text(content)
    with pytest.raises(CorpusError, match=f"summary.json: damaged: .*{problem}"):
        run(photos, tmp_path / "out")


def test_what_is_said_stays_and_what_has_no_picture_passes(tmp_path, inline):
    said = [[Turn("user", "Hi"), Turn("assistant", "Ho")]]
    records = [
        RegionImage("a", png(1), 40, 30, [], conversations=said),
        RegionImage("b", None, 0, 0, [], source="talk", conversations=said * 2, split="val"),
    ]
    with CorpusWriter(tmp_path / "corpus") as writer:
        for record in records:
            writer.write(record)
    run(tmp_path / "corpus", tmp_path / "out")
    seen, alone = Corpus(tmp_path / "out")
    assert (seen.conversations, len(seen.regions), alone) == (said, 1, records[1])
    assert verify(tmp_path / "out") == [] and read_quarantine(tmp_path / "out/quarantine.jsonl") == []
    manifest = Corpus(tmp_path / "out").manifest
    assert manifest["conversations"] == 3 and manifest["meta"]["routed"]["no-picture"] == 1
