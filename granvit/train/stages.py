"""The four stages: which parts train, and by which losses. What they ask is `SampleConfig`'s."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from granvit.errors import GranvitError
from granvit.model.answer_loss import AnswerLoss
from granvit.model.attention import use_packed_attention
from granvit.model.distill import Teacher, distillation_loss
from granvit.model.families import trained_parameters
from granvit.model.forward import answer_states, frozen, project
from granvit.model.packing import Batch
from granvit.model.presets import patch_code
from granvit.model.region_model import RegionModel
from granvit.train.feature_cache import FeatureCache
from granvit.train.flops import StepFlops
from granvit.train.sharding import is_sharded
from granvit.train.stage import Stage, Term
from granvit.train.timing import section


class AnsweringStage(Stage):
    """What the stages share: a LLaVA that answers packed questions.

    `smoothing` spreads the target of a location token over its neighbours, in bins (0: the paper's plain loss).
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


class LanguageWarmup(AnsweringStage):
    """A from-scratch language model learns to look things up in symbolic images; nothing else trains.

    It stands in for the paper's pretrained language model (from-scratch presets only). `noise` is the standard
    deviation added to the symbolic image, in standard deviations of the word embeddings. `blur` in [0, 1] mixes
    other words into what an image holds and makes it fainter: an encoder that is still learning speaks just so,
    and a language model that has only seen clear images gives it nearly no gradient to learn from. `smear` in [0, 1]
    spreads words over the patches around them, as an encoder's attention does.
    """

    name = "warmup"

    def __init__(
        self,
        region_model: RegionModel,
        smoothing: float = 0.0,
        noise: float = 0.3,
        blur: float = 0.0,
        smear: float = 0.0,
    ):
        super().__init__(region_model, smoothing)
        if region_model.image_tokens != region_model.grid**2:
            raise GranvitError("symbolic images have patches alone, and this encoder has register tokens before them")
        self.noise, self.blur, self.smear = noise, blur, smear
        self._train(self.model.model.language_model, self.model.lm_head)
        self.register_buffer("code", patch_code(region_model.grid), persistent=False)
        width = self.model.config.text_config.hidden_size
        self.place = nn.Linear(self.get_buffer("code").shape[1], width)
        nn.init.normal_(self.place.weight, std=0.02)
        if region_model.places is not None:  # a second warm-up goes on from the first one's places
            self._start_from(region_model.places)

    def forward(self, batch: Batch) -> dict[str, Term]:
        with section("encode"):
            embeds = self.symbolic_embeds(batch)
        return {"answer": self.answers(batch, embeds)}

    def symbolic_embeds(self, batch: Batch) -> Tensor:
        """Word embeddings summed per patch, blurred, plus the patch's place, plus noise: (I, P, hidden)."""
        assert batch.grid_patches is not None and batch.grid_words is not None and batch.grid_weights is not None
        places, images = self.places(), len(batch.ids)
        # Squared, so that most images are rather clear: unclear ones alone would teach slowly.
        unclear = self.blur * torch.rand(images, device=places.device).square()
        held = self._mixed(batch.grid_words, batch.grid_patches // len(places), unclear)
        total = torch.zeros(images * len(places), held.shape[1], device=held.device, dtype=held.dtype)
        grid = total.index_add(0, batch.grid_patches, held * batch.grid_weights[:, None])
        grid = grid.unflatten(0, (images, -1)) * (1 - unclear * torch.rand_like(unclear))[:, None, None]
        if self.smear:
            grid = self._smeared(grid)
        words: Tensor = self.model.get_input_embeddings().weight
        return grid + places + self.noise * words.detach().std() * torch.randn_like(grid)

    def _smeared(self, grid: Tensor) -> Tensor:
        """Each image (I, P, hidden) mixed with its own mean over 5 x 5 patches, to a share drawn for the image."""
        side = math.isqrt(grid.shape[1])
        maps = grid.transpose(1, 2).unflatten(2, (side, side))
        around = F.avg_pool2d(maps, 5, stride=1, padding=2).flatten(2).transpose(1, 2)
        share = self.smear * torch.rand(len(grid), 1, 1, device=grid.device)
        return (1 - share) * grid + share * around

    def _mixed(self, words: Tensor, image: Tensor, unclear: Tensor) -> Tensor:
        """Embeddings of grid entries, (K, hidden): each word of each image mixed with two others of the batch."""
        embeddings: Tensor = self.model.get_input_embeddings().weight
        pairs, which = torch.unique(torch.stack([image, words]), dim=1, return_inverse=True)
        others = words[torch.randint(len(words), (2, pairs.shape[1]), device=words.device)]
        doubt = (unclear[pairs[0]] * torch.rand(pairs.shape[1], device=words.device))[:, None]
        mixed: Tensor = (1 - doubt) * embeddings[pairs[1]] + doubt * embeddings[others].mean(0)
        return mixed[which]

    def places(self) -> Tensor:
        """What the language model is shown as each patch's place, (P, hidden)."""
        places: Tensor = self.place(self.get_buffer("code"))
        return places

    @torch.no_grad()
    def _start_from(self, places: Tensor) -> None:
        code = self.get_buffer("code")
        # In float64 and by singular values: the codes of a small grid are far from independent.
        system = torch.cat([code, torch.ones(len(code), 1)], dim=1).double()
        solution = torch.linalg.lstsq(system, places.double(), driver="gelsd").solution
        self.place.weight.copy_(solution[:-1].T)
        self.place.bias.copy_(solution[-1])

    def extra_state(self) -> dict[str, Tensor]:
        return dict(self.place.state_dict())

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        self.place.load_state_dict(dict(state))


class Pretrain(AnsweringStage):
    """Stage 1 (paper, section 3.3): encoder and projector learn through the frozen language model.

    L = L_caption + `distill_weight` * MSE(teacher(crop), ROIAlign(student(image))); the teacher is an EMA of the
    student that keeps `alpha` of itself per step (paper: weight 1, alpha 0.9).
    """

    name = "stage1"

    def __init__(
        self, region_model: RegionModel, smoothing: float = 0.0, distill_weight: float = 1.0, alpha: float = 0.9
    ):
        super().__init__(region_model, smoothing)
        self.distill_weight = distill_weight
        self._train(self.projector)
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
        features = self.region_model.patches(features)
        return distillation_loss(target, features, batch.crop_boxes, batch.crop_image, self.region_model.patch)

    def after_step(self) -> None:
        if self.teacher is not None:
            self.teacher.update(self.tower)

    def extra_state(self) -> dict[str, Tensor]:
        return {} if self.teacher is None else dict(self.teacher.tower.state_dict())

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        if self.teacher is not None:
            self.teacher.tower.load_state_dict(dict(state))


class Adapt(AnsweringStage):
    """Stage 2 (paper, section 3.4): the encoder is frozen, projector and language model learn to find regions.

    Features are computed without a graph, so the tower costs a forward pass and no activation memory; `cache`, where
    set, keeps them for the next time a picture comes up.
    """

    name = "stage2"

    def __init__(self, region_model: RegionModel, smoothing: float = 0.0):
        super().__init__(region_model, smoothing)
        self.cache: FeatureCache | None = None
        self._train(self.projector, self.model.model.language_model, self.model.lm_head)

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


class Finetune(AnsweringStage):
    """Supervised fine-tuning: projector and language model learn all questions; the encoder too by choice."""

    name = "finetune"

    def __init__(self, region_model: RegionModel, smoothing: float = 0.0, train_encoder: bool = False):
        super().__init__(region_model, smoothing)
        self.train_encoder = train_encoder
        self._train(self.projector, self.model.model.language_model, self.model.lm_head)
        if train_encoder:
            self._train_encoder()

    def forward(self, batch: Batch) -> dict[str, Term]:
        assert batch.pixels is not None
        with section("encode"):
            with torch.set_grad_enabled(self.train_encoder and torch.is_grad_enabled()):
                features = self.region_model.features(batch.pixels)
            embeds = project(self.model, features)
        return {"answer": self.answers(batch, embeds)}
