"""A from-scratch encoder learns what is in a picture, and nothing of where: the stand-in for a pretrained SigLIP."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from granvit.files import staged_folder
from granvit.model.assemble import save_encoder
from granvit.model.packing import IGNORE, Batch
from granvit.model.region_model import RegionModel
from granvit.nano.models import WORDS
from granvit.nano.projector import word_scores
from granvit.nano.symbolic import Grids
from granvit.train.stages.base import AnsweringStage, Term
from granvit.train.stages.config import NO_RUN, RunContext
from granvit.train.timing import section

# How sharp the pooling is: the log-mean-exp of patch scores lies between their mean and their maximum.
_SHARPNESS = 4.0


class EncoderWarmup(AnsweringStage):
    """The encoder learns which words belong to a picture; boxes and language model play no part.

    Every patch scores every token of the vocabulary, a smooth maximum over patches scores the picture, and the
    targets are the tokens of all its answers, as a set. Like the image-text pretraining of SigLIP it knows only
    whole images; what belongs to which region is left for stage 1.

    With word maps (`WordMapSample.word_map`) every patch learns the words that lie in it instead: much more to learn
    from, for corpora of a thousand images in place of millions.
    """

    name = "encoder"

    def __init__(self, region_model: RegionModel, context: RunContext = NO_RUN):
        super().__init__(region_model)
        self._train_encoder()
        width, tokens = self.model.config.vision_config.hidden_size, self.model.config.text_config.vocab_size
        score = nn.Linear(width, tokens)
        nn.init.normal_(score.weight, std=0.02)
        nn.init.constant_(score.bias, -4.0)  # most words are absent from most pictures
        self.head = nn.ModuleDict({"norm": nn.LayerNorm(width), "score": score})
        if (earlier := context.newest(WORDS)) is not None:
            self.head.load_state_dict(load_file(earlier))

    def forward(self, batch: Batch) -> dict[str, Term]:
        """The binary cross-entropy of all tokens, per answer token of the batch; of word maps, per word in them."""
        assert batch.pixels is not None
        with section("encode"):
            features = self.region_model.patches(self.region_model.features(batch.pixels))
        scores = word_scores(features, dict(self.head.named_parameters()))
        if batch.extra is not None:
            maps = word_maps(batch, *scores.shape[1:])
            errors = F.binary_cross_entropy_with_logits(scores.float(), maps, reduction="none").sum((1, 2))
            # A photo is covered with words, a page but with lines: each image counts as much as the next.
            return {"words": Term((errors / maps.sum((1, 2)).clamp(min=1)).sum(), "images")}
        pooled = (torch.logsumexp(_SHARPNESS * scores, dim=1) - math.log(scores.shape[1])) / _SHARPNESS
        errors = F.binary_cross_entropy_with_logits(
            pooled.float(), present_tokens(batch, scores.shape[-1]), reduction="sum"
        )
        return {"tags": Term(errors, "answer_tokens")}

    def flops(self, batch: Batch) -> float | None:
        return None  # a loss of its own, which no published number is about

    def extra_state(self) -> dict[str, Tensor]:
        return dict(self.head.state_dict())

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        self.head.load_state_dict(dict(state))

    def finish(self, folder: Path, write: bool) -> None:
        """Leaves the encoder alone, and the head by which its patches name words."""
        if write:
            words = {name: tensor.cpu().contiguous() for name, tensor in self.extra_state().items()}
            with staged_folder(folder) as unfinished:
                save_encoder(self.region_model, unfinished)
                save_file(words, unfinished / WORDS)


def word_maps(batch: Batch, patches: int, tokens: int) -> Tensor:
    """How much of each patch each token takes up, in [0, 1], float (I, patches, tokens)."""
    grids = batch.extra
    assert isinstance(grids, Grids)
    maps = torch.zeros(len(batch.ids) * patches, tokens, device=batch.labels.device)
    maps.index_put_((grids.patches, grids.words), grids.weights, accumulate=True)
    return maps.clamp(max=1).unflatten(0, (-1, patches))


def present_tokens(batch: Batch, tokens: int) -> Tensor:
    """Which tokens the answers about each image hold, float (I, tokens)."""
    row, column = (batch.labels != IGNORE).nonzero(as_tuple=True)
    blocks = batch.block_ids.amax(1) + 1
    image = (blocks.cumsum(0) - blocks)[row] + batch.block_ids[row, column]
    present = torch.zeros(len(batch.ids), tokens, device=batch.labels.device)
    present[image, batch.labels[row, column]] = 1.0
    return present
