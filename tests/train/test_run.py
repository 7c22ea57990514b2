import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.utils import LoggerType
from helpers.tiny_recipe import SOURCES, save_parts, tiny_recipe
from safetensors.torch import load_file

from granvit.corpus.store import Corpus
from granvit.corpus.synthetic.synthesize import LazySynthetic, synthesize
from granvit.errors import CheckpointError, GranvitError
from granvit.model.region_model import RegionModel, stock_weights
from granvit.nano.config import LanguageWarmupConfig
from granvit.train import run as running
from granvit.train.build import build_model
from granvit.train.checkpoint import latest
from granvit.train.prepare import Prepare, SampleConfig
from granvit.train.run import run_recipe
from granvit.train.shapes import planned_model
from granvit.train.stages.adapt import Adapt
from granvit.train.stages.pretrain import Pretrain


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return save_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def done(parts, tmp_path_factory):
    """A finished run, and what `on_stage` was called with: (name, the model's weights, result)."""
    folder, reported = tmp_path_factory.mktemp("done") / "run", []

    def on_stage(name, model, result):
        reported.append((name, weights_of(model), result))

    run_recipe(tiny_recipe(parts), folder, SOURCES, device="cpu", on_stage=on_stage)
    return folder, reported


def weights_of(model: RegionModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in stock_weights(model.llava).items()}


def changed(before, after) -> set[str]:
    """The parts of the model whose weights differ in any bit."""
    assert before.keys() == after.keys()
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


# --- a run from start to end -----------------------------------------------------------------------------------------


