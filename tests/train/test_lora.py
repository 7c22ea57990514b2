"""Stages by LoRA: what trains, what a run keeps, that it goes on exactly, alone and on several ranks."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.ranks import run_ranks
from helpers.tiny_lora import RANK, lora_recipe, train_lora
from helpers.tiny_model import collate, make_model, make_samples, whole_mask
from helpers.tiny_recipe import SOURCES, save_parts, tiny_recipe
from PIL import Image
from safetensors.torch import load_file

from granvit.cli.app import main
from granvit.corpus.synthetic.synthesize import make, synthesize
from granvit.errors import CheckpointError, GranvitError
from granvit.evaluate.losses import held_out_losses
from granvit.export.facts import read_source
from granvit.model.region_model import RegionModel
from granvit.predict import GranViT
from granvit.train import checkpoint, identity
from granvit.train.config import ConversationSample, LoopConfig, Lora
from granvit.train.debug.replay import replay
from granvit.train.loop import NonFiniteLoss
from granvit.train.recipes.finetune import finetune
from granvit.train.recipes.saved import read_recipe
from granvit.train.run import run_recipe, run_stage
from granvit.train.shapes import planned_model
from granvit.train.stages.adapt import Adapt
from granvit.train.stages.config import AdaptConfig, FinetuneConfig

# Linear layers of a block of the tiny Qwen2: (out, in) of q, k, v, o, gate, up, down.
LAYERS = [(32, 32), (16, 32), (16, 32), (32, 32), (48, 32), (48, 32), (32, 48)]
PROJECTOR = 32 * 32 + 32 + 32 * 32 + 32


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start") / "model"
    make_model().save(folder)
    return folder


@pytest.fixture(scope="module")
def run(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora") / "run"
    train_lora(start, folder, 3)
    return folder


def adapter(run):
    return load_file(run / "checkpoint" / "adapter_model.safetensors")


def build(model, config=AdaptConfig, lora=None, **settings):
    stage = lora_recipe(lora=lora or Lora(RANK)).stages[0]
    if config is FinetuneConfig:
        stage = FinetuneConfig(ConversationSample(stage.sample.questions), LoopConfig(), lora=stage.lora, **settings)
    return stage.build(model).train()


# --- what trains -----------------------------------------------------------------------------------------------------


def test_adapters_and_projector_have_gradients_and_nothing_else():
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.llava.state_dict().items()}
    batch = collate(model, make_samples(model))
    plain = Adapt(make_model(), 1.0)(batch)["answer"].total
    stage = build(model)
    loss = stage(batch)["answer"].total
    torch.testing.assert_close(loss, plain.detach(), rtol=1e-6, atol=0)  # an adapter begins as nothing
    loss.backward()
    named = dict(stage.model.named_parameters())
    trained = {name for name, p in named.items() if p.grad is not None}
    assert trained == {name for name, p in named.items() if p.requires_grad}
    assert all(".lora_" in name or "multi_modal_projector" in name for name in trained)
    pairs = 2 * sum(RANK * (rows + columns) for rows, columns in LAYERS)
    assert sum(named[name].numel() for name in trained) == pairs + PROJECTOR
    assert len(trained) == 2 * 2 * len(LAYERS) + 4
    optimizer = torch.optim.SGD([named[name] for name in trained], lr=1.0)
    optimizer.step()
    for name, tensor in stage.model.state_dict().items():
        stock = name.replace(".base_layer.", ".")
        assert ".lora_" in name or "multi_modal_projector" in name or torch.equal(tensor, before[stock]), name


def test_the_encoder_trains_beside_adapters_where_it_is_to():
    stage = build(make_model(), FinetuneConfig, train_encoder=True)
    trained = {name for name, p in stage.model.named_parameters() if p.requires_grad}
    assert {name.split(".")[1] for name in trained} == {"vision_tower", "multi_modal_projector", "language_model"}
    assert not [name for name in trained if "language_model" in name and ".lora_" not in name]


def test_the_first_matrices_are_those_of_the_seed_whatever_was_drawn_before():
    torch.manual_seed(1)
    one = {n: t for n, t in build(make_model()).model.state_dict().items() if ".lora_" in n}
    torch.rand(7)
    state = torch.random.get_rng_state()
    two = build(make_model()).model.state_dict()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    build(make_model())
    torch.random.set_rng_state(state)
    assert any(tensor.abs().max() > 0 for name, tensor in one.items() if "lora_A" in name)
    assert all(tensor.abs().max() == 0 for name, tensor in one.items() if "lora_B" in name)


def test_targets_choose_the_layers():
    stage = build(make_model(), lora=Lora(2, alpha=1.0, targets=("v_proj", "down_proj")))
    layers = {name.split(".")[-4] for name, _ in stage.model.named_parameters() if ".lora_" in name}
    assert layers == {"v_proj", "down_proj"}
    assert stage.model.model.language_model.layers[0].mlp.down_proj.scaling == {"default": 0.5}


# --- what a run keeps ------------------------------------------------------------------------------------------------


def test_a_run_keeps_adapter_and_projector_and_names_its_base(run, start):
    kept = adapter(run)
    assert sum(t.numel() for t in kept.values()) == 2 * sum(RANK * (a + b) for a, b in LAYERS) + PROJECTOR
    assert {f.name for f in (run / "checkpoint").iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "base.json", "granvit.json")
    }
    newest = checkpoint.latest(run / "stage2")
    assert newest is not None
    student = load_file(newest / checkpoint.STUDENT)
    assert sum(t.numel() for t in student.values()) == sum(t.numel() for t in kept.values())
    config = json.loads((run / "checkpoint" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (RANK, 2.0 * RANK, "LORA")
    assert Path(config["base_model_name_or_path"]).resolve() == start.resolve()
    assert not (run / "base").exists()


def test_a_run_with_lora_is_opened_as_any_other(run, start):
    model, base = RegionModel.load(run / "checkpoint"), RegionModel.load(start)
    ours, before = model.llava.state_dict(), base.llava.state_dict()
    assert ours.keys() == before.keys()
    changed = {name for name in ours if not torch.equal(ours[name], before[name])}
    assert {name.split(".")[1] for name in changed} == {"multi_modal_projector", "language_model"}
    assert not [name for name in changed if "norm" in name or "embed" in name or name.endswith("q_proj.bias")]
    picture = Image.new("RGB", (60, 40))
    assert len(GranViT.load(run).describe(picture, [[1, 1, 30, 30]])) == 1
    losses, _ = held_out_losses(model, SOURCES[0][0], progress=False)
    others, _ = held_out_losses(base, SOURCES[0][0], progress=False)
    assert losses["all"].loss.value != others["all"].loss.value
    assert read_source(run).recipe["stages"][0]["lora"]["rank"] == RANK


def test_merged_is_what_was_trained(run, start):
    """The loss of the stage's model, adapters beside their base, and of the merged one."""
    merged = RegionModel.load(run / "checkpoint")
    stage = lora_recipe().stages[0].build(RegionModel.load(start)).eval()
    stage.model.load_state_dict(load_file(checkpoint.latest(run / "stage2") / checkpoint.STUDENT), strict=False)
    batch = collate(merged, make_samples(merged))
    with torch.no_grad():
        one, two = stage(batch)["answer"].total, Adapt(merged, 1.0)(batch)["answer"].total
        other = Adapt(RegionModel.load(start), 1.0)(batch)["answer"].total
    assert abs(one - two) <= 1e-5 * one and abs(one - other) > 1e-2 * one


