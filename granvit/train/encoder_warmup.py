"""A from-scratch encoder learns what is in a picture, and nothing of where: the stand-in for a pretrained SigLIP."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from granvit.model.packing import IGNORE, Batch
from granvit.model.region_model import RegionModel
from granvit.train.stage import Term
from granvit.train.stages import AnsweringStage
from granvit.train.timing import section

# How sharp the pooling is: the log-mean-exp of patch scores lies between their mean and their maximum.
_SHARPNESS = 4.0


class EncoderWarmup(AnsweringStage):
    """The encoder learns which words belong to a picture; boxes and language model play no part.

    Every patch scores every token of the vocabulary, a smooth maximum over patches scores the picture, and the
    targets are the tokens of all its answers, as a set. Like the image-text pretraining of SigLIP it knows only
    whole images; what belongs to which region is left for stage 1.

    With word maps (`SampleConfig.word_map`) every patch learns the words that lie in it instead: much more to learn
    from, for corpora of a thousand images in place of millions.
    """

    name = "encoder"

    def __init__(self, region_model: RegionModel):
        super().__init__(region_model)
        self._train_encoder()
        width, tokens = self.model.config.vision_config.hidden_size, self.model.config.text_config.vocab_size
        score = nn.Linear(width, tokens)
        nn.init.normal_(score.weight, std=0.02)
        nn.init.constant_(score.bias, -4.0)  # most words are absent from most pictures
        self.head = nn.ModuleDict({"norm": nn.LayerNorm(width), "score": score})
        if region_model.words is not None:  # an earlier warm-up's
            self.head.load_state_dict(region_model.words)

    def forward(self, batch: Batch) -> dict[str, Term]:
        """The binary cross-entropy of all tokens, per answer token of the batch; of word maps, per word in them."""
        assert batch.pixels is not None
        with section("encode"):
            features = self.region_model.patches(self.region_model.features(batch.pixels))
        scores = word_scores(features, dict(self.head.named_parameters()))
        if batch.grid_patches is not None:
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


def word_scores(features: Tensor, head: Mapping[str, Tensor]) -> Tensor:
    """How much each patch looks like each word, as logits: features (N, P, D) -> (N, P, tokens)."""
    normed = F.layer_norm(features, features.shape[-1:], head["norm.weight"], head["norm.bias"])
    return F.linear(normed, head["score.weight"], head["score.bias"])


def word_maps(batch: Batch, patches: int, tokens: int) -> Tensor:
    """How much of each patch each token takes up, in [0, 1], float (I, patches, tokens)."""
    assert batch.grid_patches is not None and batch.grid_words is not None and batch.grid_weights is not None
    maps = torch.zeros(len(batch.ids) * patches, tokens, device=batch.labels.device)
    maps.index_put_((batch.grid_patches, batch.grid_words), batch.grid_weights, accumulate=True)
    return maps.clamp(max=1).unflatten(0, (-1, patches))


def present_tokens(batch: Batch, tokens: int) -> Tensor:
    """Which tokens the answers about each image hold, float (I, tokens)."""
    row, column = (batch.labels != IGNORE).nonzero(as_tuple=True)
    blocks = batch.block_ids.amax(1) + 1
    image = (blocks.cumsum(0) - blocks)[row] + batch.block_ids[row, column]
    present = torch.zeros(len(batch.ids), tokens, device=batch.labels.device)
    present[image, batch.labels[row, column]] = 1.0
    return present
