"""A tower of some thousand random parameters for every family, saved by transformers with an image processor."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    Aimv2VisionConfig,
    Aimv2VisionModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    InternVLVisionConfig,
    InternVLVisionModel,
    PreTrainedModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

_SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
_WIDE = {**_SIZES, "intermediate_size": 48}
_SQUARE = {"image_size": 64, "patch_size": 16}

TOWERS = {
    "siglip": (SiglipVisionModel, SiglipVisionConfig, {**_WIDE, **_SQUARE}),
    "clip": (CLIPVisionModel, CLIPVisionConfig, {**_WIDE, **_SQUARE}),
    "aimv2": (Aimv2VisionModel, Aimv2VisionConfig, {**_WIDE, **_SQUARE}),
    "aimv2-native": (Aimv2VisionModel, Aimv2VisionConfig, {**_WIDE, **_SQUARE, "is_native": True}),
    "internvit": (InternVLVisionModel, InternVLVisionConfig, {**_WIDE, **_SQUARE, "use_mean_pooling": False}),
    "dinov2": (Dinov2Model, Dinov2Config, {**_SIZES, "mlp_ratio": 2, "image_size": 56, "patch_size": 14}),
    "dinov2-registers": (
        Dinov2WithRegistersModel,
        Dinov2WithRegistersConfig,
        {**_SIZES, **_SQUARE, "mlp_ratio": 2, "num_register_tokens": 4},
    ),
    "dinov3": (DINOv3ViTModel, DINOv3ViTConfig, {**_WIDE, **_SQUARE, "num_register_tokens": 2}),
    "naflex": (Siglip2VisionModel, Siglip2VisionConfig, {**_WIDE, "num_patches": 16, "patch_size": 16}),
}


def make_encoder(kind: str, seed: int = 0, **settings: object) -> PreTrainedModel:
    """Random weights wider than usual, so that attention and features are far from uniform."""
    torch.manual_seed(seed)
    model, config, sizes = TOWERS[kind]
    tower = model(config(**{**sizes, **settings}))
    for name, parameter in tower.named_parameters():
        if "norm" not in name and "lambda" not in name:
            torch.nn.init.normal_(parameter, std={2: 0.15, 4: 0.03}.get(parameter.ndim, 0.1))
    return tower.eval()


def save_encoder_as_published(kind: str, folder: Path, colors: bool = True) -> PreTrainedModel:
    """The tower in `folder`, with or without a file that says how its pictures are normalised."""
    tower = make_encoder(kind)
    tower.save_pretrained(folder)
    if colors:
        stated = {
            "image_mean": [0.4, 0.5, 0.6],
            "image_std": [0.2, 0.25, 0.3],
            "image_processor_type": "CLIPImageProcessor",
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(stated))
    return tower


def normalised(pixels: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """uint8 (N, H, W, 3) -> (N, 3, H, W), channel by channel."""
    channels = [(pixels[..., c].double() / 255 - mean[c]) / std[c] for c in range(3)]
    return torch.stack(channels, dim=1).float()


def as_patches(pixels: Tensor, patch: int) -> Tensor:
    """Normalised (N, 3, H, W) -> (N, patches, patch * patch * 3), as NaFlex's image processor cuts them."""
    count, _, height, width = pixels.shape
    cut = pixels.reshape(count, 3, height // patch, patch, width // patch, patch)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(count, -1, patch * patch * 3)