def test_what_it_trained_is_what_the_recipe_says_again(run):
    recipe = read_recipe(run / "recipe.json")
    assert recipe.stages[0].lora == Lora(RANK)


def test_after_both_stages_the_base_is_the_first_stages_model_and_moves_with_the_run(tmp_path):
    recipe = tiny_recipe(save_parts(tmp_path))
    recipe.stages[1].lora = Lora(RANK)
    model = run_recipe(recipe, tmp_path / "run", SOURCES, device="cpu")
    moved = (tmp_path / "run").rename(tmp_path / "elsewhere")
    again = RegionModel.load(moved / "checkpoint").llava.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.llava.state_dict().items())
    shutil.rmtree(moved / "stage1" / "model")
    with pytest.raises(CheckpointError, match="base is not there: no folder .*stage1/model; base_model_name_or_path"):
        RegionModel.load(moved / "checkpoint")


def test_parts_without_a_folder_become_a_base_in_the_run_and_adapters_stand_on_adapters(tmp_path):
    recipe = tiny_recipe(save_parts(tmp_path))
    first = replace(recipe.stages[1], lora=Lora(RANK))
    last = FinetuneConfig(
        ConversationSample({"global": 1.0, "caption2bbox": 1.0}), replace(first.loop), lora=Lora(2), train_encoder=True
    )
    model = run_recipe(replace(recipe, stages=[first, last]), tmp_path / "run", SOURCES, device="cpu")
    assert (tmp_path / "run" / "base" / "model.safetensors").exists()
    assert "base_model.model.model.vision_tower.encoder.layers.0.mlp.fc1.weight" in adapter(tmp_path / "run")
    places = [
        json.loads((tmp_path / "run" / place / "adapter_config.json").read_text())["base_model_name_or_path"]
        for place in ("stage2/model", "finetune/model", "checkpoint")
    ]
    assert places == ["../../base", "../../stage2/model", "../stage2/model"]
    again = RegionModel.load(tmp_path / "run" / "checkpoint").llava.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.llava.state_dict().items())
    weights = tmp_path / "run" / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(CheckpointError, match="of another base than .*base: its model.safetensors has another SHA-256"):
        RegionModel.load(tmp_path / "run" / "checkpoint")


