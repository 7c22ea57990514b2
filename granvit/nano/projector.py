"""A fresh projector is fitted to what the parts of a preset already know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from granvit.model.families import patches_of
from granvit.model.forward import Llava, encode
from granvit.model.locations import least_squares, place_codes, with_one
from granvit.model.region_model import RegionModel
from granvit.sampling import evenly
from granvit.train.build import drawn_canvases
from granvit.train.config import SampleConfig
from granvit.train.feed import Records, Reject
from granvit.train.prepare import Prepare

# On so many pictures of each corpus a projector is fitted.
_FITTED_ON = 64


def start_projector(
    model: RegionModel,
    places: Tensor,
    words: Mapping[str, Tensor] | None = None,
    canvases: Tensor | None = None,
    pictures: int = 64,
) -> None:
    """Fit the fresh projector to what the parts of a preset already know, on pictures of the embedded corpus.

    Every patch says the place that the language model was shown for it and, where the encoder comes with the head of
    its warm-up, the words which that head finds there rather than elsewhere.

    Args:
        places: what the language model was shown as each patch's place, (P, hidden).
        words: the head of the encoder's warm-up.
        canvases: other pictures than those, uint8 (N, H, W, 3).
        pictures: how many of the embedded corpus.
    """
    if canvases is None:
        canvases = drawn_canvases(model.canvas, pictures)
    targets = places.expand(len(canvases), -1, -1)
    if words is not None:
        embeddings: Tensor = model.llava.get_input_embeddings().weight
        found = found_words(model, words, canvases)
        targets = targets + found @ embeddings[: found.shape[-1]].detach()
    fit_projector(model.llava, model.normalise(canvases), targets)


def start_foreign(model: RegionModel, words: Mapping[str, Tensor], tokenizer: PreTrainedTokenizerBase) -> None:
    """Fit the fresh projector where the language model is none of the presets', and has new location tokens.

    Every patch says the code of its place (`place_codes`) and, as loudly, the words that the encoder's head finds
    there, in the embeddings that the language model has of them.

    Args:
        words: the head of the encoder's warm-up.
        tokenizer: that of the warm-up, by whose tokens the head counts.
    """
    canvases = drawn_canvases(model.canvas)
    weight = model.llava.get_input_embeddings().weight.detach()
    said = found_words(model, words, canvases) @ _spelled(model, tokenizer, len(words["score.weight"]))
    codes = place_codes(model.grid, weight.shape[1]).to(weight)
    targets = (codes + said / said.std().clamp(min=1e-8)) * weight.std()
    fit_projector(model.llava, model.normalise(canvases), targets)


@torch.no_grad()
def _spelled(model: RegionModel, tokenizer: PreTrainedTokenizerBase, count: int) -> Tensor:
    """The embeddings that the model's words have of another tokenizer's first tokens, (count, hidden).

    Of a token that takes several of the model's it is their mean.
    """
    weight = model.llava.get_input_embeddings().weight
    texts = [tokenizer.decode([i]).strip() for i in range(count)]
    ids = model.dialog.plain.encode([f" {text}" if text else "" for text in texts])
    nothing = weight.new_zeros(weight.shape[1])
    return torch.stack([weight[each].mean(0) if each else nothing for each in ids])


@torch.no_grad()
def found_words(model: RegionModel, words: Mapping[str, Tensor], canvases: Tensor) -> Tensor:
    """How much each patch shows each word rather than what all patches of the picture show: (N, P, tokens), 0 to 2."""
    found = word_scores(model.patches(model.features(canvases)), words).sigmoid()
    # What all patches say alike tells nothing of the place.
    return 2 * (found - found.mean(dim=1, keepdim=True)).clamp(min=0)


def corpus_canvases(
    model: RegionModel, sample: SampleConfig, sources: Sequence[tuple[Records, float]], seed: int
) -> Tensor | None:
    """Pictures of the corpora as a stage that looks at them would see them; None where nothing is drawn."""
    prepare, rng = Prepare(model, sample), np.random.default_rng(seed)
    canvases = []
    for records, _ in sources:
        for index in evenly(range(len(records)), _FITTED_ON):
            with suppress(Reject):
                canvases.append(np.asarray(prepare(records[index], rng).pixels))
    return torch.from_numpy(np.stack(canvases)) if canvases else None


def word_scores(features: Tensor, head: Mapping[str, Tensor]) -> Tensor:
    """How much each patch looks like each word, as logits: features (N, P, D) -> (N, P, tokens)."""
    normed = F.layer_norm(features, features.shape[-1:], head["norm.weight"], head["norm.bias"])
    return F.linear(normed, head["score.weight"], head["score.bias"])


@torch.no_grad()
def fit_projector(llava: Llava, pictures: Tensor, targets: Tensor) -> None:
    """Set a fresh projector so that it says `targets` of `pictures`, as well as least squares can.

    The first layer mixes what a linear map of the features predicts of the targets, the last one is fitted behind it.

    Args:
        pictures: normalised canvases, (N, 3, H, W).
        targets: the image embedding wanted of each patch, (N, P, hidden).
    """
    projector = llava.model.multi_modal_projector
    features = patches_of(llava.config.vision_config, encode(llava.model.vision_tower, pictures)).flatten(0, 1)
    wanted = targets.flatten(0, 1)
    linear = least_squares(features, wanted)
    predicted = with_one(features) @ linear
    mix = torch.linalg.qr(torch.randn(predicted.shape[1], predicted.shape[1])).Q / predicted.std(0)[:, None]
    first = (linear - torch.cat([torch.zeros_like(linear[:-1]), predicted.mean(0, keepdim=True)])) @ mix
    projector.linear_1.weight.copy_(first[:-1].T)
    projector.linear_1.bias.copy_(first[-1])
    last = least_squares(projector.act(projector.linear_1(features)), wanted)
    projector.linear_2.weight.copy_(last[:-1].T)
    projector.linear_2.bias.copy_(last[-1])
