"""Scores on held-out pictures while a recipe trains: nothing of training changes by them, interrupted or not."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_recipe import SOURCES, save_parts, shorten_answers, tiny_recipe
from safetensors.torch import load_file

from granvit.cli.train import HeldOut, train_into
from granvit.corpus.store import CorpusWriter
from granvit.corpus.synthetic.synthesize import make
from granvit.errors import CheckpointError, GranvitError
from granvit.evaluate import held_out
from granvit.evaluate.compare import compare_places
from granvit.evaluate.held_out import HeldOutScores, held_out_share, read_log
from granvit.evaluate.region_tasks import Report
from granvit.evaluate.run_report import write_run_report
from granvit.export.facts import read_source
from granvit.model.region_model import RegionModel
from granvit.nano.recipes import nano_own
from granvit.regions import Region, RegionImage
from granvit.train.loop import TrainResult
from granvit.train.run import run_recipe
from granvit.train.stages.pretrain import Pretrain

HELD_OUT = [make(i, seed=2, size=64, documents=0.5) for i in range(4)]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return save_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(autouse=True)
def short(monkeypatch):
    shorten_answers(monkeypatch)


def run(parts, out: Path, scored: bool = True, trackers: tuple[str, ...] = (), **settings) -> HeldOutScores | None:
    recipe = tiny_recipe(parts)
    for stage in recipe.stages:
        stage.loop.trackers = trackers
    scores = HeldOutScores(out, recipe.stages, HELD_OUT, **{"every": 1, **settings}) if scored else None
    on_stage = None if scores is None else scores.on_stage
    run_recipe(recipe, out, SOURCES, device="cpu", on_stage=on_stage, validation=scores)
    return scores


def untimed(out: Path) -> list:
    return [replace(one, seconds=0.0) for one in read_log(out)]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoint" / "model.safetensors")


@pytest.fixture(scope="module")
def whole(parts, tmp_path_factory):
    """A run that was scored before it, after each of its steps, with TensorBoard; and one that was not scored."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        shorten_answers(patch)
        scores = run(parts, folder / "scored", trackers=("tensorboard",))
        run(parts, folder / "plain", scored=False)
    return folder, scores


def test_it_is_asked_before_the_run_at_every_turn_and_after_each_stage(whole):
    folder, scores = whole
    turns = [("before", 0, True), ("stage1", 1, False), ("stage1", 2, True), ("stage2", 1, False), ("stage2", 2, True)]
    assert [(one.stage, one.step, one.end) for one in read_log(folder / "scored")] == turns
    assert list(scores.metrics) == ["before", "baseline", "stage1", "stage2"]
    assert {"describe", "locate", "caption"} <= scores.metrics["stage2"].keys()
    assert all(one.seconds > 0 and one.shown for one in scores.scored)


def test_training_does_not_change_by_it(whole):
    folder, _ = whole
    for stage in ("stage1", "stage2"):
        histories = [(folder / name / stage / "history.jsonl").read_bytes() for name in ("scored", "plain")]
        assert histories[0] == histories[1]
    scored, plain = weights(folder / "scored"), weights(folder / "plain")
    assert all(torch.equal(scored[name], plain[name]) for name in plain)


def test_the_random_generators_are_those_of_before(parts, tmp_path, monkeypatch, whole):
    """Also where answering draws from them, as a model with dropout would in train mode."""
    ask = held_out.evaluate

    def drawing(*given, **settings):
        torch.rand(9)
        np.random.rand(9)
        return ask(*given, **settings)

    monkeypatch.setattr(held_out, "evaluate", drawing)
    run(parts, tmp_path)
    scored, plain = weights(tmp_path), weights(whole[0] / "plain")
    assert all(torch.equal(scored[name], plain[name]) for name in plain)


def test_an_interrupted_run_ends_up_with_the_same_scores(parts, tmp_path, monkeypatch, whole):
    forward, calls = Pretrain.forward, []

    def second_fails(self, batch):
        calls.append(batch)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return forward(self, batch)

    monkeypatch.setattr(Pretrain, "forward", second_fails)
    with pytest.raises(KeyboardInterrupt):
        run(parts, tmp_path)
    assert [(one.stage, one.step) for one in read_log(tmp_path)] == [("before", 0), ("stage1", 1)]
    run(parts, tmp_path)
    assert untimed(tmp_path) == untimed(whole[0] / "scored")
    ours, theirs = weights(tmp_path), weights(whole[0] / "plain")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("left", [1, 2])