def test_the_encoder_of_such_a_run_is_given_to_another_language_model(run, tmp_path, start):
    parts = save_parts(tmp_path)
    given = ["--sample.max-regions", "2", "--loop.steps", "1", "--loop.batch-size", "2", "--loop.accumulate", "1"]
    synthesize(tmp_path / "corpus", 4, 0, 64, 0.3, "train")
    with pytest.raises(SystemExit) as left:
        main(
            ["transfer", str(run), "--llm", str(parts / "language"), "--corpus", str(tmp_path / "corpus")]
            + ["--out", str(tmp_path / "out"), "--lora.rank", "3", "--device", "cpu", *given]
        )
    assert left.value.code == 0
    towers = (RegionModel.load(f).llava.model.vision_tower.state_dict() for f in (start, tmp_path / "out/checkpoint"))
    ours, theirs = towers
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert json.loads((tmp_path / "out" / "checkpoint" / "adapter_config.json").read_text())["r"] == 3


# --- it goes on exactly ----------------------------------------------------------------------------------------------


def test_a_run_that_was_cut_off_goes_on_bit_for_bit(run, start, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(run, cut, ignore=shutil.ignore_patterns("step_00000003", "model", "checkpoint"))
    assert checkpoint.latest(cut / "stage2").name == "step_00000002"
    lora = Lora(RANK, dropout=0.3)
    train_lora(start, cut, 3)
    assert all(torch.equal(tensor, adapter(cut)[name]) for name, tensor in adapter(run).items())
    train_lora(start, tmp_path / "whole", 3, lora)  # with random numbers in each step
    shutil.copytree(
        tmp_path / "whole", tmp_path / "half", ignore=shutil.ignore_patterns("step_00000003", "model", "checkpoint")
    )
    train_lora(start, tmp_path / "half", 3, lora)
    whole, half = adapter(tmp_path / "whole"), adapter(tmp_path / "half")
    assert all(torch.equal(tensor, half[name]) for name, tensor in whole.items())
    assert not all(torch.equal(tensor, whole[name]) for name, tensor in adapter(run).items())


def test_it_can_be_planned_from(run):
    """By the shapes of what its adapters belong to."""
    model = planned_model(finetune(), run)
    assert model.llava.config.text_config.hidden_size == make_model().llava.config.text_config.hidden_size
    assert all(weight.is_meta for weight in model.llava.model.vision_tower.parameters())


def test_it_does_not_go_on_from_another_base_or_at_another_rank(run, start, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(run, cut, ignore=shutil.ignore_patterns("step_00000003", "model", "checkpoint"))
    with pytest.raises(CheckpointError, match="lora.rank was 4 there and is 5 in this run"):
        train_lora(start, cut, 3, Lora(5))
    make_model(seed=7).save(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"recipe.json: stage2 went on from another model \(init: "):
        train_lora(tmp_path / "other", cut, 3)


@whole_mask()
def train_as_rank(start: Path, run_dir: Path, batch_size: int, parallel: str) -> None:
    recipe = lora_recipe(3, batch_size=batch_size, parallel=parallel, lr=1e-3)
    run_recipe(recipe, run_dir, [([make(i, seed=1, size=64, documents=0.4) for i in range(8)], 1.0)], init=start)


@pytest.mark.parametrize("parallel", ["fsdp", pytest.param("ddp", marks=pytest.mark.slow)])
def test_two_ranks_leave_the_adapter_of_one_process(parallel, start, tmp_path):
    train_as_rank(start, tmp_path / "one", 4, "ddp")
    assert run_ranks(2, train_as_rank, start, tmp_path / "two", 2, parallel) == [0, 0]
    one, two = adapter(tmp_path / "one"), adapter(tmp_path / "two")
    assert one.keys() == two.keys()
    for name in one.keys() - {name for name in one if "k_proj" in name}:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-5, msg=name)
    rows = [
        [json.loads(line) for line in (tmp_path / name / "stage2" / "history.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    for ours, theirs in zip(*rows, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    # What the ranks kept holds nothing of the base, and one process goes on from it.
    newest = checkpoint.latest(tmp_path / "two" / "stage2")
    for file in (newest / "student").iterdir() if parallel == "fsdp" else [newest / checkpoint.STUDENT]:
        assert not [name for name in load_file(file) if "base_layer" in name or "embed" in name]
    shutil.rmtree(newest)
    shutil.rmtree(tmp_path / "two" / "stage2" / "model")
    train_as_rank(start, tmp_path / "two", 4, "ddp")
    again = adapter(tmp_path / "two")
    for name in one.keys() - {name for name in one if "k_proj" in name}:
        torch.testing.assert_close(one[name], again[name], rtol=1e-3, atol=1e-5, msg=name)


# --- what is refused, and what stays as it was -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        (Lora(4, targets=("q_proj", "c_attn")), "lora.targets: the language model has no linear layer 'c_attn'; there"),
        (Lora(4, targets=("fc1",)), "no linear layer 'fc1'"),  # the encoder has it
        (Lora(4, targets=()), "lora.targets: no layer is named; there are down_proj, gate_proj"),
        (Lora(alpha=3.0), "stage2: lora.alpha, dropout and targets say nothing without lora.rank"),
        (Lora(0), "--stages.0.lora.rank 0: must be at least 1"),
        (Lora(-2), "--stages.0.lora.rank -2: must be at least 1"),
        (Lora(4, alpha=0.0), "--stages.0.lora.alpha 0.0: must be"),
        (Lora(4, dropout=1.0), "--stages.0.lora.dropout 1.0: must be from 0 to 0.99"),
    ],
)
def test_what_has_no_effect_or_cannot_be_is_refused_before_anything_is_written(lora, said, start, tmp_path):
    with pytest.raises(GranvitError) as error:
        train_lora(start, tmp_path / "run", 2, lora)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_without_peft_the_extra_is_named(start, tmp_path, monkeypatch):
    monkeypatch.setattr("granvit.train.config.find_spec", lambda name: None)
    with pytest.raises(GranvitError, match=r'stage2: lora.rank needs the extra lora: pip install "granvit\[lora\]"'):
        train_lora(start, tmp_path / "run")


def test_a_stage_that_trains_no_language_model_has_no_such_setting(capsys):
    with pytest.raises(SystemExit) as left:
        main(["train", "nano", "--stages.0.lora.rank", "16"])
    said = capsys.readouterr().err
    assert left.value.code == 2 and "--stages.0.lora.rank" in said and "--stages.1.lora.rank" in said


def test_without_lora_nothing_is_written_down_of_it():
    stage = lora_recipe(lora=Lora()).stages[0]
    assert "lora" not in stage.facts() and not [name for name in identity.decisive(stage) if "lora" in name]
    found = identity.decisive(replace(stage, lora=Lora(8, dropout=0.1)))
    assert {name: value for name, value in found.items() if "lora" in name} == {"lora.rank": 8, "lora.dropout": 0.1}


def test_a_step_that_fails_is_taken_again_with_its_adapters(tmp_path):
    corpus = synthesize(tmp_path / "corpus", 4, 0, 64, 0.4, workers=1, progress=False)
    model = make_model("llama")
    with torch.no_grad():
        model.llava.model.language_model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    recipe = lora_recipe(2, Lora(RANK, dropout=0.2))
    with pytest.raises(NonFiniteLoss):
        run_stage(recipe.stages[0], recipe, model, tmp_path / "run", [(corpus, 1.0)], device="cpu")
    result = replay(tmp_path / "run" / "nonfinite", device="cpu")
    assert result.reproduced
    assert result.weights == [
        "model.model.language_model.layers.1.mlp.up_proj.base_layer.weight: 1 nan and 0 inf of 1536"
    ]


def test_pictures_in_tiles_learn_by_lora_too(tmp_path):
    make_model(fit="squash", tiles="2x1,1x2").save(tmp_path / "start")
    model = train_lora(tmp_path / "start", tmp_path / "run", 1)
    before = RegionModel.load(tmp_path / "start").llava.state_dict()
    now = model.llava.state_dict()
    assert torch.equal(now["model.image_newline"], before["model.image_newline"])  # adapters hold whole parts
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(now[name], before[name])
