"""Supervised fine-tuning after the two stages."""

from __future__ import annotations

import torch

from granvit.model.forward import project
from granvit.model.packing import Batch
from granvit.model.region_model import RegionModel
from granvit.train.stages.base import AnsweringStage, Term
from granvit.train.timing import section


class Finetune(AnsweringStage):
    """Supervised fine-tuning: projector and language model learn conversations and all questions; encoder by choice.

    A batch of conversations about no image still encodes a blank one, of which nothing is used: processes that train
    together wait for each other in every part, and each part has a gradient, be it zero.
    """

    name = "finetune"

    def __init__(self, region_model: RegionModel, smoothing: float = 0.0, train_encoder: bool = False):
        super().__init__(region_model, smoothing)
        self.train_encoder = train_encoder
        self._train(self.projector)
        self._train_language()
        if train_encoder:
            self._train_encoder()

    def forward(self, batch: Batch) -> dict[str, Term]:
        pixels, blank = batch.pixels, batch.pixels is None
        if pixels is None:
            side = self.region_model.canvas
            pixels = torch.zeros(1, side, side, 3, dtype=torch.uint8, device=batch.input_ids.device)
        with section("encode"):
            with torch.set_grad_enabled(self.train_encoder and torch.is_grad_enabled()):
                features = self.region_model.features(pixels)
            embeds = project(self.model, features)
            embeds = embeds[:0] if blank else embeds
        return {"answer": self.answers(batch, embeds)}