def test_scores_that_a_kill_lost_or_left_too_early_are_made_again(parts, tmp_path, monkeypatch, whole, left):
    """At the checkpoint of step 1: its line is missing, or there is one of step 2 already."""
    ask, asked = held_out.evaluate, []

    def stops(*given, **settings):
        asked.append(given)
        if len(asked) == 3:  # before, after step 1, after step 2
            raise KeyboardInterrupt
        return ask(*given, **settings)

    monkeypatch.setattr(held_out, "evaluate", stops)
    with pytest.raises(KeyboardInterrupt):
        run(parts, tmp_path)
    lines = (whole[0] / "scored" / "scores.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "scores.jsonl").write_text("".join(lines[: 1 if left == 1 else 3]))
    run(parts, tmp_path)
    assert untimed(tmp_path) == untimed(whole[0] / "scored")


def test_a_finished_run_is_not_asked_again_unless_for_other_pictures(parts, tmp_path, monkeypatch):
    run(parts, tmp_path, every=0)
    first = read_log(tmp_path)
    monkeypatch.setattr(held_out, "evaluate", None)
    assert run(parts, tmp_path, every=0).scored == first
    monkeypatch.undo()
    again = run(parts, tmp_path, every=0, max_regions=1)
    assert len(again.scored) == 3 and again.scored != first and read_log(tmp_path)[:3] == first


def test_trackers_show_scores_and_pictures(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole[0] / "scored" / "stage2" / "tensorboard" / "granvit"))
    events.Reload()
    shown = {event.step: event.value for event in events.Scalars("held_out/describe/rouge_l")}
    logged = {o.step: o.scores["describe"]["rouge_l"] for o in read_log(whole[0] / "scored") if o.stage == "stage2"}
    assert shown == pytest.approx(logged, rel=1e-6) and len(shown) == 2
    assert [event.step for event in events.Images("held_out")] == [1, 2]


def fixed(values):
    """Stands in for `evaluate`: one describe score after the other."""
    left = iter(values)

    def ask(*_, **__):
        scores = {"describe": {"rouge_l": next(left), "count": 4.0}}
        return Report(scores, scores)

    return ask


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([0.0, 0.5, 0.3, 0.2, 0.9], {"stage1": (0.5, 1), "stage2": (0.9, 2)}),
        ([0.9, 0.1, 0.1, 0.1, 0.1], {"stage1": (0.1, 1)}),
    ],
)
def test_the_best_model_of_each_stage_is_kept(parts, tmp_path, monkeypatch, values, best):
    monkeypatch.setattr(held_out, "evaluate", fixed(values))
    scores = run(parts, tmp_path, keep_best="describe.rouge_l")
    for stage, (value, step) in best.items():
        folder = tmp_path / stage / "best"
        kept = json.loads((folder / "score.json").read_text())
        assert kept == {"score": "describe.rouge_l", "value": value, "step": step}
        RegionModel.load(folder)
        at_step = load_file(tmp_path / stage / "checkpoints" / f"step_{step:08d}" / "student.safetensors")
        inside = load_file(folder / "model.safetensors")
        assert torch.equal(inside["multi_modal_projector.linear_1.weight"],
                           at_step["model.multi_modal_projector.linear_1.weight"])  # fmt: skip
    assert len(scores.best()) == 2 and "describe.rouge_l" in scores.best()[0]


