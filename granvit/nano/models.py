"""From-scratch models small enough for two CPU cores: what they are made of and how they start."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import (
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from granvit.coordinates import Codec
from granvit.model.families import body_of

_FREQUENCIES = 12


def place_code(places: Tensor) -> Tensor:
    """Coordinates in [0, 1], shape (N,), as sines and cosines of 12 frequencies, (N, 24): near places, near codes."""
    frequencies = 2 * math.pi * torch.logspace(math.log10(0.5), math.log10(12), _FREQUENCIES)
    angles = places[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def patch_code(side: int) -> Tensor:
    """The place codes of a side x side grid of patch centres, row by row: (side * side, 48), x then y."""
    centres = (torch.arange(side) + 0.5) / side
    return torch.cat([place_code(centres.repeat(side)), place_code(centres.repeat_interleave(side))], dim=1)


def nano_language(
    tokenizer: PreTrainedTokenizerBase, codec: Codec, width: int = 128, layers: int = 4, heads: int = 4
) -> Qwen2ForCausalLM:
    """An untrained Qwen2 of about a million parameters.

    The embeddings of location tokens start as a smooth code of their place, so that neighbours are alike.
    """
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            initializer_range=0.05,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    if codec.tokens:
        first = tokenizer.convert_tokens_to_ids(codec.tokens[0])
        assert isinstance(first, int)
        count = len(codec.tokens)
        code = place_code((torch.arange(count) + 0.5) / count)
        code = code @ torch.randn(code.shape[1], width)
        weight = model.get_input_embeddings().weight
        with torch.no_grad():
            weight[first : first + count] = code / code.std() * weight.std()
    return model


def nano_encoder(
    canvas: int = 160, width: int = 160, layers: int = 5, heads: int = 5, patch: int = 16
) -> SiglipVisionModel:
    """An untrained SigLIP tower of about 1.7 million parameters; its position embeddings start as sines (MAE)."""
    tower = SiglipVisionModel(
        SiglipVisionConfig(
            image_size=canvas,
            patch_size=patch,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            vision_use_head=False,
        )
    )
    code = patch_code(canvas // patch)
    code = code @ torch.randn(code.shape[1], width) / math.sqrt(code.shape[1])
    body = body_of(tower)
    with torch.no_grad():
        body.embeddings.position_embedding.weight.copy_(code)
        for layer in body.encoder.layers:  # small residual branches: at the start every patch speaks of itself (GPT-2)
            layer.self_attn.out_proj.weight.div_(math.sqrt(2 * layers))
            layer.mlp.fc2.weight.div_(math.sqrt(2 * layers))
    return tower
