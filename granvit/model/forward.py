"""What all stages compute: pixels -> patch features -> image embeddings -> logits of the answers -> their loss."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import LlavaForConditionalGeneration, LlavaNextForConditionalGeneration, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from granvit.coordinates import Codec
from granvit.errors import GranvitError
from granvit.geometry import TiledView
from granvit.model.attention import fit_attention
from granvit.model.families import body_of, family_of
from granvit.model.packing import Batch

# An image is shown on one canvas (LLaVA), or on several (LLaVA-NeXT).
Llava: TypeAlias = LlavaForConditionalGeneration | LlavaNextForConditionalGeneration


def normalise(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (N, H, W, 3) -> float32 (N, 3, H, W), as the stock image processor normalises."""
    scaled = pixels.to(mean.dtype) * (1 / 255)
    return ((scaled - mean) / std).permute(0, 3, 1, 2)


def encode(tower: nn.Module, pixels: Tensor, resized: bool = False) -> Tensor:
    """A tower's image tokens as stock LLaVA reads them: register tokens, if it has any, then patches, (N, R + P, D).

    Stock LLaVA never applies the tower's last norm, so neither do we: features behind it could not be exported.
    `resized` fits the positions to another canvas size (teacher crops).
    """
    body = body_of(tower)
    family = family_of(body.config)
    tokens = family.tokens(body, pixels, resized)
    return tokens[:, 1:] if family.class_token else tokens


def answer_states(llava: Llava, batch: Batch, image_embeds: Tensor) -> tuple[Tensor, Tensor]:
    """The packed forward up to the LM head: states (A, hidden) that predict the A answer tokens, and these (A,).

    `image_embeds` is (I, P, D), or those of all images one after the other, projected.

    Raises:
        ValueError: the language model's attention can't take a packed mask (see `fit_attention`), or the number of
            image positions and features differ.
    """
    language = llava.model.language_model
    batch, attention = fit_attention(language, batch)
    embedded = language.get_input_embeddings()(batch.input_ids)
    flat = image_embeds.reshape(-1, image_embeds.shape[-1]).to(embedded.dtype)
    if batch.image_positions != len(flat):
        raise ValueError(f"{batch.image_positions} image positions but {len(flat)} features in {batch.ids[:4]}...")
    embedded = embedded.masked_scatter(batch.is_image[..., None], flat)
    hidden = language(
        inputs_embeds=embedded, position_ids=batch.position_ids, use_cache=False, **attention
    ).last_hidden_state
    answers = batch.answer_positions()
    return hidden[answers], batch.labels[answers]


def answer_logits(llava: Llava, batch: Batch, image_embeds: Tensor) -> tuple[Tensor, Tensor]:
    """The packed forward: logits (A, V) of the A answer tokens, and the tokens themselves (A,).

    Only positions that predict an answer token reach the LM head. Raises as `answer_states` does.
    """
    states, labels = answer_states(llava, batch, image_embeds)
    return llava.lm_head(states), labels


def project(llava: Llava, features: Tensor) -> Tensor:
    """Patch features (N, P, D) -> image embeddings (N, P, hidden size of the language model)."""
    embeds: Tensor = llava.model.multi_modal_projector(features)
    return embeds


def mosaic(tiles: Tensor, view: TiledView) -> Tensor:
    """Patches (N, P, D) of a view's N tiles, side by side as in the picture: (rows, columns, D)."""
    columns, rows = view.grid
    side = math.isqrt(tiles.shape[1])
    return tiles.unflatten(1, (side, side)).unflatten(0, (rows, columns)).transpose(1, 2).flatten(2, 3).flatten(0, 1)


def arrange(embeds: Tensor, views: Sequence[TiledView], row_end: Tensor) -> Tensor:
    """The embeddings of tiled images as LLaVA-NeXT puts them one after the other: (tokens of all, hidden).

    Args:
        embeds: (K, P, hidden), of every image its overview and its tiles, row by row.
        row_end: (hidden,), stands behind each row of the mosaic, of which no padding is kept.
    """
    parts = [row_end[None, :].to(embeds.dtype)[:0], embeds[:0].flatten(0, 1)]  # gradients of zero, where all is text
    side = math.isqrt(embeds.shape[1])
    for each, view in zip(embeds.split([view.count for view in views]) if views else (), views, strict=True):
        left, top, right, bottom = view.unpadded(side)
        shown = mosaic(each[1:], view)[top:bottom, left:right]
        ends = row_end.to(embeds.dtype).expand(len(shown), 1, -1)
        parts += [each[0], torch.cat([shown, ends], 1).flatten(0, 1)]
    return torch.cat(parts)


def frozen(module: nn.Module) -> nn.Module:
    """The module without gradients, in evaluation mode."""
    return module.requires_grad_(False).eval()


