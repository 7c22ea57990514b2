"""A fresh projector is fitted to what the parts of a preset already know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from granvit.corpus.synthetic.synthesize import make
from granvit.images import decode
from granvit.model.families import patches_of
from granvit.model.forward import Llava, encode
from granvit.model.region_model import RegionModel
from granvit.sampling import evenly
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
        drawn = (make(index, seed=0, size=model.canvas, documents=0.1).image or b"" for index in range(pictures))
        canvases = torch.from_numpy(np.stack([np.asarray(decode(picture)) for picture in drawn]))
    targets = places.expand(len(canvases), -1, -1)
    if words is not None:
        with torch.no_grad():
            embeddings: Tensor = model.llava.get_input_embeddings().weight
            found = word_scores(model.patches(model.features(canvases)), words).sigmoid()
            # What all patches say alike tells nothing of the place.
            found = 2 * (found - found.mean(dim=1, keepdim=True)).clamp(min=0)
            targets = targets + found @ embeddings[: found.shape[-1]]
    fit_projector(model.llava, model.normalise(canvases), targets)


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
    linear = _least_squares(features, wanted)
    predicted = _with_one(features) @ linear
    mix = torch.linalg.qr(torch.randn(predicted.shape[1], predicted.shape[1])).Q / predicted.std(0)[:, None]
    first = (linear - torch.cat([torch.zeros_like(linear[:-1]), predicted.mean(0, keepdim=True)])) @ mix
    projector.linear_1.weight.copy_(first[:-1].T)
    projector.linear_1.bias.copy_(first[-1])
    last = _least_squares(projector.act(projector.linear_1(features)), wanted)
    projector.linear_2.weight.copy_(last[:-1].T)
    projector.linear_2.bias.copy_(last[-1])


def _with_one(inputs: Tensor) -> Tensor:
    return torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)


def _least_squares(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Weights and, in the last row, the bias of the best linear map: (D + 1, H)."""
    return torch.linalg.lstsq(_with_one(inputs), outputs, driver="gelsd").solution
