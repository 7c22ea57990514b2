"""Which settings decide what a run computes, and that runs of the first version are still read."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.tiny_recipe import SOURCES, save_parts, tiny_recipe
from safetensors.torch import load_file

from granvit.cli.app import parse
from granvit.cli.recipes import RECIPES
from granvit.errors import CheckpointError, GranvitError
from granvit.train import identity
from granvit.train.checkpoint import STATE, latest
from granvit.train.config import CachingLoop, CroppedSample, LoopConfig
from granvit.train.recipes.saved import read_recipe, read_run, read_stage
from granvit.train.run import run_recipe
from granvit.train.stages.config import AdaptConfig, PretrainConfig

BEFORE = json.loads((Path(__file__).parent / "written_before.json").read_text())


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return save_parts(tmp_path_factory.mktemp("parts"))


# --- what decides ----------------------------------------------------------------------------------------------------


def test_what_changes_a_number_decides_and_what_changes_none_does_not():
    stage = PretrainConfig(CroppedSample(crops=2), LoopConfig(optimizer_groups={"head": 2.0}), alpha=0.8, name="first")
    found = identity.decisive(stage)
    assert found["alpha"] == 0.8 and found["sample.crops"] == 2 and found["loop.optimizer_groups"] == {"head": 2.0}
    assert found["loop.betas"] == [0.9, 0.999], "as JSON has it"
    free = {"log_every", "save_every", "save_keep", "trackers", "timing", "first_batch", "workers", "parallel"}
    free |= {"gradient_checkpointing", "compile", "batch_size", "accumulate"}
    names = {name.removeprefix("loop.") for name in found if name.startswith("loop.")}
    assert names == {name for name in vars(LoopConfig()) if name not in free}
    assert not {"name", "epochs", "images_per_step"} & found.keys()
    cached = identity.decisive(AdaptConfig(CroppedSample(), CachingLoop(feature_cache="there")))
    assert not [name for name in cached if "cache" in name]


def test_of_a_step_only_the_number_of_images_decides():
    loop = LoopConfig(batch_size=4, accumulate=2)
    one, two = identity.cut_of(loop, 3), identity.cut_of(replace(loop, batch_size=8, accumulate=1), 3)
    assert identity.images_in_a_step(one) == 24 and identity.difference(one, two) is None
    reported = identity.difference(one, identity.cut_of(loop, 2))
    assert reported is not None and reported.startswith(
        "a step was of 24 images there (4 batch_size x 2 accumulate x 3 proc"
    )
    assert identity.difference({"lr": 1}, {"lr": 2, "new": 3}) == "lr was 1 there and is 2 in this run"
    assert identity.difference({"lr": 1, "gone": 2}, {"lr": 1}) == "gone was 2 there and is None in this run"


def test_finished_stages_are_held_to_their_own_settings_alone():
    recipe = RECIPES["nano"]().resolved(100, 2)
    other = replace(
        recipe, name="other", text_tile=7, stages=[recipe.stages[0], replace(recipe.stages[1], smoothing=9)]
    )
    one, two = (identity.of_stages(r, ["stage1"], 2) for r in (recipe, other))
    assert one == two and one["encoder"] == "nano" and one["stage1.images in a step"] == 32
    assert identity.difference(one, identity.of_stages(replace(recipe, seed=1), ["stage1"], 2)) is not None


# --- what the first version wrote ------------------------------------------------------------------------------------


def test_a_recipe_of_the_first_version_is_read(tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps(BEFORE["recipe"]))
    recipe, processes = read_run(tmp_path / "recipe.json")
    now = RECIPES["nano"]().resolved(12_000, 2)
    for stage in now.stages:  # of the demo, which halves them
        stage.loop.batch_size, stage.loop.precision = 8, "bf16"
    assert (recipe, processes) == (now, 2)


def test_its_warm_ups_are_read_too(tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps(BEFORE["recipe_of_warmups"]))
    recipe, _ = read_run(tmp_path / "recipe.json")
    now = RECIPES["nano-own"]().resolved(500, 2)
    for stage in now.stages:
        stage.loop.precision = "fp32"
    assert recipe == now
    for kind, facts in BEFORE["stages"].items():
        assert read_stage(facts, kind) == next(stage for stage in now.stages if stage.kind == kind)


def test_what_its_checkpoints_kept_is_compared_by_name():
    recipe, kept = RECIPES["nano"](), identity.flattened(BEFORE["checkpoint"])
    loop = replace(recipe.stages[0].loop, batch_size=8, precision="bf16")
    now = {
        **identity.decisive(loop),
        **identity.cut_of(loop, 2),
        **{k: v for k, v in identity.decisive(recipe.stages[0]).items() if not k.startswith("loop.")},
        **identity.decisive(recipe.settings, "settings."),
        "stage": "stage1",
    }
    assert identity.difference(kept, now) is None
    for name, value in (("alpha", 0.5), ("sample.crops", 3), ("settings.fit", "squash"), ("lr", 1.0)):
        assert identity.difference(kept, {**now, name: value}) == (
            f"{name} was {kept[name]!r} there and is {value!r} in this run"
        )


def as_the_first_version_wrote_it(recipe, facts):
    """What a checkpoint kept of its run: a stage's settings with those of its samples, and the recipe's name."""
    loop = {k: v for k, v in facts.items() if "." not in k and k not in ("smoothing", "distill_weight", "alpha")}
    sample = {k.removeprefix("sample."): v for k, v in facts.items() if k.startswith("sample.")}
    of_all = {"kind": "stage1", "noise": 0.3, "blur": 0.0, "smear": 0.0, "train_encoder": False, "name": ""}
    own = {k: facts[k] for k in ("smoothing", "distill_weight", "alpha")}
    settings = {k.removeprefix("settings."): v for k, v in facts.items() if k.startswith("settings.")}
    sample |= {**of_all, **own, "symbolic": False, "word_map": False}
    return {**loop, "recipe": recipe.name, "sample": sample, "settings": settings}


def test_a_run_of_the_first_version_goes_on_to_the_same_end(parts, tmp_path, monkeypatch):
    recipe = tiny_recipe(parts)
    run_recipe(recipe, tmp_path / "whole", SOURCES, device="cpu")
    whole = load_file(tmp_path / "whole" / "checkpoint" / "model.safetensors")
    run = shutil.copytree(tmp_path / "whole", tmp_path / "run")
    for name in ("checkpoint", "stage2", "stage1/model"):
        shutil.rmtree(run / name)
    shutil.rmtree(run / "stage1" / "checkpoints" / "step_00000002")
    path = latest(run / "stage1") / STATE
    state = json.loads(path.read_text())
    state["recipe"] = as_the_first_version_wrote_it(recipe, state["recipe"])
    path.write_text(json.dumps(state))
    other = tiny_recipe(parts)
    other.stages[0].alpha = 0.5
    with pytest.raises(CheckpointError, match="alpha was 0.9 there and is 0.5"):
        run_recipe(other, run, SOURCES, device="cpu")
    model = run_recipe(recipe, run, SOURCES, device="cpu")
    ours = load_file(run / "checkpoint" / "model.safetensors")
    assert model is not None and all(torch.equal(ours[name], whole[name]) for name in whole)


# --- a recipe that a run saved is given back -------------------------------------------------------------------------


def test_a_saved_recipe_trains_the_same_model_again(parts, tmp_path):
    run_recipe(tiny_recipe(parts), tmp_path / "one", SOURCES, device="cpu")
    recipe = parse(["train", "--config", str(tmp_path / "one" / "recipe.json")]).recipe
    run_recipe(recipe, tmp_path / "two", SOURCES, device="cpu")
    one, two = (load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    facts = [json.loads((tmp_path / name / "recipe.json").read_text()) for name in ("one", "two")]
    for stage in (*facts[0]["stages"], *facts[1]["stages"]):
        stage.pop("images_per_step")  # named by the second, whose steps follow from it
    assert facts[0] == facts[1]


def test_given_back_on_another_number_of_processes_a_step_is_of_as_many_images(tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps(BEFORE["recipe"]))
    stages = read_recipe(tmp_path / "recipe.json").resolved(12_000, 1).stages
    assert [(stage.loop.batch_size, stage.loop.accumulate) for stage in stages] == [(8, 2), (8, 2)]


def test_its_settings_can_be_overridden(tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps(BEFORE["recipe"]))
    config = ["--config", str(tmp_path / "recipe.json")]
    command = parse(["train", *config, "--stages.0.loop.steps", "7", "--out", "there"])
    assert command.recipe.stages[0].loop.steps == 7 and command.recipe.stages[1].loop.steps == 320
    assert command.out == Path("there") and isinstance(command.recipe.stages[0], PretrainConfig)
    assert parse(["assemble", *config]).recipe.encoder == "nano"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda facts: facts.pop("stages"), "stages is missing"),
        (lambda facts: facts.pop("language"), "recipe.json: language is missing"),
        (lambda facts: facts.update(colour=1), "recipe.json: colour: there is no such setting"),
        (lambda facts: facts.update(processes="two"), "processes is 'two', expected a positive number"),
        (lambda facts: facts.update(seed=True), "seed is True, expected int"),
        (lambda facts: facts["stages"][0].update(kind="stage9"), "stages.0.kind: expected one of stage1, contrast"),
        (lambda facts: facts["stages"].append(7), "stages.2.kind: expected one of"),
        (lambda facts: facts["stages"][1]["loop"].update(steps="many"), "stages.1.loop.steps is 'many', expected int"),
        (lambda facts: facts["stages"][1]["loop"].update(lr=None), "stages.1.loop.lr is None, expected float"),
        (
            lambda facts: facts["stages"][1]["loop"].update(betas=[0.9]),
            r"stages.1.loop.betas is \[0.9\], expected tuple",
        ),
        (
            lambda facts: facts["stages"][0]["sample"].update(questions={"who": 1}),
            "questions is 'who', expected 'global",
        ),
        (
            lambda facts: facts["stages"][0]["sample"].update(window_kind="cat"),
            "window_kind is 'cat', expected 'object'",
        ),
        (lambda facts: facts["stages"][0].update(loop=3), "stages.0.loop is 3, expected LoopConfig"),
    ],
)
def test_what_was_edited_into_it_is_named(tmp_path, change, said):
    facts = json.loads(json.dumps(BEFORE["recipe"]))
    change(facts)
    (tmp_path / "recipe.json").write_text(json.dumps(facts))
    with pytest.raises(GranvitError, match=said):
        read_recipe(tmp_path / "recipe.json")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_read_back_as_it_was(tmp_path, name):
    recipe = RECIPES[name]().resolved(10_000, 4)
    recipe.save(tmp_path / "recipe.json", 4)
    assert read_run(tmp_path / "recipe.json") == (recipe, 4)
