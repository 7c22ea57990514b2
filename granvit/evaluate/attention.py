"""Where an encoder looks from a patch or a box, what looks alike to it, and where an answer's words come from.

A map gives every patch of the canvas a weight. It is the mean over the query's patches, each as the *others* see it: a
patch's own weight on itself is left out, or an encoder that sees nothing but itself would seem to see the region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from granvit.evaluate.patch_encoder import EncoderOutput, PatchEncoder, eager_attention
from granvit.geometry import TiledView, as_boxes
from granvit.model.generate import LONGEST_DESCRIPTION, greedy
from granvit.model.region_model import RegionModel
from granvit.questions import ask_caption

# "The last layers" of an encoder: what is averaged where one map is to stand for it.
LAST_LAYERS = 2

Floats = NDArray[np.float64]


@dataclass
class Maps:
    """The maps of R queries over P patches; weights that no query can give are NaN.

    Attributes:
        attention: (R, P), the mean of all heads of the last layers.
        heads: (R, layers, heads, P).
        similarity: (R, P), the positive part of the cosine between features.
        contrast: (R, P), the same after the picture's mean feature was taken away: what the patches of one picture
            share (often most of their length) no longer counts.
    """

    attention: Floats
    heads: Floats
    similarity: Floats
    contrast: Floats


@dataclass
class QueryMaps:
    """What was seen from one query in one picture, by one encoder.

    `maps` has a single query. `inside` gives, by the name of each map, the share of its mass that lies in the box, and
    `chance` what a map without any preference would give; both are empty for a point. `words` and `word_maps` (W, P),
    the mean of all layers and heads, tell of the answer that the checkpoint gave about the box; a bare encoder gives
    none.
    """

    maps: Maps
    inside: dict[str, float] = field(default_factory=dict)
    chance: float | None = None
    words: list[str] = field(default_factory=list)
    word_maps: Floats | None = None


def maps_of(output: EncoderOutput, queries: Floats) -> Maps:
    """The maps of queries over one picture.

    Args:
        output: of a single canvas.
        queries: (R, P), how much of each patch belongs to the query.
    """
    w = torch.from_numpy(queries).float()
    heads = torch.stack([_as_others_see(layer[0].float().cpu(), w) for layer in output.attentions], dim=1)
    means = {name: _as_others_see(weights, w).double().numpy() for name, weights in patch_weights(output).items()}
    return Maps(heads=heads.double().numpy(), **means)


def patch_weights(output: EncoderOutput) -> dict[str, Tensor]:
    """How much each patch of a single canvas weighs for each, (P, P), by the names of `Maps`."""
    last = torch.stack([layer[0].float().cpu() for layer in output.attentions[-LAST_LAYERS:]])
    features_pd = output.features[0].float().cpu()
    return {
        "attention": last.mean((0, 1)),
        "similarity": _cosines(features_pd),
        "contrast": _cosines(features_pd - features_pd.mean(0)),
    }


def _as_others_see(weights: Tensor, queries: Tensor) -> Tensor:
    """Weights (..., P, P) of each patch on each other, averaged over each query's patches: (R, ..., P)."""
    own = torch.diagonal(weights, dim1=-2, dim2=-1)  # (..., P)
    total = torch.einsum("rq,...qp->r...p", queries, weights) - torch.einsum("rp,...p->r...p", queries, own)
    rest = queries.sum(1, keepdim=True) - queries  # (R, P)
    rest = torch.where(rest > 1e-6, rest, torch.nan).reshape(len(queries), *[1] * (weights.ndim - 2), -1)
    return total / rest


def _cosines(features: Tensor) -> Tensor:
    normed = F.normalize(features, dim=-1)
    return (normed @ normed.T).clamp(min=0)


def share_inside(maps: Floats, inside: Floats, visible: Floats) -> Floats:
    """The share of each map's mass that lies in its box, (R, ...).

    Args:
        maps: (R, ..., P).
        inside: (R, P), how much of each patch the box covers.
        visible: (P,), how much of each patch shows the picture: what falls on padding is left out.
    """
    shape = (len(maps), *[1] * (maps.ndim - 2), -1)
    mass = np.nan_to_num(maps)
    among = (mass * visible).sum(-1)
    return np.divide((mass * inside.reshape(shape)).sum(-1), among, out=np.zeros_like(among), where=among > 0)


def chance_inside(maps: Floats, inside: Floats, visible: Floats) -> Floats:
    """What an even map would have in the box, (R,): the box's share of the picture, less what no query can see.

    `maps` (R, P) says by NaN what that is; `inside` and `visible` as for `share_inside`.
    """
    return share_inside(np.where(np.isnan(maps), np.nan, 1.0), inside, visible)


