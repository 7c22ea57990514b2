"""What the stages share: a LLaVA that answers packed questions."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Self

from PIL import Image
from torch import Tensor, nn

from granvit.model.answer_loss import AnswerLoss
from granvit.model.attention import use_packed_attention
from granvit.model.families import trained_parameters
from granvit.model.forward import answer_states, frozen
from granvit.model.packing import Batch
from granvit.model.region_model import RegionModel
from granvit.train.flops import StepFlops
from granvit.train.stages.base import Stage, Term
from granvit.train.timing import section


class AnsweringStage(Stage):
    """A LLaVA and a loss on its answers.

    `smoothing` is label smoothing over location bins: the spread of a location token's target, in bins (0: the paper's
    plain loss).
    """

    def __init__(self, region_model: RegionModel, smoothing: float = 0.0):
        super().__init__()
        self.region_model = region_model
        self.model = region_model.llava
        self.answer_loss = AnswerLoss(region_model.processor.tokenizer, region_model.codec, smoothing)
        frozen(self.model)
        use_packed_attention(self.model)

    def _train(self, *modules: nn.Module) -> None:
        for module in modules:
            module.requires_grad_(True)

    def _train_encoder(self) -> None:
        for parameter in trained_parameters(self.tower):
            parameter.requires_grad_(True)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if not any(p.requires_grad for p in self.tower.parameters()):
            self.tower.eval()  # frozen features are those of prediction: no dropout
        return self

    def describe(self, folder: Path) -> None:
        self.region_model.save_parts(folder)

    def picture(self, batch: Batch) -> Image.Image | None:
        from granvit.train.first_batch import draw_batch  # matplotlib, which has the font, is slow to import

        return draw_batch(self.region_model, batch)

    def flops(self, batch: Batch) -> float | None:
        return self.step_flops(batch)

    @cached_property
    def step_flops(self) -> StepFlops:
        """The arithmetic of a step; asked for when what trains is settled."""
        return StepFlops(self)

    @property
    def tower(self) -> nn.Module:
        tower: nn.Module = self.model.model.vision_tower
        return tower

    @property
    def projector(self) -> nn.Module:
        projector: nn.Module = self.model.model.multi_modal_projector
        return projector

    def answers(self, batch: Batch, image_embeds: Tensor) -> Term:
        """The cross-entropy of all answers, given image embeddings (I, P, hidden)."""
        with section("language"):
            states, labels = answer_states(self.model, batch, image_embeds)
        with section("head"):
            return Term(self.answer_loss.of_states(self.model.lm_head, states, labels), "answer_tokens")
