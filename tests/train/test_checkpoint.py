import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_stage import TinyStage, make_feed
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from granvit import files
from granvit.errors import CheckpointError
from granvit.train import checkpoint, rng, tensorfile
from granvit.train.checkpoint import Progress
from granvit.train.optimizer import make_optimizer, make_schedule

RECIPE = {"lr": 0.01, "betas": (0.9, 0.99), "stage": "tiny"}


def parts(seed: int = 0, steps: int = 3):
    """A stage, its optimizer and schedule after some steps."""
    stage, feed = TinyStage(seed), make_feed(prefetch=0)
    optimizer = make_optimizer(stage, 0.01, 0.1, (0.9, 0.99), {"words": 2.0})
    schedule = make_schedule(optimizer, 20, 4, 0.1)
    for _ in range(steps):
        sum(term.total for term in stage(next(feed)).values()).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        stage.after_step()
    return stage, optimizer, schedule


def write(run_dir: Path, step: int = 3, keep: int = 2, **changes) -> Path:
    ranks = [{"rng": rng.encode(rng.snapshot()), "feed": {"position": 12}}]
    progress = Progress(step, ranks, {"lines": 3, "sums": {"loss": 0.1}, "summed": 1})
    return checkpoint.save(run_dir, progress, *parts(), RECIPE, keep)


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_everything_comes_back(tmp_path):
    stage, optimizer, schedule = parts()
    folder = write(tmp_path)
    fresh, fresh_optimizer, fresh_schedule = parts(seed=1, steps=0)
    progress = checkpoint.load(folder, fresh, fresh_optimizer, fresh_schedule, RECIPE)
    assert (progress.step, progress.history["sums"]) == (3, {"loss": 0.1})
    assert same(stage.model.state_dict(), fresh.model.state_dict())
    assert same(stage.extra_state(), fresh.extra_state())
    before, after = optimizer.state_dict(), fresh_optimizer.state_dict()
    assert before["state"].keys() == after["state"].keys() and before["state"]
    assert all(same(before["state"][i], after["state"][i]) for i in before["state"])
    assert [g["lr"] for g in before["param_groups"]] == [g["lr"] for g in after["param_groups"]]
    assert schedule.get_last_lr() == fresh_schedule.get_last_lr()
    assert schedule.state_dict()["last_epoch"] == fresh_schedule.state_dict()["last_epoch"]


def test_random_generators_come_back():
    encoded = json.loads(json.dumps(rng.encode(rng.snapshot())))
    drawn = [(random.random(), np.random.rand(), torch.rand(1).item(), random.gauss(0, 1)) for _ in range(3)]
    rng.restore(encoded)
    assert drawn == [(random.random(), np.random.rand(), torch.rand(1).item(), random.gauss(0, 1)) for _ in range(3)]


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path):
    folder = write(tmp_path)
    with safe_open(folder / checkpoint.STUDENT, "pt") as file:
        names = set(file.keys())
    assert len({"head.weight", "words.weight"} & names) == 1
    assert {"frozen.weight", "frozen.bias"} <= names
    fresh, optimizer, schedule = parts(seed=1, steps=0)
    checkpoint.load(folder, fresh, optimizer, schedule, RECIPE)
    assert fresh.model.head.weight is fresh.model.words.weight


def test_no_file_is_pickled(tmp_path):
    assert {f.suffix for f in write(tmp_path).iterdir()} == {".safetensors", ".json"}


def test_the_last_ones_are_kept(tmp_path):
    for step in (3, 6, 9, 100_000_000):
        write(tmp_path, step)
    assert [f.name for f in sorted((tmp_path / "checkpoints").iterdir())] == ["step_00000009", "step_100000000"]
    newest = checkpoint.latest(tmp_path)
    assert newest is not None and newest.name == "step_100000000"


def test_without_a_checkpoint_there_is_no_latest(tmp_path):
    assert checkpoint.latest(tmp_path) is None


@pytest.mark.parametrize("at", ["write_tensors", "sync", "replace"])
def test_an_interrupted_save_never_counts(tmp_path, monkeypatch, at):
    write(tmp_path, 3)

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files.os if at == "replace" else checkpoint, at, crash)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, 6)
    newest = checkpoint.latest(tmp_path)
    assert newest is not None and newest.name == "step_00000003"
    write(tmp_path, 6)
    assert not list((tmp_path / "checkpoints").glob(".partial*"))


def test_files_are_on_the_disk_before_the_checkpoint_counts(tmp_path, monkeypatch):
    synced = []
    for module in (checkpoint, files):
        monkeypatch.setattr(module, "sync", lambda path: synced.append((path.name, path.parent.name)))
    write(tmp_path)
    names = [name for name, _ in synced]
    inside = {checkpoint.STUDENT, checkpoint.OPTIMIZER, checkpoint.EXTRA, checkpoint.STATE}
    assert set(names[:4]) == inside
    assert names[4:] == [".partial-step_00000003", "checkpoints"]