def point_query(encoder: PatchEncoder, size: tuple[int, int], points: ArrayLike) -> Floats:
    """Points (R, 2) in image pixels -> the patch under each, (R, P). `size` is the picture's (width, height)."""
    at = np.tile(np.asarray(points, dtype=float).reshape(-1, 2), 2)
    column_r, row_r = np.clip(encoder.view(size).to_canvas(at)[:, :2] // encoder.patch, 0, encoder.grid - 1).T
    return np.eye(encoder.grid**2)[(row_r * encoder.grid + column_r).astype(int)]


def visible_part(encoder: PatchEncoder, size: tuple[int, int]) -> Floats:
    """How much of each patch shows the picture of (width, height) pixels, (P,)."""
    return encoder.coverage(encoder.view(size), (0, 0, *size))[0]


def attend_box(encoder: PatchEncoder, picture: Image.Image, box: ArrayLike) -> QueryMaps:
    """What is seen from a box (xyxy image pixels) of an EXIF-upright RGB picture.

    The encoder of a checkpoint is also asked what the box holds, and the words of its answer are looked into.
    """
    inside = encoder.coverage(encoder.view(picture.size), as_boxes(box))
    visible = visible_part(encoder, picture.size)
    maps = maps_of(encoder.encode(encoder.show([picture])), inside)
    named = {"attention": maps.attention, "similarity": maps.similarity, "contrast": maps.contrast}
    seen = QueryMaps(
        maps,
        {name: float(share_inside(m, inside, visible)[0]) for name, m in named.items()},
        float(chance_inside(maps.attention, inside, visible)[0]),
    )
    if encoder.model is not None:
        _add_words(seen, encoder.model, picture, box)
        if seen.word_maps is not None:
            seen.inside["words"] = float(share_inside(seen.word_maps.mean(0, keepdims=True), inside, visible)[0])
    return seen


def _add_words(seen: QueryMaps, model: RegionModel, picture: Image.Image, box: ArrayLike) -> None:
    view = model.view(picture.size)
    question = model.dialog.ask(ask_caption(view.to_relative(box, model.settings.frame)[0], model.codec))
    answer = greedy(model, model.show(picture), [[question]], LONGEST_DESCRIPTION, views=[view])[0][0]
    if answer:
        weights = answer_attention(model, picture, [question], [answer])[0]
        seen.words, spans = words_of(model, answer)
        seen.word_maps = np.stack([weights[:, :, a:b].mean((0, 1, 2)) for a, b in spans])


def attend_point(encoder: PatchEncoder, picture: Image.Image, point: ArrayLike) -> QueryMaps:
    """What is seen from the patch under a point (x, y) in image pixels."""
    return QueryMaps(maps_of(encoder.encode(encoder.show([picture])), point_query(encoder, picture.size, point)))


@torch.inference_mode()
def answer_attention(
    model: RegionModel, picture: Image.Image, questions: Sequence[list[int]], answers: Sequence[list[int]]
) -> list[Floats]:
    """How much each answer token, at the moment it is said, draws on each patch.

    Of a picture in tiles the overview's patches count with what the tiles show of the same ground.

    Args:
        picture: EXIF-upright RGB.
        questions, answers: R each, tokenised; no answer is empty.

    Returns:
        R arrays (layers, heads, tokens, P).
    """
    dialog, language = model.dialog, model.llava.model.language_model
    view = model.view(picture.size)
    prefix_ids = dialog.prefix(model.tokens_of(view))
    prefix = len(prefix_ids)
    rows = [[*prefix_ids, *q, *a] for q, a in zip(questions, answers, strict=True)]
    longest = max(map(len, rows))
    # Padded on the right, where a causal model's real tokens never look.
    ids = torch.tensor([[*row, *[dialog.pad_token] * (longest - len(row))] for row in rows], device=model.device)
    embeds = language.get_input_embeddings()(ids)
    is_image = ids == dialog.image_token
    is_image[:, prefix:] = False
    images = model.arranged(model.embed(model.show(picture).to(model.device)), [view]).to(embeds.dtype)
    images = images.reshape(1, -1, images.shape[-1])
    embeds = embeds.masked_scatter(is_image[..., None], images.expand(len(rows), -1, -1))
    with eager_attention(language):
        layers = language(inputs_embeds=embeds, output_attentions=True, use_cache=False).attentions
    found = []
    for row, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        # The position before a token is the one that says it.
        first = prefix + len(question) - 1
        said = torch.stack([layer[row, :, first : first + len(answer)] for layer in layers])
        weights = said[..., is_image[row]].double().cpu().numpy()
        if isinstance(view, TiledView):
            found.append(weights @ view.shares(model.grid))
        else:
            found.append(weights[..., -(model.grid**2) :])  # registers come first
    return found


def words_of(model: RegionModel, answer: list[int]) -> tuple[list[str], list[tuple[int, int]]]:
    """An answer's words, and which of its tokens (from, to) make each of them."""
    pieces = [model.processor.tokenizer.decode(answer[: n + 1]) for n in range(len(answer))]
    words: list[str] = []
    spans: list[tuple[int, int]] = []
    before = ""
    for n, text in enumerate(pieces):
        piece, before = text[len(before) :], text
        if not words or piece[:1].isspace() or not piece.strip():
            words.append(piece.strip())
            spans.append((n, n + 1))
        else:
            words[-1] += piece
            spans[-1] = (spans[-1][0], n + 1)
    return words, spans
