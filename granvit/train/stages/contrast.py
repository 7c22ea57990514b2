"""Stage 1 without a language model: what regions are taught by a contrast with their texts, as RegionCLIP has it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from granvit.geometry import Boxes, View
from granvit.model.contrast import contrast_loss, region_means, text_means
from granvit.model.forward import project
from granvit.model.packing import Batch, Branch
from granvit.model.region_model import RegionModel
from granvit.regions import RegionImage
from granvit.train.prepare import Prepare
from granvit.train.stages.base import Term
from granvit.train.stages.pretrain import Pretrain
from granvit.train.timing import section

# SigLIP starts at 10 and -10, the logarithm of a match's share among the 32,768 of its batches; here are some fifty.
_SCALE, _BIAS = 10.0, -4.0


@dataclass
class RegionTexts:
    """The regions of a sample: boxes float32 (R, 4), xyxy pixels of the canvas, and their texts' tokens."""

    boxes: NDArray[np.float32]
    texts: list[list[int]]

    @staticmethod
    def collate(extras: Sequence[RegionTexts], patches: int) -> RegionBatch:
        texts = [text for extra in extras for text in extra.texts]
        ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.int64)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for row, text in enumerate(texts):
            ids[row, : len(text)], mask[row, : len(text)] = torch.tensor(text), True
        boxes = torch.from_numpy(np.concatenate([extra.boxes for extra in extras]))
        owners = np.repeat(np.arange(len(extras)), [len(extra.texts) for extra in extras])
        return RegionBatch(boxes, torch.from_numpy(owners), ids, mask)


@dataclass
class RegionBatch:
    """The R regions of a batch: `boxes` (R, 4) on the CPU, `image` (R,), and their texts' tokens (R, L) with `mask`."""

    boxes: Tensor
    image: Tensor
    ids: Tensor
    mask: Tensor

    def to(self, device: torch.device | str) -> RegionBatch:
        return RegionBatch(self.boxes, self.image.to(device), self.ids.to(device), self.mask.to(device))

    def of_image(self, image: int) -> RegionBatch:
        mine = self.image == image
        return RegionBatch(self.boxes[mine.cpu()], self.image[mine] * 0, self.ids[mine], self.mask[mine])


class RegionPrepare(Prepare):
    """Samples with the boxes and texts of their regions, one for each question about a region."""

    def _extra(self, record: RegionImage, view: View, branches: list[Branch], boxes: Boxes) -> RegionTexts:
        end = self.dialog.end_token
        texts = [[token for token in branch.ids[branch.answer_start :] if token != end] for branch in branches]
        return RegionTexts(view.to_features(boxes).astype(np.float32), texts)


class Contrast(Pretrain):
    """Encoder and projector learn which text belongs to which region of the batch, and from the distillation by choice.

    The projector's output, ROIAligned to a region and averaged, is contrasted with the mean of the text's token
    embeddings in the frozen language model, which itself is never run: so the same parts learn as in stage 1, from the
    same boxes and texts, and the next stage finds image embeddings that lie among those of words. The contrast is among
    the regions of a micro-batch of one process.
    """

    name = "contrast"

    def __init__(
        self,
        region_model: RegionModel,
        contrast_weight: float = 1.0,
        distill_weight: float = 0.0,
        alpha: float = 0.9,
    ):
        super().__init__(region_model, 0.0, distill_weight, alpha)
        self.contrast_weight = contrast_weight
        self.pair: nn.ParameterDict | None = None
        if contrast_weight > 0:
            start = {"log_scale": math.log(_SCALE), "bias": _BIAS}
            self.pair = nn.ParameterDict({name: nn.Parameter(torch.tensor(value)) for name, value in start.items()})
        else:
            self.projector.requires_grad_(False)  # nothing reaches it

    def forward(self, batch: Batch) -> dict[str, Term]:
        assert batch.pixels is not None
        with section("encode"):
            features = self.region_model.features(batch.pixels)
        terms = {}
        if self.pair is not None:
            with section("head"):
                terms["contrast"] = Term(self._contrast(self.pair, batch, features), "branches", self.contrast_weight)
        if self.teacher is not None:
            with section("head"):
                terms["distill"] = Term(self._distill(self.teacher, batch, features), "crops", self.distill_weight)
        return terms

    def _contrast(self, pair: nn.ParameterDict, batch: Batch, features: Tensor) -> Tensor:
        regions = batch.extra
        assert isinstance(regions, RegionBatch)
        embeds = project(self.model, self.region_model.patches(features))
        seen = region_means(embeds, regions.boxes, regions.image, self.region_model.patch)
        texts = text_means(self.model.get_input_embeddings()(regions.ids), regions.mask)
        ids = regions.ids.masked_fill(~regions.mask, -1)
        same = (ids[:, None] == ids[None]).all(-1)
        return contrast_loss(seen, texts, same, pair["log_scale"].exp(), pair["bias"])

    def flops(self, batch: Batch) -> float | None:
        parts = self.step_flops.of_pictures(batch, projected=self.pair is not None)
        pairs = 0 if self.pair is None else len(batch.tasks) ** 2
        return math.fsum(parts.values()) + 6.0 * pairs * self.model.config.text_config.hidden_size

    def extra_state(self) -> dict[str, Tensor]:
        own = {} if self.pair is None else {f"pair.{name}": value.detach() for name, value in self.pair.items()}
        return {**super().extra_state(), **own}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_extra_state({name: value for name, value in state.items() if not name.startswith("pair.")})
        if self.pair is not None:
            with torch.no_grad():
                for name, value in self.pair.items():
                    value.copy_(state[f"pair.{name}"])
