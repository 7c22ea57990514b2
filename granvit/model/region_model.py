"""A model with everything that gives its numbers a meaning: weights, processor, coordinates, geometry.

On disk it is a stock LLaVA checkpoint plus one small file, `granvit.json`, that only this package reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from granvit.coordinates import Codec, get_codec
from granvit.errors import CheckpointError
from granvit.geometry import View
from granvit.model.dialog import Dialog
from granvit.model.families import canvas_of, family_of, patch_of, patches_of, registers_of
from granvit.model.forward import encode, normalise, project
from granvit.model.settings import Settings

SETTINGS_FILE = "granvit.json"


class RegionModel:
    """A stock `LlavaForConditionalGeneration` with its processor and `Settings`."""

    def __init__(self, llava: LlavaForConditionalGeneration, processor: LlavaProcessor, settings: Settings):
        self.llava = llava
        self.processor = processor
        self.settings = settings
        # The place that a warmed-up language model was shown for each patch, (P, hidden); presets only.
        self.places: Tensor | None = None
        # The head by which a warmed-up encoder's patches name words; presets only.
        self.words: dict[str, Tensor] | None = None

    @property
    def codec(self) -> Codec:
        return get_codec(self.settings.codec)

    @property
    def canvas(self) -> int:
        """Side of the square input, pixels."""
        return canvas_of(self.llava.config.vision_config)

    @property
    def patch(self) -> int:
        """Side of a patch, pixels."""
        return patch_of(self.llava.config.vision_config)

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.canvas // self.patch

    @property
    def image_tokens(self) -> int:
        """How many tokens the language model sees of one canvas: its patches, and register tokens if there are any."""
        return self.grid**2 + registers_of(self.llava.config.vision_config)

    @property
    def fill(self) -> tuple[int, int, int]:
        """The padding colour, 0-255, exactly as the stock processor computes it."""
        red, green, blue = (int(v * 255) for v in self.processor.image_processor.image_mean)
        return red, green, blue

    @property
    def device(self) -> torch.device:
        return self.llava.device

    @cached_property
    def dialog(self) -> Dialog:
        tokenizer = self.processor.tokenizer
        tokenizer.chat_template = self.processor.chat_template or tokenizer.chat_template
        return Dialog(tokenizer, self.processor.image_token, self.image_tokens)

    def view(self, size: tuple[int, int]) -> View:
        """How a whole image of (width, height) pixels becomes the canvas."""
        return View.fit(self.settings.fit, size, self.canvas)

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) -> the tower's input, (N, 3, H, W)."""
        processor = self.processor.image_processor
        mean = torch.tensor(processor.image_mean, device=pixels.device)
        return normalise(pixels, mean, torch.tensor(processor.image_std, device=pixels.device))

    def features(self, pixels: Tensor) -> Tensor:
        """Image tokens of canvases uint8 (N, H, W, 3), as the projector takes them: (N, T, D)."""
        return encode(self.llava.model.vision_tower, self.normalise(pixels).to(self.llava.dtype))

    def patches(self, features: Tensor) -> Tensor:
        """Of image tokens (N, T, D) those that are patches, (N, P, D), row by row."""
        return patches_of(self.llava.config.vision_config, features)

    def embed(self, pixels: Tensor) -> Tensor:
        """Image embeddings of canvases uint8 (N, H, W, 3), as the language model sees them: (N, T, hidden)."""
        return project(self.llava, self.features(pixels))

    def save(self, folder: Path | str, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write a checkpoint that stock transformers and vLLM load without this package.

        `weights` stands in for the model's own state dict where that holds but a share of it.
        """
        folder = Path(folder)
        self.save_parts(folder)
        save_torch_state_dict(stock_weights(self.llava, weights), folder)

    def save_parts(self, folder: Path) -> None:
        """Write all of a checkpoint but its weights."""
        folder.mkdir(parents=True, exist_ok=True)
        self.llava.config.save_pretrained(folder)
        if self.llava.generation_config is not None:
            self.llava.generation_config.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        (folder / SETTINGS_FILE).write_text(json.dumps(asdict(self.settings), indent=2) + "\n")

    @classmethod
    def load(
        cls, folder: Path | str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> RegionModel:
        """A checkpoint that `save` wrote.

        Raises:
            CheckpointError: a file is missing, unreadable or of another kind.
        """
        folder = Path(folder)
        settings = read_settings(folder)
        config = _read_json(folder / "config.json")
        if config.get("model_type") != "llava":
            raise CheckpointError(f"{folder}/config.json: model_type is {config.get('model_type')!r}, expected 'llava'")
        try:
            llava, info = LlavaForConditionalGeneration.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation="sdpa",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # named below
                use_safetensors=True,
            )
            processor = AutoProcessor.from_pretrained(folder)
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            _find_damage(folder)
            raise CheckpointError(f"{folder}: {error}") from error
        lacking = sorted(info["missing_keys"]) + sorted(name for name, *_ in info["mismatched_keys"])
        if lacking:
            raise CheckpointError(f"{folder}: weights missing or of the wrong shape: {lacking[:5]}")
        _check_reading(folder, llava.config)
        return cls(llava.to(device).eval(), processor, settings)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; is this a granvit checkpoint?") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return content


def _find_damage(folder: Path) -> None:
    """Raises the `CheckpointError` of the first file that cannot be read; the libraries' errors often name none."""
    for path in sorted(folder.glob("*.json")):
        _read_json(path)
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: {error}") from error


def read_settings(folder: Path) -> Settings:
    """What a checkpoint's `granvit.json` says.

    Raises:
        CheckpointError: it is missing, unreadable, or holds a setting that does not exist.
    """
    path = folder / SETTINGS_FILE
    content = _read_json(path)
    try:
        settings = Settings(**content)
        get_codec(settings.codec)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if settings.frame not in ("image", "canvas") or settings.fit not in ("letterbox", "squash"):
        raise CheckpointError(f"{path}: unknown frame {settings.frame!r} or fit {settings.fit!r}")
    return settings


def _check_reading(folder: Path, config: LlavaConfig) -> None:
    """Refuses a tower that stock LLaVA would read otherwise than we do."""
    try:
        family = family_of(config.vision_config)
        canvas_of(config.vision_config), patch_of(config.vision_config)
    except ValueError as error:
        raise CheckpointError(f"{folder}/config.json: vision_config: {error}") from error
    for name, ours in (("vision_feature_layer", family.layer), ("vision_feature_select_strategy", family.strategy)):
        if getattr(config, name) != ours:
            raise CheckpointError(
                f"{folder}/config.json: {name} is {getattr(config, name)!r}, {family.name} is read with {ours!r}"
            )


def stock_weights(
    llava: LlavaForConditionalGeneration, weights: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The weights under the names that vLLM's loader takes; transformers reads them too. A tied head is left out.

    `weights` stands in for the model's own state dict.
    """
    named: dict[str, Tensor] = {}
    family = family_of(llava.config.vision_config)
    for name, tensor in (llava.state_dict() if weights is None else weights).items():
        if name == "lm_head.weight":
            if llava.config.tie_word_embeddings:
                continue
            name = "language_model.lm_head.weight"
        name = re.sub(r"^model\.language_model\.", "language_model.model.", name)
        if inner := re.match(r"model\.vision_tower\.(?:vision_model\.)?(.*)", name):
            name = "vision_tower." + family.published(inner[1])
        name = re.sub(r"^model\.multi_modal_projector\.", "multi_modal_projector.", name)
        named[name] = tensor.detach().contiguous()
    return named
