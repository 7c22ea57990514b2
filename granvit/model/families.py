"""The vision towers and language models that can be joined, and what each family of them does its own way.

What stock LLaVA computes is the reference throughout: it reads one of the tower's `hidden_states`, never anything
behind its final norm, and may drop the first token, but no other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from transformers import PretrainedConfig

from granvit.errors import GranvitError

Triple = tuple[float, float, float]

_HALF: Triple = (0.5, 0.5, 0.5)
_CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
_IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
_IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Family:
    """What a kind of vision tower does its own way.

    Attributes:
        name: what people call it.
        tokens: (body, pixels (N, 3, H, W), whether they are of another size than the tower's) -> all its tokens
            (N, T, D) at `layer`, before any final norm.
        trained: the modules in front of these features, which stage 1 trains.
        mean, std: normalisation where the checkpoint's own image processor states none.
        layer: which of the `hidden_states` is read, as in `vision_feature_layer`.
        class_token: whether the first token is a class token, dropped by `vision_feature_select_strategy="default"`.
        table: the parameter that holds learned positions, None where positions are computed.
        positions: how that table is fitted to another number of patches (by the tower's own code).
        prefix, without: what weight files put in front of the tower's own names, and what they leave out there.
    """

    name: str
    tokens: Callable[[Any, Tensor, bool], Tensor]
    trained: Callable[[Any], list[nn.Module]]
    mean: Triple
    std: Triple
    layer: int = -1
    class_token: bool = False
    table: str | None = None
    positions: Literal["bicubic", "bicubic, antialiased", "computed", "fixed"] = "bicubic"
    prefix: str = ""
    without: str = ""

    @property
    def strategy(self) -> Literal["default", "full"]:
        """`vision_feature_select_strategy` of the stock LLaVA."""
        return "default" if self.class_token else "full"

    def published(self, name: str) -> str:
        """The name of one of the tower's weights in files: what every loader knows."""
        return self.prefix + name.removeprefix(self.without)


# --- SigLIP, SigLIP2 of fixed resolution -----------------------------------------------------------------------------


def _siglip(body: Any, pixels: Tensor, resized: bool) -> Tensor:
    embedded = body.embeddings(pixels, interpolate_pos_encoding=resized)
    features: Tensor = body.encoder(inputs_embeds=embedded).last_hidden_state
    return features


SIGLIP = Family(
    name="SigLIP",
    tokens=_siglip,
    trained=lambda body: [body.embeddings, body.encoder],
    mean=_HALF,
    std=_HALF,
    table="embeddings.position_embedding.weight",
    prefix="vision_model.",
)

# --- CLIP ------------------------------------------------------------------------------------------------------------


def _clip(body: Any, pixels: Tensor, resized: bool) -> Tensor:
    hidden: Tensor = body.pre_layrnorm(body.embeddings(pixels, interpolate_pos_encoding=resized))
    for layer in body.encoder.layers[:-1]:
        hidden = layer(hidden, None)
    return hidden


# All LLaVAs read CLIP before its last layer: nothing ever asked that layer's patches for anything.
CLIP = Family(
    name="CLIP",
    tokens=_clip,
    trained=lambda body: [body.embeddings, body.pre_layrnorm, *body.encoder.layers[:-1]],
    mean=_CLIP_MEAN,
    std=_CLIP_STD,
    layer=-2,
    class_token=True,
    table="embeddings.position_embedding.weight",
    prefix="vision_model.",
)

# --- AIMv2 -----------------------------------------------------------------------------------------------------------


def _aimv2(body: Any, pixels: Tensor, resized: bool) -> Tensor:
    if resized and not body.config.is_native:
        raise GranvitError(
            f"this AIMv2 tower has learned positions for pictures of {body.config.image_size} px alone: set "
            "sample.crop_size to 0 (crops of the canvas's size), or take a native-resolution checkpoint"
        )
    features: Tensor = body.encoder(inputs_embeds=body.embeddings(pixels)).last_hidden_state
    return features


# Its native-resolution checkpoints compute positions (sines); the others keep a table that nothing resizes.
AIMV2 = Family(
    name="AIMv2",
    tokens=_aimv2,
    trained=lambda body: [body.embeddings, body.encoder],
    mean=_CLIP_MEAN,
    std=_CLIP_STD,
    table="embeddings.position_embedding.weight",
    positions="fixed",
)

# --- InternViT, DINOv2 -----------------------------------------------------------------------------------------------


def _interpolating(body: Any, pixels: Tensor, resized: bool) -> Tensor:
    """Towers that look at the picture's size themselves."""
    features: Tensor = body.encoder(body.embeddings(pixels)).last_hidden_state
    return features


INTERNVIT = Family(
    name="InternViT",
    tokens=_interpolating,
    trained=lambda body: [body.embeddings, body.encoder],
    mean=_IMAGENET_MEAN,
    std=_IMAGENET_STD,
    class_token=True,
    table="embeddings.position_embeddings",
)

DINOV2 = Family(
    name="DINOv2",
    tokens=_interpolating,
    trained=lambda body: [body.embeddings, body.encoder],
    mean=_IMAGENET_MEAN,
    std=_IMAGENET_STD,
    class_token=True,
    table="embeddings.position_embeddings",
)

DINOV2_REGISTERS = Family(
    name="DINOv2 with registers",
    tokens=_interpolating,
    trained=lambda body: [body.embeddings, body.encoder],
    mean=_IMAGENET_MEAN,
    std=_IMAGENET_STD,
    class_token=True,
    table="embeddings.position_embeddings",
    positions="bicubic, antialiased",
)

# --- DINOv3 ----------------------------------------------------------------------------------------------------------


def _dinov3(body: Any, pixels: Tensor, resized: bool) -> Tensor:
    rotary = body.rope_embeddings(pixels)
    features: Tensor = body.model(body.embeddings(pixels), position_embeddings=rotary).last_hidden_state
    return features


DINOV3 = Family(
    name="DINOv3",
    tokens=_dinov3,
    trained=lambda body: [body.embeddings, body.model],
    mean=_IMAGENET_MEAN,
    std=_IMAGENET_STD,
    class_token=True,
    positions="computed",
    without="model.",
)

# --- the tables ------------------------------------------------------------------------------------------------------

# By the `model_type` of the tower alone.
ENCODERS: dict[str, Family] = {
    "siglip_vision_model": SIGLIP,
    "clip_vision_model": CLIP,
    "aimv2_vision_model": AIMV2,
    "internvl_vision": INTERNVIT,
    "dinov2": DINOV2,
    "dinov2_with_registers": DINOV2_REGISTERS,
    "dinov3_vit": DINOV3,
}

# Checkpoints that hold a tower beside other things, and where; "llava" and "llava_next" are what this package writes.
HOLDERS = {
    "siglip": "vision_model",
    "siglip2": "vision_model",
    "clip": "vision_model",
    "aimv2": "vision_model",
    "internvl": "vision_tower",
    "llava": "vision_tower",
    "llava_next": "vision_tower",
}

# By `model_type`: who uses that architecture.
LANGUAGES = {
    "qwen2": "Qwen2, Qwen2.5",
    "qwen3": "Qwen3",
    "llama": "Llama 3, SmolLM, SmolLM2",
    "smollm3": "SmolLM3",
}


def family_of(config: PretrainedConfig) -> Family:
    """The family of a tower, by its config.

    Raises:
        ValueError: no family of the table.
    """
    if config.model_type not in ENCODERS:
        raise GranvitError(f"encoder of type {config.model_type!r}, supported: {', '.join(ENCODERS)}")
    return ENCODERS[config.model_type]


def body_of(tower: nn.Module) -> Any:
    """The module that holds embeddings and blocks; some transformers releases keep it in `vision_model`."""
    return tower.get_submodule("vision_model") if hasattr(tower, "vision_model") else tower


def canvas_of(config: PretrainedConfig) -> int:
    """Side of the tower's square input, pixels.

    Raises:
        ValueError: it is not square.
    """
    return _side(config, "image_size")


def patch_of(config: PretrainedConfig) -> int:
    """Side of a patch, pixels.

    Raises:
        ValueError: it is not square.
    """
    return _side(config, "patch_size")


def _side(config: PretrainedConfig, name: str) -> int:
    value = getattr(config, name)
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) != 1:
        raise GranvitError(f"encoder of type {config.model_type!r}: {name} {value} is not square")
    return int(sides.pop())


def registers_of(config: PretrainedConfig) -> int:
    """How many register tokens stand between class token and patches.

    Stock LLaVA can't leave them out, so its language model sees them: as image tokens in front of the patches.
    """
    return int(getattr(config, "num_register_tokens", 0))


def patches_of(config: PretrainedConfig, features: Tensor) -> Tensor:
    """Of image tokens (N, R + P, D) the patches, (N, P, D), row by row."""
    return features[:, registers_of(config) :]


def trained_parameters(tower: nn.Module) -> list[nn.Parameter]:
    """The parameters that features depend on; a masking token, of use in pretraining alone, is not among them."""
    body = body_of(tower)
    parameters = [p for module in family_of(body.config).trained(body) for p in module.parameters()]
    mask = getattr(body.embeddings, "mask_token", None)
    return [p for p in parameters if p is not mask]