def test_a_score_without_a_value_keeps_no_model_and_training_goes_on(parts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(held_out, "evaluate", lambda *_, **__: Report({"describe": {"count": 4.0}}, {}))
    run(parts, tmp_path, keep_best="describe.rouge_l")
    assert not list(tmp_path.glob("*/best"))
    assert "describe.rouge_l has no value after step 1: no best model is kept by it" in capsys.readouterr().out


def test_a_model_that_cannot_answer_goes_on_training(parts, tmp_path, monkeypatch, whole, capsys):
    def fails(*_, **__):
        raise GranvitError("the logits are not finite")

    monkeypatch.setattr(held_out, "evaluate", fails)
    run(parts, tmp_path)
    assert read_log(tmp_path) == [] and not (tmp_path / "scores.jsonl").exists()
    assert "held-out pictures after step 1 of stage1: not scored: the logits are not finite" in capsys.readouterr().out
    ours, theirs = weights(tmp_path), weights(whole[0] / "plain")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rouge", "no score TASK.METRIC"),
        ("describe.acc50", "no score TASK.METRIC"),
        ("answer.rouge_l", "ask nothing of answer; of caption, describe"),
    ],
)
def test_a_best_that_cannot_be_told_is_refused(tmp_path, parts, name, said):
    with pytest.raises(GranvitError, match=said):
        HeldOutScores(tmp_path, tiny_recipe(parts).stages, HELD_OUT, keep_best=name)


def test_a_stage_that_is_scored_after_it_has_its_last_step(tmp_path, parts, whole):
    scores = HeldOutScores(tmp_path, tiny_recipe(parts).stages, HELD_OUT[:1])
    model = RegionModel.load(whole[0] / "scored" / "checkpoint")
    scores.on_stage("stage1", model, TrainResult({"loss": [(3, 1.0), (7, 0.5)], "lr": [(7, 0.1)]}, 1.0, 0.0, 1.0))
    assert [(one.stage, one.step, one.end) for one in read_log(tmp_path)] == [("stage1", 7, True)]


def test_what_a_run_noted_of_its_checkpoint_is_found_for_its_card(whole):
    folder = whole[0] / "scored"
    last = read_log(folder)[-1]
    found = read_source(folder).scores
    assert found.values == last.scores and found.baseline == last.baseline
    assert found.before == read_log(folder)[0].scores
    questions = int(sum(scores["count"] for scores in last.scores.values()))
    place = f"{questions:,} questions, asked after step {last.step} of {last.stage}, which is this checkpoint"
    assert place in found.told and last.end
    differences, notes = compare_places(folder, folder / "scores.jsonl")
    assert {d.difference for d in differences} == {0} and len(notes) == 1


def test_pictures_and_answers_of_the_same_names_are_other_questions(tmp_path, parts):
    def asked(record):
        return HeldOutScores(tmp_path, tiny_recipe(parts).stages, [record]).asked

    first = HELD_OUT[0]
    assert asked(first) == asked(replace(first))
    reworded = replace(first, regions=[replace(region, text="something else") for region in first.regions])
    moved = replace(first, regions=[replace(region, box=(1, 1, 30, 30)) for region in first.regions])
    others = {asked(first), asked(replace(first, image=HELD_OUT[1].image)), asked(reworded), asked(moved)}
    assert len(others) == 4


def test_pictures_that_say_nothing_or_cannot_be_opened(tmp_path, parts):
    bare = replace(HELD_OUT[0], regions=[], caption=None)
    with pytest.raises(GranvitError, match="nothing to ask about 1 held-out pictures"):
        HeldOutScores(tmp_path, tiny_recipe(parts).stages, [bare])
    damaged = replace(HELD_OUT[1], image=b"no picture")
    scores = HeldOutScores(tmp_path, tiny_recipe(parts).stages, [HELD_OUT[0], damaged])
    assert scores.held_out == HELD_OUT[:1] and scores.left_out == 1


def test_stages_after_which_nothing_is_answered_are_not_scored(tmp_path, parts):
    scores = HeldOutScores(tmp_path, nano_own().stages, HELD_OUT, every=1)
    scores.begin("words", 0)
    assert not scores.due(1, 1)
    scores.begin("stage1", 0)
    assert scores.due(1, 9)


@pytest.mark.parametrize("line", ["", "[]", "{}", '{"stage": 1}', "[" * 100_000, '{"shown": 3}'])
def test_a_log_that_was_edited_is_named(tmp_path, parts, whole, line):
    lines = (whole[0] / "scored" / "scores.jsonl").read_text().splitlines()
    (tmp_path / "scores.jsonl").write_text(f"{lines[0]}\n{line}\n")
    with pytest.raises(CheckpointError, match="scores.jsonl: line 2 is not what was written"):
        HeldOutScores(tmp_path, tiny_recipe(parts).stages, HELD_OUT)


