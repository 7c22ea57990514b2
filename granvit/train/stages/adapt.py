"""Stage 2: with the encoder frozen, projector and language model learn to find regions."""

from __future__ import annotations

import torch

from granvit.model.forward import project
from granvit.model.packing import Batch
from granvit.model.region_model import RegionModel
from granvit.train.feature_cache import FeatureCache
from granvit.train.stages.base import AnsweringStage, Term
from granvit.train.timing import section


class Adapt(AnsweringStage):
    """Stage 2 (paper, section 3.4): the encoder is frozen, projector and language model learn to find regions.

    Features are computed without a graph, so the tower costs a forward pass and no activation memory; `cache`, where
    set, keeps them for the next time a picture comes up.
    """

    name = "stage2"

    def __init__(self, region_model: RegionModel, smoothing: float = 0.0):
        super().__init__(region_model, smoothing)
        self.cache: FeatureCache | None = None
        self._train(self.projector)
        self._train_language()

    def forward(self, batch: Batch) -> dict[str, Term]:
        assert batch.pixels is not None
        with section("encode"):
            with torch.no_grad():
                if self.cache is None:
                    features = self.region_model.features(batch.pixels)
                else:
                    features = self.cache.features(batch.pixels, batch.digests)
            embeds = project(self.model, features)
        return {"answer": self.answers(batch, embeds)}

    def flops(self, batch: Batch) -> float | None:
        return super().flops(batch) if self.cache is None else None  # who knows which pictures it holds already