def test_the_folders_are_those_documented(done):
    folder, _ = done
    assert {p.name for p in folder.iterdir()} == {"recipe.json", "data.json", "stage1", "stage2", "checkpoint"}
    for stage in ("stage1", "stage2"):
        there = {p.name for p in (folder / stage).iterdir()}
        assert {"history.jsonl", "tensorboard", "checkpoints", "model"} <= there
        rows = [json.loads(line) for line in (folder / stage / "history.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [1, 2] and all(math.isfinite(row["loss"]) for row in rows)
    assert not list(folder.rglob("*.partial"))
    assert changed(stored(folder / "stage2" / "model"), stored(folder / "checkpoint")) == set()
    RegionModel.load(folder / "checkpoint")


def test_recipe_json_is_the_resolved_recipe(done, parts):
    facts = json.loads((done[0] / "recipe.json").read_text())
    assert facts.pop("processes") == 1
    assert facts.pop("init") is None, "it began with parts"
    assert facts == json.loads(json.dumps(tiny_recipe(parts).facts()))
    assert facts["stages"][0]["loop"]["steps"] == 2 and facts["settings"]["codec"] == "loc:16"


def test_on_stage_is_called_at_the_start_and_after_each_stage_in_order(done):
    folder, reported = done
    assert [name for name, _, _ in reported] == ["before", "stage1", "stage2"]
    assert reported[0][2] is None
    for name, weights, result in reported[1:]:
        assert changed(weights, stored(folder / name / "model")) == set()
        assert [step for step, _ in result.history["loss"]] == [1, 2]
    assert set(reported[1][2].history) >= {"caption", "distill"}


def test_stage_1_leaves_the_language_model_and_stage_2_the_tower_as_they_were(done):
    _, reported = done
    before, stage1, stage2 = (weights for _, weights, _ in reported)
    assert changed(before, stage1) == {"vision_tower", "multi_modal_projector"}
    assert changed(stage1, stage2) == {"language_model", "multi_modal_projector"}


def test_the_parts_come_from_the_folders_that_the_recipe_names(done, parts):
    before = done[1][0][1]
    encoder, language = stored(parts / "encoder"), stored(parts / "language")
    name = "encoder.layers.0.mlp.fc1.weight"
    there = next(value for key, value in encoder.items() if key.endswith(name))
    torch.testing.assert_close(before[f"vision_tower.vision_model.{name}"], there, rtol=0, atol=0)
    name = "layers.1.mlp.up_proj.weight"
    torch.testing.assert_close(before[f"language_model.model.{name}"], language[f"model.{name}"], rtol=0, atol=0)


def test_a_runs_folder_is_its_encoder_and_no_language_model(done, parts):
    """Named as a part: a run is meant by its checkpoint, as with every other command."""
    folder, reported = done
    model = build_model(replace(tiny_recipe(parts), encoder=str(folder)))
    trained = changed(stored(folder / "checkpoint"), weights_of(model))
    assert trained and "vision_tower" not in trained
    assert planned_model(replace(tiny_recipe(parts), encoder=str(folder))).canvas == model.canvas
    for wrong in (folder, folder / "checkpoint"):
        for made in (build_model, planned_model):
            with pytest.raises(GranvitError) as error:
                made(replace(tiny_recipe(parts), language=str(wrong)))
            assert str(error.value).startswith(f"{wrong}: a whole granvit model, and a language model alone is wanted")


@pytest.mark.parametrize("part", ["encoder", "language"])
def test_a_run_without_a_checkpoint_is_told_as_one(parts, tmp_path, part):
    tiny_recipe(parts).save(tmp_path / "recipe.json", 1)
    with pytest.raises(GranvitError, match="a run that has not finished, so there is no .*/checkpoint yet"):
        build_model(replace(tiny_recipe(parts), **{part: str(tmp_path)}))


def test_a_run_repeats_itself(done, parts, tmp_path):
    model = run_recipe(tiny_recipe(parts), tmp_path, SOURCES, device="cpu")
    assert changed(weights_of(model), stored(done[0] / "checkpoint")) == set()


# --- going on --------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_not_trained_again(done, parts, tmp_path, monkeypatch):
    folder = shutil.copytree(done[0], tmp_path / "run")
    monkeypatch.setattr(running, "train", None)
    reported = []
    model = run_recipe(
        tiny_recipe(parts),
        folder,
        SOURCES,
        device="cpu",
        on_stage=lambda name, model, result: reported.append((name, result)),
    )
    assert reported == [("before", None), ("stage1", None), ("stage2", None)]
    assert changed(weights_of(model), stored(done[0] / "checkpoint")) == set()
    assert changed(stored(folder / "checkpoint"), stored(done[0] / "checkpoint")) == set()


def test_a_run_interrupted_between_stages_goes_on_to_the_same_end(done, parts, tmp_path, monkeypatch):
    def stop(name, model, result):
        if name == "stage1":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_recipe(tiny_recipe(parts), tmp_path, SOURCES, device="cpu", on_stage=stop)
    assert not (tmp_path / "stage2").exists() and not (tmp_path / "checkpoint").exists()
    monkeypatch.setattr(Pretrain, "forward", None)
    model = run_recipe(tiny_recipe(parts), tmp_path, SOURCES, device="cpu")
    assert changed(weights_of(model), stored(done[0] / "checkpoint")) == set()


def test_a_second_warm_up_goes_on_from_the_first_ones_places_though_interrupted_between_them(parts, tmp_path):
    recipe = tiny_recipe(parts)
    sample = SampleConfig({"bbox2caption": 1.0})
    recipe.stages = [LanguageWarmupConfig(sample, recipe.stages[0].loop, name=name) for name in ("clear", "blurred")]

    def stop(name, model, result):
        if name == "clear":
            raise KeyboardInterrupt

    run_recipe(recipe, tmp_path / "whole", SOURCES, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, tmp_path / "stopped", SOURCES, device="cpu", on_stage=stop)
    run_recipe(recipe, tmp_path / "stopped", SOURCES, device="cpu")
    for name in ("model.safetensors", "places.safetensors"):
        whole, stopped = (load_file(tmp_path / run / "blurred" / "alone" / name) for run in ("whole", "stopped"))
        assert all(torch.equal(whole[key], stopped[key]) for key in whole)


def test_after_a_warm_up_the_projector_is_fitted_on_the_corpus_as_it_is_shown(parts, tmp_path, monkeypatch):
    fitted = []
    monkeypatch.setattr("granvit.nano.language_warmup.start_projector", lambda *given: fitted.append(given[3]))
    recipe = tiny_recipe(parts)
    for name, sample in (
        ("whole", SampleConfig({"bbox2caption": 1.0})),
        ("parts", SampleConfig({"bbox2caption": 1.0}, windows=1.0, window_side=(0.5, 0.5))),
    ):
        recipe.stages = [LanguageWarmupConfig(sample, recipe.stages[0].loop, name=name)]
        run_recipe(recipe, tmp_path / name, SOURCES, device="cpu")
    run_recipe(recipe, tmp_path / "undrawn", [(LazySynthetic(8, 0, 64, 0.5), 1.0)], device="cpu")
    whole, windows, undrawn = fitted
    prepare, rng = Prepare(build_model(recipe), SampleConfig({"bbox2caption": 1.0})), np.random.default_rng(0)
    assert np.array_equal(whole.numpy(), np.stack([prepare(record, rng).pixels for record in SOURCES[0][0]]))
    assert 0 < len(windows) <= 8 and windows.shape[1:] == whole.shape[1:] and not torch.equal(windows[0], whole[0])
    assert undrawn is None


@pytest.mark.parametrize("stage", [Pretrain, Adapt])
def test_a_run_interrupted_within_a_stage_goes_on_to_the_same_end(done, parts, tmp_path, monkeypatch, stage):
    forward, calls = stage.forward, []

    def second_fails(self, batch):
        calls.append(batch)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return forward(self, batch)

    monkeypatch.setattr(stage, "forward", second_fails)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(tiny_recipe(parts), tmp_path, SOURCES, device="cpu")
    assert latest(tmp_path / stage.name).name == "step_00000001"
    assert not (tmp_path / stage.name / "model").exists()
    model = run_recipe(tiny_recipe(parts), tmp_path, SOURCES, device="cpu")
    assert len(calls) == 3
    assert changed(weights_of(model), stored(done[0] / "checkpoint")) == set()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda recipe: replace(recipe, seed=5), "seed was 0 there and is 5"),
        (
            lambda recipe: replace(recipe, settings=replace(recipe.settings, fit="squash")),
            "settings.fit was .letterbox. there and is .squash",
        ),
        (lambda recipe: setattr(recipe.stages[0].loop, "steps", 9), "stage1.loop.steps was 2 there and is 9"),
        (lambda recipe: setattr(recipe.stages[1].sample, "max_regions", 9), "stage2.sample.max_regions was 16"),
        (lambda recipe: setattr(recipe.stages[0], "distill_weight", 0.0), "stage1.distill_weight was 1.0"),
    ],
)
def test_finished_stages_of_another_recipe_are_refused(done, parts, change, said):
    recipe = tiny_recipe(parts)
    recipe = change(recipe) or recipe
    before = (done[0] / "recipe.json").read_bytes()
    with pytest.raises(running.CheckpointError, match=f"recipe.json: {said}"):
        run_recipe(recipe, done[0], SOURCES, device="cpu")
    assert (done[0] / "recipe.json").read_bytes() == before


