"""From-scratch models small enough for two CPU cores: what they are made of and how they start."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import (
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from granvit.coordinates import Codec
from granvit.model.families import body_of, patches_of
from granvit.model.forward import encode

_FREQUENCIES = 12


@dataclass(frozen=True)
class Size:
    """How large a from-scratch model is: what `nano_encoder` and `nano_language` are called with."""

    encoder: dict[str, int] = field(default_factory=dict)
    language: dict[str, int] = field(default_factory=dict)


SIZES = {
    "nano-untrained": Size(),  # 1.7 and 1 million parameters
    "tiny-untrained": Size(  # 22 and 15 million
        {"canvas": 256, "width": 384, "layers": 12, "heads": 6}, {"width": 384, "layers": 8, "heads": 6}
    ),
}


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
        for layer in body.encoder.layers:  # quiet branches: at the start every patch speaks of itself (GPT-2)
            layer.self_attn.out_proj.weight.div_(math.sqrt(2 * layers))
            layer.mlp.fc2.weight.div_(math.sqrt(2 * layers))
    return tower


@torch.no_grad()
def fit_projector(llava: LlavaForConditionalGeneration, pictures: Tensor, targets: Tensor) -> None:
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
