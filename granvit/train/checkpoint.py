"""Checkpoints of a run: whole or absent, and refused with a reason where they do not fit.

A checkpoint is a folder `checkpoints/step_00000012` of safetensors and JSON files; nothing in it is pickled. It is
written under another name and renamed when every byte is on the disk, so an interrupted save never counts.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from granvit.errors import CheckpointError
from granvit.files import sync
from granvit.train.optimizer import optimizer_parts, read_optimizer
from granvit.train.stage import Stage
from granvit.train.tensorfile import check_file, facts_of, read_expected, write_tensors

__all__ = ["Progress", "latest", "load", "save"]

FORMAT = 1
STUDENT, OPTIMIZER, EXTRA, STATE = "student.safetensors", "optimizer.safetensors", "extra.safetensors", "state.json"
_NAME = re.compile(r"step_(\d{8,})")


@dataclass
class Progress:
    """What a run needs besides tensors; all JSON-able.

    Attributes:
        step: optimizer steps done.
        ranks: per rank, its random generators ("rng") and its place in the data ("feed").
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

    `recipe` holds what must be equal for a run to go on from here.
    """
    folder = run_dir / "checkpoints"
    final = folder / f"step_{progress.step:08d}"
    if not final.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(".partial-*"):
            shutil.rmtree(stale)
        temporary = folder / f".partial-{final.name}"
        temporary.mkdir()
        _write(temporary, progress, stage, optimizer, scheduler, recipe)
        sync(temporary)
        temporary.rename(final)
        sync(folder)
    for old in _all(run_dir)[: -max(keep, 1)]:
        # Renamed first: a kill in the middle of the removal must not leave half a checkpoint behind.
        shutil.rmtree(old.rename(folder / f".partial-{old.name}"))
    return final


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
        CheckpointError: a file is missing or damaged, a tensor is missing, unknown or of another shape, or the
            checkpoint belongs to another recipe.
    """
    state = _read_state(checkpoint)
    _check_recipe(checkpoint, state["recipe"], recipe)
    for name, facts in state["files"].items():
        check_file(checkpoint / name, facts)
    student, extra = stage.model.state_dict(), stage.extra_state()
    stored_student = read_expected(checkpoint / STUDENT, student)
    stored_extra = read_expected(checkpoint / EXTRA, extra)
    optimizer_state = read_optimizer(checkpoint / OPTIMIZER, state["optimizer"], stage, optimizer)
    with torch.no_grad():
        for name, tensor in student.items():
            tensor.copy_(stored_student[name])
    stage.load_extra_state(stored_extra)
    optimizer.load_state_dict(optimizer_state)
    scheduler.load_state_dict(state["scheduler"])
    return Progress(state["step"], state["ranks"], state["history"])


def _write(
    folder: Path,
    progress: Progress,
    stage: Stage,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    recipe: Mapping[str, Any],
) -> None:
    tensors, optimizer_facts = optimizer_parts(stage, optimizer)
    write_tensors(folder / STUDENT, stage.model.state_dict())
    write_tensors(folder / EXTRA, stage.extra_state())
    write_tensors(folder / OPTIMIZER, tensors)
    for name in (STUDENT, OPTIMIZER, EXTRA):
        sync(folder / name)
    state = {
        "format": FORMAT,
        "step": progress.step,
        "recipe": dict(recipe),
        "files": {name: facts_of(folder / name) for name in (STUDENT, OPTIMIZER, EXTRA)},
        "optimizer": optimizer_facts,
        "scheduler": scheduler.state_dict(),
        "history": progress.history,
        "ranks": progress.ranks,
    }
    (folder / STATE).write_text(json.dumps(state))
    sync(folder / STATE)


def _read_state(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / STATE
    try:
        state = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    for name in ("format", "step", "recipe", "files", "optimizer", "scheduler", "history", "ranks"):
        if not isinstance(state, dict) or name not in state:
            raise CheckpointError(f"{path}: {name} is missing")
    if state["format"] != FORMAT:
        raise CheckpointError(f"{path}: format is {state['format']}, this version reads {FORMAT}")
    return state


def _check_recipe(checkpoint: Path, stored: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    current = json.loads(json.dumps(dict(current)))
    for name in sorted(stored.keys() | current.keys()):
        before, now = stored.get(name), current.get(name)
        if before != now:
            raise CheckpointError(
                f"{checkpoint / STATE}: recipe: {name} was {before!r} there and is {now!r} in this run"
            )