def test_finished_stages_of_other_corpora_are_refused(parts, tmp_path):
    corpora = [synthesize(tmp_path / str(seed), 4, seed, 64, workers=1, progress=False) for seed in (1, 2)]
    run, recipe = tmp_path / "run", tiny_recipe(parts, steps=1)
    run_recipe(recipe, run, [(corpora[0], 1.0)], device="cpu")
    for sources in ([(corpora[1], 1.0)], [(corpora[0], 2.0)], [(corpora[0], 1.0), (corpora[1], 1.0)]):
        with pytest.raises(CheckpointError, match="data.json: stage1, stage2 was trained on other corpora"):
            run_recipe(recipe, run, sources, device="cpu")
    moved = Corpus((tmp_path / "1").rename(tmp_path / "elsewhere"))
    run_recipe(recipe, run, [(moved, 1.0)], device="cpu")


def test_settings_that_change_no_number_may_change_when_a_run_goes_on(done, parts, tmp_path):
    recipe = tiny_recipe(parts)
    recipe.stages[0].loop.log_every, recipe.stages[1].loop.save_keep = 7, 1
    run_recipe(recipe, shutil.copytree(done[0], tmp_path / "run"), SOURCES, device="cpu")


def test_without_resume_a_folder_with_a_run_is_refused(done, parts):
    before = stored(done[0] / "checkpoint")
    with pytest.raises(GranvitError, match="holds a run"):
        run_recipe(tiny_recipe(parts), done[0], SOURCES, resume=False, device="cpu")
    assert changed(stored(done[0] / "checkpoint"), before) == set()


