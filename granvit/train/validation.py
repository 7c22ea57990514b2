"""Scores on held-out pictures while a run trains, as the loop knows them; it does not know what is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from PIL import Image

if TYPE_CHECKING:
    from granvit.train.stages.base import Stage


@dataclass(frozen=True)
class Validated:
    """What the trackers show of a validation.

    Attributes:
        values: scores by name, such as "locate/acc50".
        picture: held-out pictures with true and predicted boxes.
    """

    values: dict[str, float]
    picture: Image.Image | None = None


class Validation(Protocol):
    """Called by the first process alone, with the others waiting at their next step.

    Attributes:
        every: steps between two validations; 0 validates at a stage's end alone.
    """

    every: int

    def begin(self, stage: str, step: int) -> None:
        """A stage begins, or goes on after `step`: what was noted of later steps will come again."""

    def due(self, step: int, steps: int) -> bool:
        """Whether the stage that began is to be scored now, after `step` of `steps`."""

    def __call__(self, stage: Stage, step: int, end: bool) -> Validated | None:
        """Scores the model, which is in eval mode; `end` after the stage's last step. None where that cannot be."""
