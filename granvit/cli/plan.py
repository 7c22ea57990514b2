"""`granvit plan`: what a recipe takes, before anybody books a GPU."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from granvit.errors import GranvitError
from granvit.train.recipes.base import Recipe


@dataclass
class Plan:
    """Say what training a recipe takes: parameters, memory, hours, price; without a GPU."""

    recipe: Recipe
    corpus: tuple[str, ...] = ()
    """Corpus folders, for their numbers of images and regions and their size; or say these yourself:"""
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
        from granvit.train.plan import DEVICES, Workload, plan, table

        images, regions, kilobytes = self._corpus()
        if not 0 < self.mfu <= 1 or self.gpus < 1 or images < 1 or regions <= 0:
            raise GranvitError("--mfu is a share in (0, 1], --gpus and --images are at least 1, --regions above 0")
        workload = Workload(images, regions, self.caption_tokens, self.region_tokens, kilobytes)
        planned = plan(self.recipe, workload, DEVICES[self.gpu], self.gpus, self.mfu, self.price)
        print(json.dumps(planned.facts(), indent=2) if self.json else "\n".join(table(planned)))
        return 0

    def _corpus(self) -> tuple[int, float, float]:
        """Images, regions of each, kilobytes of each."""
        if self.corpus and self.images is not None:
            raise GranvitError("--corpus and --images exclude each other")
        if not self.corpus:
            if self.images is None:
                raise GranvitError("say what is trained on: --corpus DIR, or --images N --regions R")
            return round(self.images), self.regions, self.kilobytes
        from granvit.corpus.derive import training_part
        from granvit.corpus.layout import SHARDS
        from granvit.corpus.store import Corpus

        images = regions = size = 0
        for folder in self.corpus:
            corpus = Corpus(folder)
            share = len(training_part(corpus)) / len(corpus)
            images += len(training_part(corpus))
            regions += round(share * corpus.manifest["regions"])
            size += round(share * sum(path.stat().st_size for path in corpus.path.glob(SHARDS)))
        return images, regions / images, size / images / 1e3