def write(folder: Path, records) -> Path:
    with CorpusWriter(folder) as writer:
        for record in records:
            writer.write(record)
    return folder


def test_the_share_is_even_of_all_corpora_and_scans_come_in_tiles(tmp_path):
    photos = [replace(make(i, 3, 64, 0.0), id=f"p{i}", split="val" if i < 6 else "train") for i in range(9)]
    line = Region((10, 10, 60, 22), "TOTAL 5", "text")
    scan = make(0, 3, 160, 0.0)
    scans = [RegionImage(f"s{i}", scan.image, 160, 160, [line], split="val" if i < 4 else "train") for i in range(6)]
    one, two = write(tmp_path / "one", photos), write(tmp_path / "two", [*scans, *photos[:2]])
    assert [r.id for r in held_out_share([one], 100, 3)] == ["p0", "p2", "p4"]
    both = [r.id for r in held_out_share([one, two], None, 4)]
    assert both == ["1:p0", "1:p3", "2:p0", "2:s0"]
    tiles = held_out_share([two], 100, 4)
    assert [r.id.partition("@")[0] for r in tiles] == ["p0", "p1", "s0", "s2"]
    assert all(max(r.width, r.height) == 100 for r in tiles[2:])


# --- the report ------------------------------------------------------------------------------------------------------


def test_the_report_is_made_of_what_the_run_left(whole, parts):
    folder, scores = whole
    out, recipe = folder / "scored", tiny_recipe(parts)
    model = RegionModel.load(out / "checkpoint")
    facts, commands = {"Corpus": "drawn <here>"}, {"Ask": [f"granvit describe --model {out}"]}
    path = write_run_report(out, recipe, model, scores, title="A run", summary="", facts=facts, commands=commands)
    page = path.read_text()
    assert path == out / "report.html" and "drawn &lt;here&gt;" in page
    for heading in ("Scores on held-out", "Held-out pictures", "Training curves", "The first batch", "Time and speed"):
        assert f"<h2>{heading}" in page
    assert page.count("<summary>Stage") == 2  # a first batch each
    assert "held-out describe, ROUGE-L" in page and "stage1 2 steps, stage2 2 steps" in page
    assert "&#34;distill_weight&#34;: 1.0" in page, "the recipe with every setting"
    assert "After stage 1" in page and "images/s" in page and "GB at most" in page
    with torch.no_grad():
        model.llava.model.multi_modal_projector.linear_2.weight.mul_(100)
        model.llava.model.multi_modal_projector.linear_2.bias.mul_(100)
    louder = write_run_report(out, recipe, model, scores, title="", summary="", facts={}, commands={}).read_text()
    before, after = (float(re.findall(r"([0-9.]+) times as large as words", text)[0]) for text in (page, louder))
    assert after == pytest.approx(100 * before, rel=0.1)


def test_a_run_without_scores_has_a_report_too(whole, parts):
    out = whole[0] / "plain"
    model = RegionModel.load(out / "checkpoint")
    page = write_run_report(
        out, tiny_recipe(parts), model, None, title="", summary="", facts={}, commands={}
    ).read_text()
    assert "<h2>Training curves" in page and "held-out pictures" not in page.lower()


@pytest.mark.parametrize("asked", [0, 2])
def test_a_report_promises_answers_only_where_something_was_asked(parts, tmp_path, monkeypatch, asked):
    monkeypatch.chdir(tmp_path)
    held_out = HeldOut(eval_images=asked, eval_regions=1)
    train_into(tmp_path / "run", tiny_recipe(parts, 1), (), held_out, resume=True, device="cpu")
    page = (tmp_path / "run/report.html").read_text()
    assert ("about pictures it never trained on" in page) == bool(asked)
    assert ("What it answers was not asked: see Pictures below." in page) == (not asked)
    assert ("no held-out ones asked about (--eval-images 0)" in page) == (not asked)
