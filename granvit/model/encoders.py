"""A vision tower from a checkpoint of any family in the table, at the canvas that it is wanted for."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel, SiglipVisionConfig, SiglipVisionModel

from granvit.errors import GranvitError
from granvit.loading.models import LoadError, build, image_settings, load, load_model, read_settings_of
from granvit.loading.run_folder import named_checkpoint
from granvit.model.adapter import is_adapter
from granvit.model.families import ENCODERS, HOLDERS, SIGLIP, Family, body_of, canvas_of, family_of, patch_of
from granvit.model.region_model import RegionModel
from granvit.model.settings import SETTINGS_FILE

log = logging.getLogger(__name__)

_NAFLEX = "siglip2_vision_model"
# Architectures that exist only as code in their own repositories.
_ELSEWHERE = {
    name: "needs code from its own repository, which is never run; take InternVL's checkpoints whose names end in -hf"
    for name in ("intern_vit_6b", "internvl_chat")
}
# Random changes that a tower makes to its positions while it trains: the teacher and a frozen encoder would make others
# than the student, and stock LLaVA none.
_JITTER = ("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale")


@dataclass(frozen=True)
class Encoder:
    """A tower with what its pictures must look like: the mean and deviation of each channel, in [0, 1].

    The tower's config says not to shift positions at random.
    """

    tower: PreTrainedModel
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for setting in _JITTER:
            if hasattr(self.tower.config, setting):
                setattr(self.tower.config, setting, None)

    @classmethod
    def of(cls, tower: PreTrainedModel) -> Encoder:
        """A loaded tower, normalised as its family is."""
        family = family_of(tower.config)
        return cls(tower, family.mean, family.std)


def load_encoder(name: str | Path, canvas: int | None = None) -> Encoder:
    """A vision tower: the tower alone, or out of a CLIP-like pair, an InternVL, a LLaVA, a granvit checkpoint or run.

    SigLIP2 NaFlex becomes SigLIP at one square size, which computes the same of square pictures.

    Args:
        name: a directory, or a hub name.
        canvas: side of the square input in pixels; the checkpoint's own where it is None. Learned positions are
            resized as the tower itself resizes them.

    Raises:
        ValueError: there is no such checkpoint, it is of no known family, lacks weights, or cannot take this canvas.
    """
    name = named_checkpoint(name)
    if is_adapter(name) and (Path(name) / SETTINGS_FILE).exists():
        model = RegionModel.load(name)
        images, tower = model.processor.image_processor, model.llava.model.vision_tower
        mean, std = tuple(images.image_mean), tuple(images.image_std)
        return Encoder(tower if canvas is None else at_canvas(tower, canvas), mean, std)
    config = _config(name)
    holder = HOLDERS.get(config.model_type)
    inner = config.vision_config if holder else config
    if inner.model_type != _NAFLEX and inner.model_type not in ENCODERS:
        raise GranvitError(
            f"{name}: encoder of type {inner.model_type!r}, supported: {', '.join([*ENCODERS, _NAFLEX])}"
        )
    if config.model_type in ("llava", "llava_next"):
        _check_reading(name, config, family_of(inner))
    tower = _load(name, holder)
    if inner.model_type == _NAFLEX:
        tower = fix_size(tower, canvas)
    family = family_of(tower.config)
    mean, std = _colors(name) or (family.mean, family.std)
    return Encoder(tower if canvas is None else at_canvas(tower, canvas), mean, std)


def _config(name: str | Path) -> PretrainedConfig:
    kind = (read_settings_of(name, "config.json") or {}).get("model_type")
    if isinstance(kind, str) and kind in _ELSEWHERE:
        raise GranvitError(f"{name}: {kind!r} {_ELSEWHERE[kind]}")
    try:
        return load(AutoConfig, name)
    except LoadError as error:
        raise GranvitError(
            f"{name}: no encoder of that name, in a folder or on the hub: {error.within(name)}"
        ) from error


def _check_reading(name: str | Path, config: Any, family: Family) -> None:
    """Refuses a LLaVA whose tower was trained to be read elsewhere than we read it."""
    if (config.vision_feature_layer, config.vision_feature_select_strategy) != (family.layer, family.strategy):
        raise GranvitError(
            f"{name}/config.json: vision_feature_layer {config.vision_feature_layer} and "
            f"vision_feature_select_strategy {config.vision_feature_select_strategy!r}; "
            f"{family.name} is read with {family.layer} and {family.strategy!r}"
        )


def _load(name: str | Path, holder: str | None) -> PreTrainedModel:
    """The tower in float32; whatever else a checkpoint holds is loaded as it is stored, and dropped."""
    dtype = "auto" if holder else torch.float32
    loaded = load_model(AutoModel, name, dtype=dtype)
    tower: PreTrainedModel = getattr(loaded, holder) if holder else loaded
    return tower.float()


def _colors(name: str | Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation that a checkpoint's own image processor states; None where there is none.

    Raises:
        ValueError: the file is there and cannot be read.
    """
    stated = image_settings(name)
    if "image_mean" not in stated or "image_std" not in stated:
        return None
    return tuple(stated["image_mean"]), tuple(stated["image_std"])


