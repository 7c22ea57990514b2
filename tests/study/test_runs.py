"""A miniature study, two arms and two seeds: killed and resumed, with a job that fails, and without its weights."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from helpers.drawn import corpus
from helpers.paths import PYTHONPATH
from helpers.tiny_recipe import save_parts, shorten_answers
from helpers.tiny_study import impossible, tiny_study

from granvit.cli.study import Study
from granvit.corpus.synthetic.synthesize import make
from granvit.errors import BusyError, GranvitError
from granvit.files import locked
from granvit.regions import RegionImage, Turn
from granvit.study import worker
from granvit.study.definition import Arm
from granvit.study.jobs import Data, jobs_of
from granvit.study.report import markdown, write_study
from granvit.study.results import find_result, path_of
from granvit.study.runner import plan_lines
from granvit.study.statistics import of_arm
from granvit.study.summary import summarise
from granvit.study.work import do_job, job_folder, open_images
from granvit.study.worker import Place, serve
from granvit.train.recipes import ablations as by

STEPS = 20


def jobs(study, seeds=2):
    return jobs_of(study, seeds, Data(12, "drawn"))


def table(study, out: Path) -> str:
    done = [result for job in jobs(study) if (result := find_result(out, job)) is not None]
    return markdown(summarise(study, jobs(study), done, "stage1"))


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return save_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def whole(parts, tmp_path_factory):
    """The study and the folder in which it ran without a stop, in this process."""
    out, study = tmp_path_factory.mktemp("whole"), tiny_study(parts, STEPS)
    with pytest.MonkeyPatch.context() as patch:
        shorten_answers(patch, 24)
        images = open_images(study, out, ())
        for job in jobs(study):
            do_job(study, job, out, images, "cpu", keep=False)
    return study, out


def start(parts: Path, out: Path, *launcher: str, steps: int = STEPS) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, "-m", "helpers.tiny_study", str(parts), str(out), str(steps)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)


def test_killed_in_the_middle_and_resumed_it_comes_to_the_same_table(parts, whole, tmp_path):
    study, out = whole[0], tmp_path / "out"
    first = start(parts, out)
    history = out / "jobs/stage1/seed0/stage1/history.jsonl"
    deadline = time.monotonic() + 300
    while not (history.exists() and history.read_text().count("\n") >= 7):
        assert first.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not path_of(out, jobs(study)[2]).exists()
    untouched = path_of(out, jobs(study)[0]).stat().st_mtime_ns
    second = start(parts, out)
    said = second.communicate(timeout=400)[0]
    assert second.returncode == 0, said
    assert "2 of 4 jobs are done, 2 are to be run" in said and "[4/4] stage1.seed1" in said
    assert path_of(out, jobs(study)[0]).stat().st_mtime_ns == untouched
    # The first lines of the history are those of before, which only going on from a checkpoint leaves.
    assert len(history.read_text().splitlines()) == STEPS
    assert table(study, out) == table(study, whole[1])


def test_of_a_corpus_with_conversations_every_arm_learns_what_it_does_without(parts, tmp_path, monkeypatch, capsys):
    """Also the one that fine-tunes, which would ask them, and for as many steps; so do parts of the corpus."""
    arms = (Arm("tuned", "", by.encoder_trained), Arm("half", "", by.encoder_trained, share=0.5))
    study = tiny_study(parts, 0, arms)
    study = replace(study, measuring=replace(study.measuring, tasks=("describe",)))
    shorten_answers(monkeypatch)
    drawn = [make(i, seed=1, size=64, documents=0.0) for i in range(12)]
    pictures = [replace(record, split="val" if n % 4 == 3 else "train") for n, record in enumerate(drawn)]
    said = [[Turn("user", "Which colours are there?"), Turn("assistant", "Red and blue.")]]
    told = [
        record
        for n, picture in enumerate(pictures)
        for record in (
            RegionImage(f"said{n}", None, 0, 0, [], split=picture.split, source="said", conversations=said),
            replace(picture, conversations=said),
        )
    ]
    found = []
    for name, records in (("plain", pictures), ("told", told)):
        corpus(tmp_path / name, records)
        data = Study("paper", corpus=(str(tmp_path / name),))._data(study)
        images, out = open_images(study, tmp_path / "out" / name, (str(tmp_path / name),)), tmp_path / "out" / name
        assert data.images == len(images.train[0][0]) == 9 and len(images.held_out) == 3
        assert not any(record.conversations for record in images.train[0][0])
        made = [job for job in jobs_of(study, 1, data) if job.arm in arms]
        for job in made:
            do_job(study, job, out, images, "cpu", keep=False)
        found.append([find_result(out, job) for job in made])
    for plain, asked in zip(*found, strict=True):
        assert plain.cost["steps"] == asked.cost["steps"] and plain.curves == asked.curves
        assert plain.images == asked.images and plain.numbers == asked.numbers
        assert {name: table.tolist() for name, table in plain.tables.items()} == {
            name: table.tolist() for name, table in asked.tables.items()
        }
        assert plain.identity != asked.identity, "what earlier versions left did ask them"
    assert capsys.readouterr().out.count("24 conversations of the corpora are asked in no arm\n") == 1


def test_corpora_that_cannot_be_measured_on_are_told_before_anything_is_trained(parts, tmp_path):
    said = [[Turn("user", "Hello?"), Turn("assistant", "Hello.")]]
    pictures = [
        replace(make(i, seed=1, size=64, documents=0.0), split=split) for i, split in enumerate(("train", "val"))
    ]
    corpus(tmp_path / "plain", pictures)
    words = RegionImage("said", None, 0, 0, [], split="val", source="said", conversations=said)
    corpus(tmp_path / "words", [pictures[0], words])
    plain, words = str(tmp_path / "plain"), str(tmp_path / "words")
    with pytest.raises(GranvitError, match=f"{pictures[1].id!r} is held out in two of the corpora"):
        open_images(tiny_study(parts), tmp_path, (plain, plain))
    with pytest.raises(GranvitError, match="words: of what is to be trained or measured on no record has an image"):
        open_images(tiny_study(parts), tmp_path, (plain, words))


def test_tiles_of_a_picture_count_as_one(whole, parts, tmp_path, monkeypatch):
    """Six held-out images are tiles of three pictures: their rows are those of the images, added up."""
    study, out = whole
    job = jobs(study)[0]
    shorten_answers(monkeypatch, 24)
    images = open_images(study, tmp_path, ())
    images.held_out = [replace(r, id=f"p{n // 2}@{n % 2 * 32},0,32") for n, r in enumerate(images.held_out)]
    do_job(study, job, tmp_path, images, "cpu", keep=False)
    single, tiled = find_result(out, job), find_result(tmp_path, job)
    assert (tiled.images["count"], tiled.images["pictures"]) == (6, 3) and "pictures" not in single.images
    assert tiled.tables.keys() == single.tables.keys()
    for name, table in tiled.tables.items():
        assert table == pytest.approx(single.tables[name].reshape(3, 2, 2).sum(1), abs=1e-3), name
    assert of_arm([tiled], "describe").value == pytest.approx(of_arm([single], "describe").value, abs=1e-3)
    assert summarise(study, [job], [tiled], "stage1").facts["Held-out images"] == "6 of 3 pictures, the same for all"
    with pytest.raises(GranvitError, match="different images"):
        of_arm([single, tiled], "describe")
    path = path_of(tmp_path, job)
    path.write_text(path.read_text().replace('"pictures": 3', '"pictures": 6'))
    with pytest.raises(GranvitError, match="6 finite numbers are expected"):
        find_result(tmp_path, job)


@pytest.mark.slow
def test_the_ranks_of_a_torchrun_do_each_job_together(parts, whole, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    out, study = tmp_path / "out", tiny_study(parts, 3)
    for expected in ("done", "was done before"):
        said = (ranks := start(parts, out, *launcher, steps=3)).communicate(timeout=400)[0]
        assert ranks.returncode == 0, said
        told = [line for line in said.splitlines() if line.endswith(f": {expected}")]  # beside what the feed left out
        assert told == [f"{job.name}: {expected}" for job in jobs(study)]
    # A recipe's batch is each process's; what it costs is counted over all of them.
    alone = {job.name: find_result(whole[1], job).cost for job in jobs(whole[0])}
    for job in jobs(study):
        cost = find_result(out, job).cost
        assert cost["images"] == 2 * 2 * 3 * (2 if job.arm.name == "stage1" else 1)
        one = alone[job.name]
        assert cost["flops"] / cost["images"] == pytest.approx(one["flops"] / one["images"], rel=0.3)


def test_a_later_machine_without_weights_goes_on_with_what_is_missing(whole, tmp_path, monkeypatch):
    study, out = whole[0], tmp_path / "later"
    shutil.copytree(whole[1] / "results", out / "results")
    missing = next(job for job in jobs(study) if job.name == "stage1.seed1")
    path_of(out, missing).unlink()
    assert sum("done" in line for line in plan_lines(study, jobs(study), out, 1)[:-1]) == 3
    shorten_answers(monkeypatch, 24)
    images = open_images(study, out, ())
    for job in jobs(study):
        if find_result(out, job) is None:
            do_job(study, job, out, images, "cpu", keep=True)
    assert [p.name for p in (out / "jobs").glob("*/*")] == ["seed1"]
    assert (job_folder(out, missing) / "checkpoint/model.safetensors").exists(), "--keep keeps the model"
    assert table(study, out) == table(study, whole[1])


def test_results_keep_what_training_took_and_weights_go(whole):
    study, out = whole
    results = {job.name: find_result(out, job) for job in jobs(study)}
    assert not list(out.glob("jobs/**/*.safetensors"))
    for name, result in results.items():
        assert result.cost["images"] == 2 * STEPS * (2 if name.startswith("stage1") else 1)
        assert result.cost["flops"] > 0
    assert results["stage1.seed0"].cost["flops"] > 1.5 * results["initial.seed0"].cost["flops"]
    assert set(results["stage1.seed0"].curves["stage1"]) >= {"caption", "distill"}
    assert {"describe", "locate", "distinct", "swapped", "attention"} <= results["initial.seed0"].tables.keys()


def test_shared_stages_are_trained_once_and_again_only_where_they_are_missed(parts, tmp_path, monkeypatch):
    study = tiny_study(parts, 2, (Arm("alone", "", by.stage_1_alone), Arm("tuned", "", by.encoder_trained)))
    study = replace(study, measuring=replace(study.measuring, tasks=("describe",), attention=1))
    shorten_answers(monkeypatch)
    images = open_images(study, tmp_path, ())
    first, alone, tuned = (job for job in jobs(study, 1) if job.arm.name != "initial")
    do_job(study, first, tmp_path, images, "cpu", keep=False)
    shared = tmp_path / "shared" / first.shared_folder
    weights = (shared / "checkpoint/model.safetensors").stat().st_mtime_ns
    do_job(study, alone, tmp_path, images, "cpu", keep=False)
    assert (shared / "checkpoint/model.safetensors").stat().st_mtime_ns == weights
    assert not (job_folder(tmp_path, first) / "stage1").exists(), "its stage 1 is in shared/"
    assert find_result(tmp_path, first).curves["stage1"] == find_result(tmp_path, alone).curves["stage1"]
    assert find_result(tmp_path, alone).cost["flops"] < find_result(tmp_path, first).cost["flops"]
    before = find_result(tmp_path, alone).curves
    shutil.rmtree(tmp_path / "shared")
    do_job(study, tuned, tmp_path, images, "cpu", keep=False)
    assert shared.exists() and find_result(tmp_path, tuned).curves["stage1"] == before["stage1"]


def test_of_an_arm_that_teaches_no_answer_the_encoder_alone_is_measured(parts, tmp_path, monkeypatch):
    contrasted = partial(by.stage_1_of, change=by.contrast)
    study = tiny_study(parts, 1, (Arm("none", "", by.untrained), Arm("contrast", "", contrasted)))
    monkeypatch.setattr("granvit.study.measures._answers", lambda *_: pytest.fail("it was asked"))
    images = open_images(study, tmp_path, ())
    for job in jobs(study, 1)[2:]:
        do_job(study, job, tmp_path, images, "cpu", keep=False)
        assert {"attention", "describe"} & find_result(tmp_path, job).tables.keys() == {"attention"}


def test_a_job_of_equal_arithmetic_is_done_once_it_has_a_result(parts, tmp_path, monkeypatch):
    """Its steps follow from the other arm's arithmetic; it is known by what was asked for."""
    study = tiny_study(parts, 4, (Arm("initial.flops", "", by.initial, flops_of="stage1"),))
    study = replace(study, measuring=replace(study.measuring, tasks=("describe",), attention=1))
    shorten_answers(monkeypatch)
    asked = next(job for job in jobs(study, 1) if job.arm.name == "initial.flops")
    do_job(study, asked, tmp_path, open_images(study, tmp_path, ()), "cpu", keep=False)
    result = find_result(tmp_path, asked)
    assert result is not None and result.cost["steps"]["stage2"] > asked.recipe.stages[0].loop.steps == 4


