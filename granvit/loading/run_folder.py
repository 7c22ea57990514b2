"""What a run leaves in its folder, by name, and which model is meant where people name a run or a checkpoint."""

from __future__ import annotations

from pathlib import Path

# The last stage's model; the resolved recipe; which corpora it was trained on.
CHECKPOINT, RECIPE, DATA = "checkpoint", "recipe.json", "data.json"
# What came of it, for people.
REPORT = "report.html"


def checkpoint_of(folder: Path | str) -> Path:
    """The checkpoint of a run's folder; any other folder is one itself."""
    inner = Path(folder) / CHECKPOINT
    return inner if inner.is_dir() else Path(folder)
