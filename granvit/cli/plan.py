"""`granvit plan`: what a recipe takes, before anybody books a GPU."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from granvit.errors import GranvitError
from granvit.train.recipes.base import Recipe

if TYPE_CHECKING:
    from granvit.train.workload import Workload


@dataclass
class Plan:
    """Say what training a recipe takes: parameters, memory, hours, price; without a GPU."""

    recipe: Recipe
    corpus: tuple[str, ...] = ()
    """Corpus folders, each DIR or DIR=WEIGHT, for what their records have and their size; or say that yourself:"""
    images: float | None = None
    """How many images; 29.51e6 is Gran-29M."""
    regions: float = 6.22
    """Regions of an image, in the mean; 6.22 is Gran-29M's."""
    kilobytes: float = 150.0
    """Of an image on the disk."""
    caption_tokens: int = 150
    """Of a global caption."""
    region_tokens: int = 12
    """Of a region's text."""
    conversations: float = 0.0
    """Conversations of an image, in the mean."""
    conversation_tokens: int = 300
    """Of a conversation, questions and answers."""
    init: Path | None = None
    """The run or checkpoint that training would start from, not from parts."""
    gpus: int = 8
    """How many GPUs."""
    gpu: Literal["h100", "h200", "a100-80", "a100-40", "l40s", "rtx4090"] = "h100"
    """Which."""
    mfu: float = 0.4
    """The share of a GPU's peak that a step reaches; a run's speed.jsonl has it."""
    price: float | None = None
    """Of one GPU for an hour."""
    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        from granvit.cli.train import of_init, usual_recipe
        from granvit.train.plan import DEVICES, plan, table

        if not 0 < self.mfu <= 1:
            raise GranvitError(f"--mfu {self.mfu}: must be above 0 and at most 1")
        for name, number in (("gpus", self.gpus), ("images", self.images)):
            if number is not None and number < 1:
                raise GranvitError(f"--{name} {number:g}: must be at least 1")
        recipe = self.recipe if self.init is None else of_init(self.recipe, usual_recipe(self), self.init)
        place = (DEVICES[self.gpu], self.gpus, self.mfu, self.price)
        planned = plan(recipe, self._workload(), *place, init=self.init)
        print(json.dumps(planned.facts(), indent=2) if self.json else "\n".join(table(planned)))
        return 0

    def _workload(self) -> Workload:
        from granvit.train.build import sources_of
        from granvit.train.workload import Workload, workload_of

        lengths = (self.caption_tokens, self.region_tokens)
        if self.corpus and self.images is not None:
            raise GranvitError("--corpus and --images exclude each other")
        if self.corpus:
            return workload_of(sources_of(self.recipe, self.corpus), *lengths, self.conversation_tokens)
        if self.images is None:
            raise GranvitError("say what is trained on: --corpus DIR, or --images N --regions R")
        talks = (self.conversations, self.conversation_tokens)
        return Workload(round(self.images), self.regions, *lengths, self.kilobytes, *talks)