# --- where it starts -------------------------------------------------------------------------------------------------


def test_init_starts_from_a_checkpoint(done, parts, tmp_path):
    recipe = tiny_recipe(parts, steps=1)
    recipe.stages = recipe.stages[1:]
    reported = []
    run_recipe(
        recipe,
        tmp_path,
        SOURCES,
        init=done[0] / "checkpoint",
        device="cpu",
        on_stage=lambda name, model, result: reported.append((name, weights_of(model))),
    )
    assert [name for name, _ in reported] == ["before", "stage2"]
    assert changed(reported[0][1], stored(done[0] / "checkpoint")) == set()
    assert {p.name for p in tmp_path.iterdir()} == {"recipe.json", "data.json", "stage2", "checkpoint"}


def test_another_model_to_go_on_from_is_another_run(done, parts, tmp_path):
    """Finished or under way: what it began with is told by its weights, not by its place."""
    recipe = replace(tiny_recipe(parts, steps=1), stages=tiny_recipe(parts, steps=1).stages[1:])
    start = shutil.copytree(done[0] / "checkpoint", tmp_path / "start")
    run_recipe(recipe, tmp_path / "run", SOURCES, init=start, device="cpu")
    moved = shutil.copytree(start, tmp_path / "moved")
    run_recipe(recipe, tmp_path / "run", SOURCES, init=moved, device="cpu")
    facts = (tmp_path / "run/recipe.json").read_bytes()
    for folder in (done[0] / "stage1/model", None):
        with pytest.raises(CheckpointError, match="stage2 went on from another model.*choose another --out"):
            run_recipe(recipe, tmp_path / "run", SOURCES, init=folder, device="cpu")
    shutil.rmtree(tmp_path / "run/stage2/model")  # as if it had been stopped in its last step
    with pytest.raises(CheckpointError, match="stage2 went on from another model"):
        run_recipe(recipe, tmp_path / "run", SOURCES, init=done[0] / "stage1/model", device="cpu")
    assert (tmp_path / "run/recipe.json").read_bytes() == facts


def test_a_stage_under_way_is_not_gone_on_with_on_other_data(parts, tmp_path):
    """As many pictures, and other texts: nothing but the corpus's checksum tells them apart."""
    recipe = tiny_recipe(parts, steps=1)
    corpora = [synthesize(tmp_path / f"c{seed}", 8, seed, 64, 0.0, "train") for seed in (1, 2)]
    run_recipe(recipe, tmp_path / "run", [(corpora[0], 1.0)], device="cpu")
    shutil.rmtree(tmp_path / "run/stage2/model")
    shutil.rmtree(tmp_path / "run/stage1/model")
    kept = {name: (tmp_path / "run" / name).read_bytes() for name in ("recipe.json", "data.json")}
    with pytest.raises(CheckpointError, match="data.json: stage1, stage2 was trained on other corpora"):
        run_recipe(recipe, tmp_path / "run", [(corpora[1], 1.0)], device="cpu")
    with pytest.raises(CheckpointError, match="stage1.loop.lr was"):
        recipe.stages[0].loop.lr *= 2
        run_recipe(recipe, tmp_path / "run", [(corpora[0], 1.0)], device="cpu")
    assert kept == {name: (tmp_path / "run" / name).read_bytes() for name in kept}


