"""What a run leaves in its folder, by name, and which model is meant where people name a run or a checkpoint."""

from __future__ import annotations

import hashlib
from pathlib import Path

# The last stage's model; the resolved recipe; which corpora it was trained on.
CHECKPOINT, RECIPE, DATA = "checkpoint", "recipe.json", "data.json"
# What came of it, for people.
REPORT = "report.html"


def checkpoint_of(folder: Path | str) -> Path:
    """The checkpoint of a run's folder; any other folder is one itself."""
    inner = Path(folder) / CHECKPOINT
    return inner if inner.is_dir() else Path(folder)


def checkpoint_id(folder: Path) -> str:
    """What tells a checkpoint from another: a digest over its settings and weights."""
    root = checkpoint_of(folder)
    digest = hashlib.sha256()
    for path in sorted((*root.glob("*.json"), *root.glob("*.safetensors"), *root.glob("*.jinja"))):
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
