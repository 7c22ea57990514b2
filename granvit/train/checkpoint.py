"""Checkpoints of a run: whole or absent, and refused with a reason where they do not fit.

A checkpoint is a folder `checkpoints/step_00000012` of safetensors and JSON files; nothing in it is pickled. It is
written under another name and renamed when every byte is on the disk, so an interrupted save never counts. The state
of a sharded run is written by all ranks, as folders `student`, `optimizer` and `extra` in place of the files.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from granvit.errors import CheckpointError
from granvit.files import apply_umask, put_in_place, read_regular, sync
from granvit.train import identity
from granvit.train.optimizer import expected_tensors, optimizer_parts, optimizer_state
from granvit.train.parallel import is_sharded
from granvit.train.stages.base import Stage
from granvit.train.tensorfile import (
    check_file,
    distinct,
    facts_of,
    read_expected,
    read_shards,
    write_shards,
    write_tensors,
)

__all__ = ["Progress", "latest", "load", "of_another_run", "save"]

FORMAT = 1
STUDENT, OPTIMIZER, EXTRA, STATE = "student.safetensors", "optimizer.safetensors", "extra.safetensors", "state.json"
_FIELDS = {
    **{"format": int, "step": int, "recipe": dict, "files": dict, "optimizer": dict, "scheduler": dict},
    **{"history": dict, "ranks": list},
}
_NAME = re.compile(r"step_(\d{8,})")


@dataclass
class Progress:
    """What a run needs besides tensors; all JSON-able.

    Attributes:
        step: optimizer steps done.
        ranks: per rank, its random generators ("rng") and its stream position ("feed").
        history: lines of the run's history at this step, and the running sums of the line to come.
    """

    step: int
    ranks: list[dict[str, Any]]
    history: dict[str, Any] = field(default_factory=dict)


def save(
    run_dir: Path,
    progress: Progress,
    stage: Stage,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    recipe: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """Writes a checkpoint below `run_dir` and removes all but the newest `keep`. Returns its folder.

    `recipe` holds what must be equal for a run to go on from here. Of a sharded stage every rank writes what it holds
    and all ranks call this, `run_dir` being the same folder to all; else the first rank alone does.
    """
    folder = run_dir / "checkpoints"
    final = folder / f"step_{progress.step:08d}"
    sharded = is_sharded(stage)
    first = not sharded or dist.get_rank() == 0
    if not final.exists():
        temporary = folder / f".partial-{final.name}"
        if first:
            folder.mkdir(parents=True, exist_ok=True)
            for stale in folder.glob(".partial-*"):
                shutil.rmtree(stale)
            temporary.mkdir()
        tensors, optimizer_facts = optimizer_parts(stage, optimizer)
        if sharded:
            files = _write_shards(temporary, stage, tensors)
        else:
            files = _write_files(temporary, stage, tensors)
        if first:
            state = {
                "format": FORMAT,
                "step": progress.step,
                "recipe": dict(recipe),
                "files": files,
                "optimizer": optimizer_facts,
                "scheduler": scheduler.state_dict(),
                "history": progress.history,
                "ranks": progress.ranks,
            }
            (temporary / STATE).write_text(json.dumps(state))
            sync(temporary / STATE)
            apply_umask(temporary)
            put_in_place(temporary, final)
    if first:
        for old in _all(run_dir)[: -max(keep, 1)]:
            # Renamed first: a kill in the middle of the removal must not leave half a checkpoint behind.
            shutil.rmtree(old.rename(folder / f".partial-{old.name}"))
    return final


def _student(stage: Stage, sharded: bool = False) -> dict[str, Tensor]:
    """What a checkpoint holds of the model."""
    tensors = distinct(stage.model) if sharded else stage.model.state_dict()
    return {name: tensor for name, tensor in tensors.items() if stage.keeps(name)}


def _write_files(folder: Path, stage: Stage, optimizer: Mapping[str, Tensor]) -> dict[str, dict[str, int]]:
    """Everything, by one rank; the facts of each file."""
    write_tensors(folder / STUDENT, _student(stage))
    write_tensors(folder / EXTRA, stage.extra_state())
    write_tensors(folder / OPTIMIZER, optimizer)
    for name in (STUDENT, OPTIMIZER, EXTRA):
        sync(folder / name)
    return {name: facts_of(folder / name) for name in (STUDENT, OPTIMIZER, EXTRA)}


def _write_shards(folder: Path, stage: Stage, optimizer: Mapping[str, Tensor]) -> dict[str, dict[str, int]]:
    """What each rank holds, by each rank; the facts of each file of all of them."""
    dist.barrier()  # until the folder is there
    mine: dict[str, dict[str, int]] = {}
    for part, tensors in ((STUDENT, _student(stage, True)), (EXTRA, stage.extra_state()), (OPTIMIZER, optimizer)):
        for path in write_shards(_shards(folder / part), tensors):
            mine[path.relative_to(folder).as_posix()] = facts_of(path)
        dist.barrier()
        if dist.get_rank() == 0 and tensors:
            sync(_shards(folder / part))
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    return {name: facts for files in gathered for name, facts in files.items()}


def _shards(file: Path) -> Path:
    """The folder that stands in for a file where the state is sharded."""
    return file.with_suffix("")


def latest(run_dir: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    return next(reversed(_all(run_dir)), None)


def _all(run_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    folders = (run_dir / "checkpoints").glob("step_*")
    return sorted((f for f in folders if _NAME.fullmatch(f.name)), key=lambda f: int(f.name.split("_")[1]))


def load(
    checkpoint: Path, stage: Stage, optimizer: Optimizer, scheduler: LRScheduler, recipe: Mapping[str, Any]
) -> Progress:
    """Puts a checkpoint into stage, optimizer and scheduler, in place, and returns the rest.

    Everything is checked before anything is changed. The stage's `extra_state` must have its final names and shapes
    from the start.

    Raises:
        CheckpointError: a file is missing or damaged (the message tells the way on), a tensor is missing, unknown or of
            another shape, or the checkpoint belongs to another recipe.
    """
    with _with_resume_hint(checkpoint):
        state = _read_state(checkpoint)
    _check_recipe(checkpoint, state["recipe"], recipe)
    with _with_resume_hint(checkpoint):
        _check_files(checkpoint, state["files"], is_sharded(stage))
    sharded = STUDENT not in state["files"]
    student = _student(stage, sharded)
    extra = stage.extra_state()
    moments = expected_tensors(checkpoint / OPTIMIZER, state["optimizer"], stage, optimizer)
    read = _read_shards if sharded else _read_file
    stored_student, stored_extra = read(checkpoint / STUDENT, student), read(checkpoint / EXTRA, extra)
    stored_optimizer = read(checkpoint / OPTIMIZER, moments)
    with torch.no_grad():
        for name, tensor in student.items():
            tensor.copy_(stored_student[name])
    stage.load_extra_state(stored_extra)
    optimizer.load_state_dict(optimizer_state(stored_optimizer, state["optimizer"], stage, optimizer))
    scheduler.load_state_dict(state["scheduler"])
    return Progress(state["step"], state["ranks"], state["history"])


@contextmanager
def _with_resume_hint(damaged: Path) -> Iterator[None]:
    """Adds to an error about a checkpoint which older one is whole, and how the run goes on from there."""
    try:
        yield
    except CheckpointError as error:
        older = next((folder for folder in reversed(_all(damaged.parent.parent)) if _is_whole(folder)), None)
        if older is None:
            way = f"no other checkpoint is whole: remove {damaged.parent} to train this stage anew"
        else:
            way = f"{older} is whole: remove {damaged}, and the same command goes on from there"
        raise CheckpointError(f"{error}; {way}") from error


def _is_whole(checkpoint: Path) -> bool:
    try:
        _check_files(checkpoint, _read_state(checkpoint)["files"], shared=False)
    except CheckpointError:
        return False
    return True


def of_another_run(difference: str) -> CheckpointError:
    """What is said where a folder holds another run than the one to be trained."""
    return CheckpointError(f"{difference} (choose another --out to train anew)")


def _check_files(checkpoint: Path, files: Mapping[str, Mapping[str, int]], shared: bool) -> None:
    """Finds damage; the ranks of a sharded run share the reading."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if shared else (0, 1)
    for name in sorted(files)[rank::world]:
        check_file(checkpoint / name, files[name])