def at_canvas(tower: PreTrainedModel, canvas: int) -> PreTrainedModel:
    """The tower for square pictures of another size; learned positions are resized by the tower's own code.

    Raises:
        ValueError: patches do not tile this canvas, or nothing says how this tower's positions are resized.
    """
    before, patch, family = canvas_of(tower.config), patch_of(tower.config), family_of(tower.config)
    if canvas == before:
        return tower
    if canvas < patch or canvas % patch:
        raise GranvitError(f"patches of {patch} px do not tile a canvas of {canvas} px")
    config = copy.deepcopy(tower.config)
    config.image_size = [canvas, canvas] if isinstance(config.image_size, list | tuple) else canvas
    weights = body_of(tower).state_dict()
    if family.table is not None and family.table in weights:
        if family.positions == "fixed":
            raise GranvitError(f"{family.name} has learned positions for {before} px alone, not for {canvas} px")
        log.info("position embeddings resized from %d px to %d px: %s", before, canvas, family.positions)
        weights[family.table] = _resized(body_of(tower).embeddings, weights[family.table], canvas, patch, family)
    other = build(type(tower), config, dtype=tower.dtype)
    body_of(other).load_state_dict(weights)
    return other.to(tower.device).eval()


@torch.no_grad()
def _resized(embeddings: Any, table: Tensor, canvas: int, patch: int, family: Family) -> Tensor:
    tokens = (canvas // patch) ** 2 + family.class_token
    # The tower's code takes the number of tokens from what it is to be added to, and no value.
    like = table.new_empty(1, tokens, table.shape[-1])
    resized: Tensor = embeddings.interpolate_pos_encoding(like, canvas, canvas)
    return resized.reshape(table.shape[:-2] + resized.shape[-2:]).contiguous()


def fix_size(naflex: Any, canvas: int | None = None) -> SiglipVisionModel:
    """SigLIP2 NaFlex at one square size as a stock SigLIP tower.

    The blocks are the same. What differs folds into weights: patches cut beforehand become a convolution, and the
    positions are resized once, by NaFlex's own code (bilinear, antialiased), where NaFlex does so for every picture.

    Args:
        naflex: a `Siglip2VisionModel`.
        canvas: side of the pictures in pixels; where it is None as many patches as its table of positions has.

    Raises:
        ValueError: patches do not tile the canvas.
    """
    config, body = naflex.config, body_of(naflex)
    patch, side = patch_of(config), math.isqrt(config.num_patches)
    canvas = canvas or side * patch
    if canvas % patch:
        raise GranvitError(f"patches of {patch} px do not tile a canvas of {canvas} px")
    kept = {k: v for k, v in config.to_dict().items() if k not in ("model_type", "num_patches", "architectures")}
    fixed = SiglipVisionModel(SiglipVisionConfig(**kept, image_size=canvas))
    weights = body.state_dict()
    linear = weights["embeddings.patch_embedding.weight"]  # (D, rows * columns * channels)
    weights["embeddings.patch_embedding.weight"] = linear.unflatten(1, (patch, patch, -1)).permute(0, 3, 1, 2)
    grid = canvas // patch
    table = weights[str(SIGLIP.table)].unflatten(0, (side, side))
    weights[str(SIGLIP.table)] = body.embeddings.resize_positional_embeddings(
        table, torch.tensor([[grid, grid]]), grid * grid
    )[0]
    body_of(fixed).load_state_dict(weights)
    return fixed.eval()