class Line:
    """A worker's end of the line: jobs come out, answers go in."""

    def __init__(self, waiting):
        self.waiting, self.answers = list(waiting), []

    def recv(self):
        if not self.waiting:
            raise EOFError
        return self.waiting.pop(0)

    def send(self, answer):
        self.answers.append(answer)


def test_a_job_that_fails_leaves_its_log_and_the_others_go_on(parts, tmp_path, monkeypatch, capfd):
    study = tiny_study(parts, 1, (Arm("bad", "It cannot begin", impossible),))
    study = replace(study, measuring=replace(study.measuring, tasks=("describe",), attention=1))
    shorten_answers(monkeypatch)
    monkeypatch.setattr(worker, "_leave_with_parent", lambda: None)
    good, _, bad = jobs(study, 1)
    line = Line([bad, good])
    with capfd.disabled():  # else what is printed goes to no descriptor
        serve(line, study, Place(tmp_path, (), "cpu", False))
    (failed, reason), done = line.answers
    assert failed == "failed" and "absent: no such folder" in reason and done == ("done", "")
    log = (job_folder(tmp_path, bad) / worker.LOG).read_text()
    assert "Traceback" in log and "absent" in log
    assert find_result(tmp_path, good) is not None and find_result(tmp_path, bad) is None


