"""What a run leaves in its folder, by name, and which model is meant where people name a run or a checkpoint."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from granvit.errors import GranvitError
from granvit.files import open_regular, sha256

# The last stage's model; the resolved recipe; which corpora it was trained on.
CHECKPOINT, RECIPE, DATA = "checkpoint", "recipe.json", "data.json"
# What adapters belong to, where a run begins with parts.
BASE = "base"
# What came of it, for people; and the scores of the demo.
REPORT, METRICS = "report.html", "metrics.json"
# What a model's folder holds, be it an adapter's, and a run's does not; the recipe may lie in both.
_MODELS = ("config.json", "adapter_config.json")
# Of a model's folder what decides its answers: settings, weights, chat template.
_WEIGHTS = (".safetensors", ".gguf")
_DECIDING = (".json", ".jinja", *_WEIGHTS)


def checkpoint_of(folder: Path | str) -> Path:
    """The checkpoint of a run's folder; any other folder is one itself."""
    inner = Path(folder) / CHECKPOINT
    return inner if inner.is_dir() else Path(folder)


def named_checkpoint(name: Path | str) -> Path | str:
    """Where a part is named, in a folder or on the hub: of a run's folder the checkpoint, any other name as it is.

    Raises:
        GranvitError: the run has not come to a checkpoint.
    """
    folder = Path(name)
    if not str(name) or not (folder / RECIPE).is_file() or any((folder / file).exists() for file in _MODELS):
        return name
    if (checkpoint := checkpoint_of(folder)) != folder:
        return checkpoint
    raise GranvitError(f"{name}: a run that has not finished, so there is no {name}/{CHECKPOINT} yet")


def checkpoint_id(folder: Path) -> str:
    """What tells a checkpoint, or a part of a model, from another: a digest over the folder's settings and weights."""
    root = checkpoint_of(folder)
    digest = hashlib.sha256()
    for path in sorted(path for ending in _DECIDING for path in root.glob(f"*{ending}")):
        digest.update(path.name.encode() + _sha256(path))
    return digest.hexdigest()


def by_content(model: str) -> str:
    """A model, or a part of one: what lies on this disk by what it holds, wherever that is, any other by its name.

    A folder without weights is no model: one that has only the name of a model on the hub, or at an endpoint.

    Raises:
        GranvitError: a file in it is none, such as a pipe. OSError: one cannot be read.
    """
    path = Path(model)
    if not model or not os.path.exists(path):  # `Path.exists` raises where a name is too long for a file's
        return model
    if path.is_dir() and not any(any(checkpoint_of(path).glob(f"*{ending}")) for ending in _WEIGHTS):
        return model
    return f"sha256 {checkpoint_id(path) if path.is_dir() else _sha256(path).hex()}"


def _sha256(file: Path) -> bytes:
    """The checksum of a file, which people name, so that it is made sure to be one: a pipe would block for ever."""
    open_regular(file).close()
    return bytes.fromhex(sha256(file))
