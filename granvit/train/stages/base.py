"""What the training loop knows of a stage: a batch goes in, named loss terms come out.

`Stage` is all that the loop knows; `AnsweringStage` is what the stages share: a LLaVA that answers packed questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from PIL import Image
from torch import Tensor, nn
from transformers import LlavaNextForConditionalGeneration

from granvit.model.attention import use_packed_attention
from granvit.model.families import trained_parameters
from granvit.model.forward import AnswerLoss, answer_states, frozen
from granvit.model.locations import train_all_rows
from granvit.model.packing import Batch
from granvit.model.region_model import RegionModel
from granvit.train.lora import adapter_parameters, trained_names
from granvit.train.timing import StepFlops, section

if TYPE_CHECKING:
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

    def keeps(self, name: str) -> bool:
        """Whether a checkpoint holds this tensor of `model`.

        What it leaves out never changes, and is there when the run goes on.
        """
        return True

    def extra_state(self) -> dict[str, Tensor]:
        """Tensors besides the student that a resumed run needs, e.g. the EMA teacher.

        Names and shapes are the same from construction on.
        """
        return {}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what `extra_state` gave."""

    def finish(self, folder: Path, write: bool) -> None:
        """Runs on every rank when the stage is trained, and may change the model that the next stage begins with.

        What a later stage goes on from is left as files in `folder`, by the rank that is to `write`.
        """

    def describe(self, folder: Path) -> None:
        """Writes what of the model no tensor tells (config, tokenizer), so that a failing step can be taken again."""

    def picture(self, batch: Batch) -> Image.Image | None:
        """A batch as people can check it; None where it can't be drawn."""
        return None

    def flops(self, batch: Batch) -> float | None:
        """The arithmetic that a training step on this batch needs; None where nobody has counted it."""
        return None


class AnsweringStage(Stage):
    """A LLaVA and a loss on its answers.

    `smoothing` is label smoothing over location bins: the spread of a location token's target, in bins (0: the paper's
    plain loss). Of a language model with adapters (`granvit.train.lora`) these train, and are kept, in its place.
    """

    def __init__(self, region_model: RegionModel, smoothing: float = 0.0):
        super().__init__()
        self.region_model = region_model
        self.model = region_model.llava
        self.answer_loss = AnswerLoss(region_model.processor.tokenizer, region_model.codec, smoothing)
        self.adapters = adapter_parameters(self.model)
        frozen(self.model)
        train_all_rows(self.model.get_input_embeddings().weight)  # where an earlier stage trained some alone
        use_packed_attention(self.model)

    def _train(self, *modules: nn.Module) -> None:
        for module in modules:
            module.requires_grad_(True)
        # The one image embedding that no projector makes; no part of a model, which is what an adapter holds whole.
        if self.projector in modules and isinstance(self.model, LlavaNextForConditionalGeneration):
            self.model.model.image_newline.requires_grad_(not self.adapters)

    def _train_language(self) -> None:
        for parameter in self.adapters:
            parameter.requires_grad_(True)
        if not self.adapters:
            self._train(self.model.model.language_model, self.model.lm_head)

    def _train_encoder(self) -> None:
        for parameter in trained_parameters(self.tower):
            parameter.requires_grad_(True)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if not any(p.requires_grad for p in self.tower.parameters()):
            self.tower.eval()  # frozen features are those of prediction: no dropout
        return self

    def keeps(self, name: str) -> bool:
        return not self.adapters or name in self._trained

    @cached_property
    def _trained(self) -> set[str]:
        return trained_names(self.model)

    def describe(self, folder: Path) -> None:
        self.region_model.save_parts(folder)

    def picture(self, batch: Batch) -> Image.Image | None:
        from granvit.train.debug.first_batch import draw_batch  # matplotlib, which has the font, is slow to import

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
        """The cross-entropy of all answers, given the embeddings of the images' canvases (K, P, hidden)."""
        image_embeds = self.region_model.arranged(image_embeds, batch.views)
        with section("language"):
            states, labels = answer_states(self.model, batch, image_embeds)
        with section("head"):
            return Term(self.answer_loss.of_states(self.model.lm_head, states, labels), "answer_tokens")