@torch.no_grad()
def scale_projector(llava: Llava, features: Tensor) -> None:
    """Scale a fresh projector so that its output has the size of word embeddings.

    `features` (N, P, D) are any patch features of the tower. Without this a small frozen language model sees
    image tokens whose RMS is far from that of words, and the first hundred steps only mend that.
    """
    words = llava.get_input_embeddings().weight
    last = llava.model.multi_modal_projector.linear_2
    ratio = words.std() / project(llava, features).std().clamp(min=1e-8)
    last.weight.mul_(ratio)
    last.bias.zero_()


@torch.no_grad()
def image_token_norm(llava: Llava, features: Tensor) -> float:
    """How large the image tokens of patch features (N, P, D) are beside words: the RMS of both embeddings, as a ratio.

    A pre-norm language model adds to its residual stream; to tokens a hundred times as large as words it adds in vain,
    and cannot locate by them.
    """
    words = llava.get_input_embeddings().weight.float()
    return float(project(llava, features).float().square().mean().sqrt() / words.square().mean().sqrt())


# Activations of a block are kept (False) or computed again from its input when their gradients are (True).
_recompute = partial(checkpoint, use_reentrant=False)


def blocks_of(module: nn.Module) -> list[GradientCheckpointingLayer]:
    """The transformer blocks in a module, in order."""
    return [part for part in module.modules() if isinstance(part, GradientCheckpointingLayer)]


@contextmanager
def recomputed(modules: Collection[nn.Module]) -> Iterator[None]:
    """Within, the blocks of these modules keep only their inputs for the backward pass (activation checkpointing).

    It concerns blocks in training mode alone, which in a stage are all but those of a frozen tower and of a teacher:
    a frozen language model too, since gradients pass through it.

    Raises:
        ValueError: a module has no such blocks.
    """
    found = [blocks_of(module) for module in modules]
    if not all(found):
        raise ValueError("gradient checkpointing: a model without transformer blocks that can be recomputed")
    blocks: list[Any] = [block for each in found for block in each]
    for block in blocks:
        block._gradient_checkpointing_func, block.gradient_checkpointing = _recompute, True
    try:
        yield
    finally:
        for block in blocks:
            block.gradient_checkpointing = False


@contextmanager
def compiled(module: nn.Module, **options: Any) -> Iterator[None]:
    """Within, every block in a module runs compiled by `torch.compile(**options)`; alike blocks share their code."""
    blocks: list[Any] = list(blocks_of(module))
    for block in blocks:
        block.compile(**options)
    try:
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None


# Logits of so many bytes in float32 are alive at a time: 441 answer tokens of Qwen2.5, all of a small vocabulary.
CHUNK_BYTES = 1 << 28


class AnswerLoss(nn.Module):
    """The summed cross-entropy of answer tokens; the caller normalises by their global number.

    With `smoothing` > 0 (in bins) the target of a location token is a Gaussian over its neighbours, of a cell those
    around it: one bin off is nearly right. The paper's plain loss is `smoothing` = 0. Of codecs without location tokens
    smoothing does nothing.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, codec: Codec, smoothing: float = 0.0):
        super().__init__()
        tokens = codec.tokens if smoothing > 0 else []
        ids = tokenizer.convert_tokens_to_ids(tokens) if tokens else []
        assert isinstance(ids, list)
        if ids and ids != list(range(ids[0], ids[0] + len(ids))):
            raise GranvitError("the tokenizer's location tokens are not one contiguous range")
        self.first = ids[0] if ids else -1
        at = torch.from_numpy(codec.positions[: len(ids)]).float()
        targets = torch.exp(-0.5 * ((at[:, None] - at[None, :]) / max(smoothing, 1e-6)).square().sum(-1))
        self.register_buffer("targets", targets / targets.sum(1, keepdim=True).clamp(min=1e-9), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (A, V) in any precision, labels (A,) -> the sum over answer tokens, in float32."""
        targets: Tensor = self.get_buffer("targets")
        bins = len(targets)
        if bins == 0:
            return F.cross_entropy(logits.float(), labels, reduction="sum")
        is_location = (labels >= self.first) & (labels < self.first + bins)
        log_probs = F.log_softmax(logits.float(), dim=-1)
        words = -log_probs[~is_location].gather(1, labels[~is_location, None]).sum()
        locations = log_probs[is_location][:, self.first : self.first + bins]
        return words - (locations * targets[labels[is_location] - self.first]).sum()

    def of_states(self, head: nn.Module, states: Tensor, labels: Tensor) -> Tensor:
        """`forward` of the logits that `head` makes of states (A, hidden), never all of which are alive at once.

        What does not fit into `CHUNK_BYTES` is computed in chunks, whose logits the backward pass computes anew.
        """
        assert isinstance(head.out_features, int)
        rows = max(1, CHUNK_BYTES // (4 * head.out_features))
        if len(states) <= rows:
            return self(head(states), labels)

        def piece(states: Tensor, labels: Tensor) -> Tensor:
            return self(head(states), labels)

        pieces = zip(states.split(rows), labels.split(rows), strict=True)
        totals = [checkpoint(piece, *inputs, use_reentrant=False, preserve_rng_state=False) for inputs in pieces]
        return torch.stack(totals).sum()