def refused(folder: Path, *named: str, recipe=None, stage=None) -> None:
    """Loading fails, the message names all of `named`, and nothing was changed."""
    fresh, optimizer, schedule = stage or parts(seed=1, steps=0)
    before = {k: v.clone() for k, v in fresh.model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(folder, fresh, optimizer, schedule, recipe or RECIPE)
    assert all(name in str(error.value) for name in named), error.value
    assert same(before, fresh.model.state_dict())


def test_another_recipe_is_refused(tmp_path):
    folder = write(tmp_path)
    refused(folder, "state.json", "lr was 0.01", "0.02", recipe={**RECIPE, "lr": 0.02})
    refused(folder, "state.json", "seed", recipe={**RECIPE, "seed": 1})


@pytest.mark.parametrize("name", [checkpoint.STUDENT, checkpoint.OPTIMIZER, checkpoint.EXTRA, checkpoint.STATE])
def test_damage_is_named(tmp_path, name):
    path = write(tmp_path) / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    refused(path.parent, name)
    if name != checkpoint.STATE:
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        refused(path.parent, name, "checksum")
    path.unlink()
    refused(path.parent, name)


@pytest.mark.parametrize("field", ["step", "ranks", "optimizer"])
def test_a_missing_field_is_named(tmp_path, field):
    path = write(tmp_path) / checkpoint.STATE
    state = json.loads(path.read_text())
    del state[field]
    path.write_text(json.dumps(state))
    refused(path.parent, "state.json", field)


def replace(folder: Path, name: str, change) -> None:
    """Changes a tensor file and makes its checksum right, as a foreign checkpoint would have it."""
    path = folder / name
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata)
    state = json.loads((folder / checkpoint.STATE).read_text())
    state["files"][name] = tensorfile.facts_of(path)
    (folder / checkpoint.STATE).write_text(json.dumps(state))


@pytest.mark.parametrize(
    "name, tensor",
    [
        (checkpoint.STUDENT, "frozen.weight"),
        (checkpoint.EXTRA, "average"),
        (checkpoint.OPTIMIZER, "model.encoder.0.weight:exp_avg"),
    ],
)
def test_a_missing_or_misshapen_tensor_is_named(tmp_path, name, tensor):
    folder = write(tmp_path)
    replace(folder, name, lambda t: t.update({tensor: torch.zeros(3, 3)}))
    refused(folder, name, tensor, "(3, 3)")
    replace(folder, name, lambda t: t.pop(tensor))
    refused(folder, name, tensor, "missing")


def test_an_unknown_tensor_is_named(tmp_path):
    folder = write(tmp_path)
    replace(folder, checkpoint.STUDENT, lambda t: t.update(other=torch.zeros(1)))
    refused(folder, checkpoint.STUDENT, "other")


def test_other_trained_parameters_are_refused(tmp_path):
    folder = write(tmp_path)
    stage = TinyStage()
    stage.model.encoder[0].requires_grad_(False)
    optimizer = make_optimizer(stage, 0.01, 0.1, (0.9, 0.99), {})
    refused(folder, "optimizer", "model.encoder.0", stage=(stage, optimizer, make_schedule(optimizer, 20, 4, 0.1)))


def test_groups_decay_matrices_only_and_follow_the_multipliers():
    stage = TinyStage()
    optimizer = make_optimizer(stage, 0.01, 0.1, (0.9, 0.99), {"encoder": 2.0})
    names = {p: n for n, p in stage.named_parameters()}
    found = {names[p]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert found == {
        "model.encoder.0.weight": (0.02, 0.1),
        "model.encoder.0.bias": (0.02, 0.0),
        "model.encoder.1.weight": (0.02, 0.0),
        "model.encoder.1.bias": (0.02, 0.0),
        "model.words.weight": (0.01, 0.0),
    }
    with pytest.raises(ValueError, match="projector"):
        make_optimizer(stage, 0.01, 0.1, (0.9, 0.99), {"projector": 2.0})
    with pytest.raises(ValueError, match=r"optimizer_groups: 'proj\(' is no regular expression"):
        make_optimizer(stage, 0.01, 0.1, (0.9, 0.99), {"proj(": 2.0})
    with pytest.raises(ValueError, match="nothing trains"):
        make_optimizer(stage.requires_grad_(False), 0.01, 0.1, (0.9, 0.99), {})


def test_the_schedule_warms_up_and_ends_at_its_floor():
    optimizer = make_optimizer(TinyStage(), 1.0, 0.0, (0.9, 0.99), {})
    schedule = make_schedule(optimizer, steps=10, warmup_steps=4, min_lr_ratio=0.1)
    rates = []
    for _ in range(11):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[7] == pytest.approx(0.55) and rates[10] == pytest.approx(0.1)


def test_the_tiny_corpus_varies():
    """What the other tests rest on: questions, answers and crops differ from sample to sample."""
    feed = make_feed(prefetch=0)
    counts = [next(feed).counts for _ in range(6)]
    assert len({c["answer_tokens"] for c in counts}) > 3 and len({c["crops"] for c in counts}) > 2


def damaged(folder: Path) -> str:
    (folder / checkpoint.STUDENT).write_bytes(b"")
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(folder, *parts(seed=1, steps=0), RECIPE)
    return str(error.value)


def test_a_damaged_checkpoint_names_the_newest_whole_one_and_the_way_on(tmp_path):
    first, second, third = (write(tmp_path, step, keep=3) for step in (3, 6, 9))
    assert f"{second} is whole: remove {third}, and the same command goes on from there" in damaged(third)
    shutil.rmtree(third)
    (first / checkpoint.STATE).write_text("")
    assert f"no other checkpoint is whole: remove {first.parent}" in damaged(second)


@pytest.mark.parametrize("field, value", [("files", []), ("ranks", {}), ("step", "3"), ("history", None)])
def test_a_field_of_another_kind_is_named(tmp_path, field, value):
    path = write(tmp_path) / checkpoint.STATE
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    refused(path.parent, "state.json", f"{field} is {value!r}")
