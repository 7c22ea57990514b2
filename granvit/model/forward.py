"""What all stages compute: pixels -> patch features -> image embeddings -> logits of the answers."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import LlavaForConditionalGeneration
from transformers.modeling_layers import GradientCheckpointingLayer

from granvit.model.attention import fit_attention
from granvit.model.families import body_of, family_of
from granvit.model.packing import IGNORE, Batch


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


def answer_states(llava: LlavaForConditionalGeneration, batch: Batch, image_embeds: Tensor) -> tuple[Tensor, Tensor]:
    """The packed forward up to the LM head: states (A, hidden) that predict the A answer tokens, and these (A,).

    `image_embeds` is (I, P, D), projected.

    Raises:
        ValueError: the language model's attention can't take a packed mask (see `fit_attention`), or the number of
            image positions and features differ.
    """
    language = llava.model.language_model
    batch, attention = fit_attention(language, batch)
    embedded = language.get_input_embeddings()(batch.input_ids)
    flat = image_embeds.reshape(-1, image_embeds.shape[-1]).to(embedded.dtype)
    if int(batch.is_image.sum()) != len(flat):
        raise ValueError(f"{int(batch.is_image.sum())} image positions but {len(flat)} features in {batch.ids[:4]}...")
    embedded = embedded.masked_scatter(batch.is_image[..., None], flat)
    hidden = language(
        inputs_embeds=embedded, position_ids=batch.position_ids, use_cache=False, **attention
    ).last_hidden_state
    answers = batch.labels != IGNORE
    return hidden[answers], batch.labels[answers]


def answer_logits(llava: LlavaForConditionalGeneration, batch: Batch, image_embeds: Tensor) -> tuple[Tensor, Tensor]:
    """The packed forward: logits (A, V) of the A answer tokens, and the tokens themselves (A,).

    Only positions that predict an answer token reach the LM head. Raises as `answer_states` does.
    """
    states, labels = answer_states(llava, batch, image_embeds)
    return llava.lm_head(states), labels


def project(llava: LlavaForConditionalGeneration, features: Tensor) -> Tensor:
    """Patch features (N, P, D) -> image embeddings (N, P, hidden size of the language model)."""
    embeds: Tensor = llava.model.multi_modal_projector(features)
    return embeds


def frozen(module: nn.Module) -> nn.Module:
    """The module without gradients, in evaluation mode."""
    return module.requires_grad_(False).eval()


@torch.no_grad()
def scale_projector(llava: LlavaForConditionalGeneration, features: Tensor) -> None:
    """Scale a fresh projector so that its output has the size of word embeddings.

    `features` (N, P, D) are any patch features of the tower. Without this a small frozen language model sees
    image tokens whose RMS is far from that of words, and the first hundred steps only mend that.
    """
    words = llava.get_input_embeddings().weight
    last = llava.model.multi_modal_projector.linear_2
    ratio = words.std() / project(llava, features).std().clamp(min=1e-8)
    last.weight.mul_(ratio)
    last.bias.zero_()


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