def _read_file(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a file that one rank wrote, spread over the ranks where those expected are."""
    stored = read_expected(path, expected)
    for name, tensor in expected.items():
        if isinstance(tensor, DTensor):
            whole = stored[name].to(tensor.device)
            stored[name] = distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None)
    return stored


def _read_shards(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return read_shards(_shards(path), expected)


def _read_state(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / STATE
    try:
        state = json.loads(read_regular(path, 1 << 30))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    for name, kind in _FIELDS.items():
        if not isinstance(state, dict) or name not in state:
            raise CheckpointError(f"{path}: {name} is missing")
        if not isinstance(state[name], kind):
            raise CheckpointError(f"{path}: {name} is {state[name]!r:.40}, not what was written")
    for rank in state["ranks"]:
        if not isinstance(rank, dict) or not all(isinstance(rank.get(name), dict) for name in ("feed", "rng")):
            raise CheckpointError(f"{path}: ranks: feed or rng is missing")
    if state["format"] != FORMAT:
        raise CheckpointError(f"{path}: format is {state['format']}, this version reads {FORMAT}")
    return state


def _check_recipe(checkpoint: Path, stored: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    if difference := identity.difference(identity.flattened(stored), json.loads(json.dumps(dict(current)))):
        raise of_another_run(f"{checkpoint / STATE}: {difference}")
