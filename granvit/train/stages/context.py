"""What a stage may ask of the run that it is part of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from granvit.train.feed import Records


@dataclass(frozen=True)
class RunContext:
    """What a stage may ask of the run that it is part of.

    Attributes:
        sources: the corpora and their weights.
        earlier: folders in which the parts that the run began with, and the stages before this one, left what a later
            stage may go on from (`Stage.finish`), oldest first.
    """

    sources: Sequence[tuple[Records, float]] = ()
    earlier: Sequence[Path] = ()

    def newest(self, name: str) -> Path | None:
        """The file of that name which was left last."""
        found = (folder / name for folder in reversed(self.earlier))
        return next((path for path in found if path.exists()), None)


NO_RUN = RunContext()
