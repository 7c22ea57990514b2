"""Greedy answers to many questions about many images: every image is encoded and prefilled once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from granvit.model.region_model import RegionModel


@torch.inference_mode()
def greedy(
    model: RegionModel, pixels: Tensor, questions: Sequence[Sequence[list[int]]], max_new_tokens: int
) -> list[list[list[int]]]:
    """Answer tokens for each question of each image, without the end token.

    The image prefix runs once per image; its keys and values are then shared by all its questions, which go on as a
    batch. The answers are those that one stock `generate` call per question gives.

    Args:
        pixels: canvases, uint8 (I, H, W, 3).
        questions: I lists of tokenised questions (`Dialog.ask`).
        max_new_tokens: answers end there at the latest.
    """
    image_of = [i for i, asked in enumerate(questions) for _ in asked]
    if not image_of:
        return [[] for _ in questions]
    rows = _decode(model, pixels.to(model.device), [q for asked in questions for q in asked], image_of, max_new_tokens)
    answers: list[list[list[int]]] = [[] for _ in questions]
    for image, row in zip(image_of, rows, strict=True):
        answers[image].append(row)
    return answers


def _decode(
    model: RegionModel, pixels: Tensor, questions: list[list[int]], image_of: list[int], max_new_tokens: int
) -> list[list[int]]:
    cache, prefix = _prefill(model, pixels)
    cache.batch_select_indices(torch.tensor(image_of, device=pixels.device))
    dialog, count, width = model.dialog, len(questions), max(map(len, questions))
    # Padded on the left, so that all answers begin in the same column.
    pads = torch.tensor([width - len(q) for q in questions], device=pixels.device)
    tokens = torch.tensor([[dialog.pad_token] * (width - len(q)) + q for q in questions], device=pixels.device)
    column = torch.arange(width, device=pixels.device)
    seen = torch.cat([torch.ones(count, prefix, device=pixels.device), column >= pads[:, None]], dim=1).long()
    positions = (prefix + column - pads[:, None]).clamp(min=prefix)

    rows: list[list[int]] = [[] for _ in questions]
    active = torch.arange(count, device=pixels.device)
    for step in range(max_new_tokens):
        hidden = model.llava.model.language_model(
            input_ids=tokens, attention_mask=seen, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state
        chosen = model.llava.lm_head(hidden[:, -1]).argmax(-1)
        going = chosen != dialog.end_token
        for row, token in zip(active[going].tolist(), chosen[going].tolist(), strict=True):
            rows[row].append(token)
        if not going.any() or step == max_new_tokens - 1:
            break
        if not going.all():  # finished answers leave the batch
            active = active[going]
            cache.batch_select_indices(going.nonzero()[:, 0])
        tokens = chosen[going, None]
        seen = torch.cat([seen[going], seen.new_ones(len(tokens), 1)], dim=1)
        positions = positions[going, -1:] + 1
    return rows


def _prefill(model: RegionModel, pixels: Tensor) -> tuple[DynamicCache, int]:
    """Keys and values of every image's prefix, and the prefix's length."""
    language = model.llava.model.language_model
    ids = torch.tensor([model.dialog.prefix_ids] * len(pixels), device=pixels.device)
    embeds = language.get_input_embeddings()(ids)
    images = model.embed(pixels).to(embeds.dtype)
    embeds = embeds.masked_scatter((ids == model.dialog.image_token)[..., None], images)
    cache = DynamicCache(config=language.config)
    language(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
    return cache, ids.shape[1]