def test_a_job_that_another_is_at_is_left_to_it(parts, tmp_path):
    study = tiny_study(parts, 1)
    job = jobs(study, 1)[0]
    images = open_images(study, tmp_path, ())
    code = (
        "import sys, time; from granvit.files import locked\n"
        "with locked(sys.argv[1]): print('held', flush=True); time.sleep(600)"
    )
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    command = [sys.executable, "-c", code, str(job_folder(tmp_path, job))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BusyError, match="another process"):
            do_job(study, job, tmp_path, images, "cpu", keep=False)
        other.kill()
    assert find_result(tmp_path, job) is None


def test_a_result_of_other_settings_is_refused_by_name(whole, parts):
    _, out = whole
    job = jobs(tiny_study(parts, STEPS + 1))[0]
    with pytest.raises(GranvitError, match=r"initial.seed0.json: .*stages.0.loop.steps was 20 there and is 21"):
        find_result(out, job)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"format": 1', '"format": 9', "format 9"),
        ('"seed": 0', '"seed": "0"', "seed"),
        ('"sums":[', '"sums":["x",', "tables"),
        ('"tables"', '"tabels"', "tables is missing"),
        ("{", "", "damaged"),
        ('"curves": {', '"curves": {"s": {"loss": [5]}, ', "curves.s.loss"),
        ('"numbers": {', '"numbers": {"odd": "x", ', "numbers.odd"),
        ('"cost": {', '"cost": {"odd": "x", ', "cost.odd"),
    ],
)
def test_a_damaged_result_is_named(whole, tmp_path, old, new, message):
    study, out = whole
    job = jobs(study)[0]
    path = path_of(tmp_path, job)
    path.parent.mkdir()
    path.write_text(path_of(out, job).read_text().replace(old, new, 1))
    with pytest.raises(GranvitError, match=message) as wrong:
        find_result(tmp_path, job)
    assert path.name in str(wrong.value)


