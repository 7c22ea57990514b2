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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

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


@dataclass
class Watch:
    """What was met first.

    Attributes:
        output: the module whose output was the first that is not finite, with how much of it.
        gradient: the module at whose output the first gradient arrived that is not finite.
        parameter: the first parameter, in the order of the backward pass, whose gradient is not finite.
    """

    output: str | None = None
    gradient: str | None = None
    parameter: str | None = None

    @contextmanager
    def over(self, module: nn.Module) -> Iterator[None]:
        """Watches all modules and parameters within the context."""
        handles = []
        for name, inner in module.named_modules():
            if name:
                handles.append(inner.register_forward_hook(partial(self._see_output, name)))
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                handles.append(parameter.register_post_accumulate_grad_hook(partial(self._see_parameter, name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _see_output(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        described = f"{name} ({type(module).__name__})"
        for tensor in _tensors(output):
            if self.output is None and (bad := _bad(tensor)):
                came_in = any(_bad(given) for given in _tensors(inputs))
                self.output = f"{described}: {bad}; its inputs were {'not finite either' if came_in else 'finite'}"
            if tensor.requires_grad:
                tensor.register_hook(partial(self._see_gradient, described))

    def _see_gradient(self, described: str, gradient: Tensor) -> None:
        if self.gradient is None and (bad := _bad(gradient)):
            self.gradient = f"{described}: {bad}"

    def _see_parameter(self, name: str, parameter: Tensor) -> None:
        if self.parameter is None and parameter.grad is not None and (bad := _bad(parameter.grad)):
            self.parameter = f"{name}: {bad}"


def nonfinite_weights(module: nn.Module) -> list[str]:
    """Parameters and buffers that hold numbers that are not finite."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return [f"{name}: {bad}" for name, tensor in named if (bad := _bad(tensor))]


def _bad(tensor: Tensor) -> str:
    """How many numbers are not finite, "" where all are."""
    if not tensor.is_floating_point():
        return ""
    nan, inf = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    return f"{nan} nan and {inf} inf of {tensor.numel()}" if nan or inf else ""


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in what a module takes or returns."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for inner in value.values() for t in _tensors(inner)]
    if isinstance(value, list | tuple):
        return [t for inner in value for t in _tensors(inner)]
    return []
