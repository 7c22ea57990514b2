"""What the training loop knows of a stage: a batch goes in, named loss terms come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor, nn

from granvit.model.packing import Batch

if TYPE_CHECKING:  # it takes seconds to import, and nothing here runs it
    from transformers import PreTrainedModel


@dataclass
class Term:
    """One named part of a loss.

    Attributes:
        total: scalar, the sum over the items of this batch. Not the mean: the loop divides by the global count, so
            that accumulation and data parallelism change nothing.
        count: the key into `Batch.counts` that normalises it, "answer_tokens" or "crops".
        weight: the term's share in the loss.
    """

    total: Tensor
    count: str
    weight: float = 1.0


class Stage(nn.Module):
    """A model and its objective as one object. What trains is what requires a gradient.

    Attributes:
        name: the stage's name in logs and checkpoints.
        model: the student.
    """

    name: str
    model: PreTrainedModel

    def forward(self, batch: Batch) -> dict[str, Term]:
        """The same names for every batch: a term with nothing to sum is zero, not absent."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Runs after every optimizer step, e.g. to move an EMA teacher."""

    def extra_state(self) -> dict[str, Tensor]:
        """Tensors besides the student that a resumed run needs, e.g. the EMA teacher.

        Names and shapes are the same from construction on.
        """
        return {}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what `extra_state` gave."""

    def finish(self, folder: Path, write: bool) -> None:
        """Runs on every rank when the stage is trained, and may change the model that the next stage begins with.

        What a later stage goes on from is left as files in `folder`, by the rank that is told to `write`.
        """

    def describe(self, folder: Path) -> None:
        """Writes what of the model no tensor tells (config, tokenizer), so that a failing step can be taken again."""

    def picture(self, batch: Batch) -> Image.Image | None:
        """A batch as people can check it; None where it can't be drawn."""
        return None

    def flops(self, batch: Batch) -> float | None:
        """The arithmetic that a training step on this batch needs; None where nobody has counted it."""
        return None
