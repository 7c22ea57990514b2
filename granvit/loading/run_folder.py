"""What a run leaves in its folder, by name, and which model is meant where people name a run or a checkpoint."""

from __future__ import annotations

import hashlib
from pathlib import Path

from granvit.errors import GranvitError
from granvit.files import sha256

# The last stage's model; the resolved recipe; which corpora it was trained on.
CHECKPOINT, RECIPE, DATA = "checkpoint", "recipe.json", "data.json"
# What adapters belong to, where a run begins with parts.
BASE = "base"
# What came of it, for people; and the scores of the demo.
REPORT, METRICS = "report.html", "metrics.json"
# What a model's folder holds, be it an adapter's, and a run's does not; the recipe may lie in both.
_MODELS = ("config.json", "adapter_config.json")
# Of a model's folder what decides its answers: settings, weights, chat template.
_DECIDING = (".json", ".safetensors", ".gguf", ".jinja")


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
        digest.update(path.name.encode() + bytes.fromhex(sha256(path)))
    return digest.hexdigest()