def test_the_report_says_what_is_missing_and_what_was_found(whole, tmp_path):
    study, out = whole
    done = [find_result(out, job) for job in jobs(study)]
    some = [result for result in done if result.seed == 0]
    summary = write_study(study, jobs(study), some, tmp_path)
    page = (tmp_path / "study.html").read_text()
    assert summary.missing == {"initial": [1], "stage1": [1]}
    assert "Cannot be told from one seed" in page and "Initial: without seed 1" in page
    write_study(study, jobs(study), [r for r in done if r.arm == "initial"], tmp_path)
    assert "Stage 1: no result yet" in (tmp_path / "study.html").read_text()
    full = write_study(study, jobs(study), done, tmp_path)
    assert full.missing == {} and "Not finished" not in (tmp_path / "study.html").read_text()
    both = [full.rows[name].scores["describe"].value for name in ("initial", "stage1")]
    assert full.questions[0].difference.estimate.value == pytest.approx(both[1] - both[0])
    assert sorted(p.name for p in (tmp_path / "plots").iterdir()) >= ["along-stages.png", "attention.png"]


def test_listing_a_study_loads_nothing_heavy():
    code = (
        "import sys\nfrom granvit.cli.app import main\n"
        "try: main(['study', 'nano', '--dry-run', '--out', '/nonexistent/study'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'matplotlib', 'accelerate'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "84 jobs, 0 done" in done.stdout and "other-order.seed2" in done.stdout
    assert "stage1 as stage1.seed0" in done.stdout


def test_a_folder_is_held_while_a_job_runs(parts, tmp_path, monkeypatch):
    """What is held is the job's own folder, so that jobs of one study run beside each other."""
    study = tiny_study(parts, 1)
    first, other = jobs(study)[0], jobs(study)[1]
    held = []
    monkeypatch.setattr("granvit.study.work._resolved", lambda job, sources: held.append(locked_now(first)) or 1 / 0)

    def locked_now(job):
        return (job_folder(tmp_path, job).parent / f".seed{job.seed}.lock").exists()

    with pytest.raises(ZeroDivisionError):
        do_job(study, first, tmp_path, open_images(study, tmp_path, ()), "cpu", keep=False)
    assert held == [True] and not locked_now(first) and not locked_now(other)
    with locked(job_folder(tmp_path, first)):
        pass
