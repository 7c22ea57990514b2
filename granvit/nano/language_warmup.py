"""A from-scratch language model learns to look things up, in symbolic images: the stand-in for a pretrained one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from granvit.errors import GranvitError
from granvit.files import staged_folder
from granvit.model.assemble import save_language
from granvit.model.locations import patch_fourier_features
from granvit.model.packing import Batch
from granvit.model.region_model import RegionModel
from granvit.nano.models import PLACES, WORDS
from granvit.nano.projector import start_projector
from granvit.nano.symbolic import Grids
from granvit.train.stages.base import AnsweringStage, Term
from granvit.train.stages.config import NO_RUN, RunContext
from granvit.train.timing import section


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
        context: RunContext = NO_RUN,
        canvases: Callable[[], Tensor | None] = lambda: None,
    ):
        """`canvases` makes the pictures on which the projector is fitted afterwards; None are the embedded corpus's."""
        super().__init__(region_model, smoothing)
        if region_model.image_tokens != region_model.grid**2:
            raise GranvitError("symbolic images have patches alone, and this encoder has register tokens before them")
        self.noise, self.blur, self.smear = noise, blur, smear
        self._train(self.model.model.language_model, self.model.lm_head)
        self.register_buffer("code", patch_fourier_features(region_model.grid), persistent=False)
        width = self.model.config.text_config.hidden_size
        self.place = nn.Linear(self.get_buffer("code").shape[1], width)
        nn.init.normal_(self.place.weight, std=0.02)
        self._context, self._canvases = context, canvases
        if (earlier := context.newest(PLACES)) is not None:  # a second warm-up goes on from the first one's places
            self._start_from(load_file(earlier)["places"])

    def forward(self, batch: Batch) -> dict[str, Term]:
        with section("encode"):
            embeds = self.symbolic_embeds(batch)
        return {"answer": self.answers(batch, embeds)}

    def symbolic_embeds(self, batch: Batch) -> Tensor:
        """Word embeddings summed per patch, blurred, plus the patch's place, plus noise: (I, P, hidden)."""
        grids = batch.extra
        assert isinstance(grids, Grids)
        places, images = self.places(), len(batch.ids)
        # Squared, so that most images are rather clear: unclear ones alone would teach slowly.
        unclear = self.blur * torch.rand(images, device=places.device).square()
        held = self._mixed(grids.words, grids.patches // len(places), unclear)
        total = torch.zeros(images * len(places), held.shape[1], device=held.device, dtype=held.dtype)
        grid = total.index_add(0, grids.patches, held * grids.weights[:, None])
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
        if not len(words):  # a batch of pictures without regions
            return embeddings[words]
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

    def finish(self, folder: Path, write: bool) -> None:
        """Fits the projector to what language model and encoder know now, and leaves the language model alone."""
        places = self.places().detach().cpu()
        words = self._context.newest(WORDS)
        self.model.cpu()  # least squares are solved there
        start_projector(self.region_model, places, None if words is None else load_file(words), self._canvases())
        if write:
            with staged_folder(folder) as unfinished:
                save_language(self.region_model, unfinished)
                save_file({"places": places.contiguous()}, unfinished / PLACES)

    def picture(self, batch: Batch) -> Image.Image | None:
        from granvit.nano.drawing import SymbolicReader
        from granvit.train.debug.first_batch import draw_batch

        return draw_batch(self.region_model, batch, reader=SymbolicReader())