@pytest.mark.parametrize("name", ["checkpoint", "base", "../esc", "a/b", "."])
def test_a_stage_is_not_called_as_what_a_run_keeps(parts, name):
    stages = tiny_recipe(parts).stages
    stages[0] = replace(stages[0], name=name)
    with pytest.raises(GranvitError, match="no stage can be called"):
        replace(tiny_recipe(parts), stages=stages)


def test_init_from_what_is_no_checkpoint_is_named(parts, tmp_path):
    for folder in (tmp_path / "nowhere", parts / "language"):
        with pytest.raises(CheckpointError, match=str(folder)):
            run_recipe(tiny_recipe(parts), tmp_path / "run", SOURCES, init=folder, device="cpu")
    assert not (tmp_path / "run").exists()


def test_what_cannot_begin_leaves_no_folder(parts, tmp_path):
    """Neither a part that is not there, nor a later stage's setting that the model has no room for."""
    unfit = tiny_recipe(parts)
    unfit.stages[1].sample.max_tokens = 2
    for recipe, said in (
        (replace(tiny_recipe(parts), encoder="/no/such/place"), "no such folder|no encoder"),
        (unfit, "max_tokens"),
    ):
        with pytest.raises(GranvitError, match=said):
            run_recipe(recipe, tmp_path / "run", SOURCES, device="cpu")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", ["", "[]", '{"stages": [{}]}', "[" * 100_000])
@pytest.mark.parametrize("name", ["recipe.json", "data.json"])
def test_what_was_edited_beside_finished_stages_is_named(done, parts, tmp_path, name, content):
    folder = shutil.copytree(done[0], tmp_path / "run")
    (folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=rf"{name}.*choose another --out"):
        run_recipe(tiny_recipe(parts), folder, SOURCES, device="cpu")


def test_a_damaged_finished_stage_tells_the_way_on(done, parts, tmp_path):
    folder = shutil.copytree(done[0], tmp_path / "run")
    (folder / "stage1" / "model" / "config.json").write_text("")
    with pytest.raises(CheckpointError, match=f"config.json.*; remove {folder}/stage1/model to finish this stage"):
        run_recipe(tiny_recipe(parts), folder, SOURCES, device="cpu")
    shutil.rmtree(folder / "stage1" / "model")
    run_recipe(tiny_recipe(parts), folder, SOURCES, device="cpu")


def test_init_from_a_foreign_checkpoint_is_named(done, parts, tmp_path):
    folder = shutil.copytree(done[0] / "checkpoint", tmp_path / "foreign")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "blip"}))
    with pytest.raises(CheckpointError, match="config.json: model_type is 'blip'"):
        run_recipe(tiny_recipe(parts), tmp_path / "run", SOURCES, init=folder, device="cpu")


# --- trackers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tracker", "said"),
    [
        ("tensorbord", "stage2: loop.trackers 'tensorbord': known are tensorboard, wandb"),
        ("wandb", 'stage2: loop.trackers wandb: the package is not installed: pip install "granvit[wandb]"'),
    ],
)
def test_a_tracker_that_would_get_no_curves_is_refused_before_anything_is_trained(
    parts, tmp_path, monkeypatch, tracker, said
):
    """Accelerate leaves out, without a word, those that are not installed: here all but TensorBoard."""
    there = [LoggerType.TENSORBOARD]
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: there)
    recipe = tiny_recipe(parts)
    recipe.stages[1].loop.trackers = ("tensorboard", tracker)
    with pytest.raises(GranvitError) as error:
        run_recipe(recipe, tmp_path / "run", SOURCES, device="cpu")
    assert str(error.value) == said
    assert not (tmp_path / "run" / "stage1").exists()
    there += [LoggerType.WANDB]
    if tracker == "wandb":
        recipe.stages[1].check()
