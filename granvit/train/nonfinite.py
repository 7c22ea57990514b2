"""What a run leaves when a loss or a gradient is not a finite number: all that takes the step again.

nonfinite/
  batch.json           step, metrics, sample ids, precision, where settings and data come from
  ranks.json           per rank: its stream position and its random generators, as they were before the step
  student.safetensors  the model before the step
  extra.safetensors    what the stage keeps besides, e.g. the teacher
  model/               config, tokenizer and geometry of the model, without weights
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from granvit.errors import GranvitError
from granvit.train.stages.base import Stage
from granvit.train.tensorfile import write_tensors

FOLDER = "nonfinite"
BATCH, RANKS, STUDENT, EXTRA, MODEL = "batch.json", "ranks.json", "student.safetensors", "extra.safetensors", "model"


class NonFiniteLoss(GranvitError):
    """A loss or gradient norm that is not a finite number; the message names the step and the samples."""

    @classmethod
    def at(cls, step: int, metrics: Mapping[str, float], ids: Sequence[str], run_dir: Path) -> NonFiniteLoss:
        bad = {name: value for name, value in metrics.items() if not math.isfinite(value)}
        again = f"`granvit debug replay {run_dir / FOLDER}` takes the step again"
        return cls(f"step {step}: {bad} with the samples {', '.join(ids)}; {again}")


def save(
    run_dir: Path,
    stage: Stage,
    student: Mapping[str, Tensor],
    extra: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    ranks: Sequence[Mapping[str, Any]],
) -> None:
    """Writes the folder of a run anew.

    Args:
        student, extra: whole tensors of the stage's model, and what the stage keeps besides.
        facts: JSON-able facts of the run: "step", "metrics", "precision", "device", "provenance".
        ranks: per rank "ids" (of each micro-batch), "feed" (its state before the step) and "rng".
    """
    folder = run_dir / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / BATCH).write_text(json.dumps({**facts, "ids": [rank["ids"] for rank in ranks]}, indent=1) + "\n")
    (folder / RANKS).write_text(json.dumps([{"feed": rank["feed"], "rng": rank["rng"]} for rank in ranks]))
    write_tensors(folder / STUDENT, student)
    write_tensors(folder / EXTRA, extra)
    stage.describe(folder / MODEL)
