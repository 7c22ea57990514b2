"""Stage 1: regions are described through the frozen language model, and distilled from an average of the encoder."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from granvit.model.distill import Teacher, distillation_loss
from granvit.model.forward import project
from granvit.model.locations import rows_of, train_rows
from granvit.model.packing import Batch
from granvit.model.region_model import RegionModel
from granvit.train.parallel import is_sharded
from granvit.train.stages.base import AnsweringStage, Term
from granvit.train.timing import section


class Pretrain(AnsweringStage):
    """Stage 1 (paper, section 3.3): encoder and projector learn through the frozen language model.

    L = L_caption + `distill_weight` * MSE(teacher(crop), ROIAlign(student(image))); the teacher is an EMA of the
    student that keeps `alpha` of itself per step (paper: weight 1, alpha 0.9). With `train_language` the language model
    learns too; with `train_locations` of it the embeddings of the codec's location tokens alone.
    """

    name = "stage1"

    def __init__(
        self,
        region_model: RegionModel,
        smoothing: float = 0.0,
        distill_weight: float = 1.0,
        alpha: float = 0.9,
        train_language: bool = False,
        train_locations: bool = False,
    ):
        super().__init__(region_model, smoothing)
        self.distill_weight = distill_weight
        self._train(self.projector)
        if train_language:
            self._train(self.model.model.language_model, self.model.lm_head)
        elif train_locations:
            rows = rows_of(region_model.processor.tokenizer, region_model.codec)
            train_rows(self.model.get_input_embeddings().weight, rows)
        self._train_encoder()
        self.teacher = Teacher(self.tower, alpha) if distill_weight > 0 else None

    def forward(self, batch: Batch) -> dict[str, Term]:
        assert batch.pixels is not None
        with section("encode"):
            features = self.region_model.features(batch.pixels)
            embeds = project(self.model, features)
        terms = {"caption": self.answers(batch, embeds)}
        if self.teacher is not None:
            with section("head"):
                terms["distill"] = Term(self._distill(self.teacher, batch, features), "crops", self.distill_weight)
        return terms

    def _distill(self, teacher: Teacher, batch: Batch, features: Tensor) -> Tensor:
        if batch.crops is None or batch.crop_boxes is None or batch.crop_image is None:
            if is_sharded(self):  # its blocks are gathered from all ranks, and the others wait for this one
                canvas = self.region_model.canvas
                teacher(features.new_zeros(1, 3, canvas, canvas), canvas)
            return features.sum() * 0  # no region in the whole batch
        crops = self.region_model.normalise(batch.crops).to(features.dtype)
        with section("teacher"):
            target = teacher(crops, self.region_model.canvas)
        boxes, owners = batch.on_host.crop_boxes, batch.on_host.crop_image
        assert boxes is not None and owners is not None
        patch = self.region_model.patch
        if not self.region_model.settings.tiles:
            return distillation_loss(target, self.region_model.patches(features), boxes, batch.crop_image, patch)
        maps = self.region_model.region_maps(features, batch.views)  # no two of one shape
        mine = {image: (owners == image).nonzero()[:, 0] for image in owners.unique().tolist()}
        losses = [
            distillation_loss(target[each], maps[image], boxes[each], torch.zeros_like(each), patch)
            for image, each in mine.items()
        ]
        return torch.stack(losses).sum()

    def after_step(self) -> None:
        if self.teacher is not None:
            self.teacher.update(self.tower)

    def extra_state(self) -> dict[str, Tensor]:
        return {} if self.teacher is None else dict(self.teacher.tower.state_dict())

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        if self.teacher is not None:
            self.teacher.tower.load_state_dict(dict(state))
