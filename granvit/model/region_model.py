"""A model with everything that gives its numbers a meaning: weights, processor, coordinates, geometry.

On disk it is a stock LLaVA checkpoint plus one small file, `granvit.json`, that only this package reads.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import save_torch_state_dict
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor
from transformers import (
    AutoProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
)

from granvit.coordinates import Codec, get_codec
from granvit.errors import CheckpointError, GranvitError
from granvit.geometry import TiledView, View, sizes
from granvit.loading.chat_template import check_template
from granvit.loading.checkpoint_files import LoadError, read_json
from granvit.loading.models import image_settings, load, load_model
from granvit.model.adapter import is_adapter, merge, read_adapter
from granvit.model.dialog import OWN_TEMPLATES, Dialog
from granvit.model.families import canvas_of, family_of, patch_of, patches_of, registers_of
from granvit.model.forward import Llava, arrange, encode, mosaic, normalise, project
from granvit.model.locations import unknown_tokens
from granvit.model.provenance import Sources, read_sources, write_sources
from granvit.model.settings import SETTINGS_FILE, Settings, read_settings

# More than any language model is shown; what computes positions could be given any number.
_MOST_IMAGE_TOKENS = 65_536


class RegionModel:
    """A stock `LlavaForConditionalGeneration`, of tiles a `LlavaNext...`, with its processor and `Settings`.

    `sources` are those of all pictures and texts that it learned from (`granvit.model.provenance`); `new_tokens` says
    of a model that was just put together whether its codec's tokens were added to the language model.
    """

    def __init__(self, llava: Llava, processor: LlavaProcessor | LlavaNextProcessor, settings: Settings):
        self.llava = llava
        self.processor = processor
        self.settings = settings
        self.sources: Sources = frozenset()
        self.new_tokens = False

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

    def tokens_of(self, view: View | None) -> int:
        """How many tokens the language model sees of an image, by its view; None is a canvas, however it came to be."""
        return view.tokens(self.grid) if isinstance(view, TiledView) else self.image_tokens

    @property
    def largest_view(self) -> View:
        """Of an image of as many tokens as any has."""
        sizes = [(columns * self.canvas, rows * self.canvas) for columns, rows in self.settings.shapes or [(1, 1)]]
        return max((self.view(size) for size in sizes), key=self.tokens_of)

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
        return View.fit(self.settings.fit, size, self.canvas, self.settings.shapes)

    def window(self, box: ArrayLike, size: tuple[int, int], side: int) -> View:
        """How a window of `side` x `side` pixels around a box is shown (`View.window_around`).

        It is larger where the box is: what is asked about must be in sight. It ends at the image's edges.
        """
        whole = max(side, math.ceil(sizes(box).max()) + 1)  # corners are whole pixels, so by one more
        return View.window_around(box, size, whole, self.canvas, shapes=self.settings.shapes)

    def show(self, picture: Image.Image, view: View | None = None) -> Tensor:
        """The canvases that show an EXIF-upright RGB picture, the whole where no view of it is named: (K, H, W, 3)."""
        shown = self.view(picture.size) if view is None else view
        return torch.from_numpy(np.array(shown.canvases(picture, self.fill)))

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) -> the tower's input, (N, 3, H, W)."""
        processor = self.processor.image_processor
        mean = torch.tensor(processor.image_mean).to(pixels.device)
        return normalise(pixels, mean, torch.tensor(processor.image_std).to(pixels.device))

    def features(self, pixels: Tensor) -> Tensor:
        """Image tokens of canvases uint8 (N, H, W, 3), as the projector takes them: (N, T, D)."""
        return encode(self.llava.model.vision_tower, self.normalise(pixels).to(self.llava.dtype))

    def patches(self, features: Tensor) -> Tensor:
        """Of image tokens (N, T, D) those that are patches, (N, P, D), row by row."""
        return patches_of(self.llava.config.vision_config, features)

    def embed(self, pixels: Tensor) -> Tensor:
        """Embeddings of canvases uint8 (N, H, W, 3): (N, T, hidden)."""
        return project(self.llava, self.features(pixels))

    def arranged(self, embeds: Tensor, views: Sequence[View | None]) -> Tensor:
        """Embeddings of the canvases of all images (K, T, hidden) as the language model sees them, image by image.

        Where each image is one canvas that is as they are; of tiles (tokens of all images, hidden).
        """
        if not isinstance(self.llava, LlavaNextForConditionalGeneration):
            return embeds
        tiled = [view for view in views if isinstance(view, TiledView)]
        if not tiled:
            return embeds.flatten(0, 1) + self.llava.model.image_newline[None, :][:0]
        return arrange(embeds, tiled, self.llava.model.image_newline)

    def region_maps(self, features: Tensor, views: Sequence[View | None]) -> list[Tensor]:
        """Per image the patches that regions are pooled from, side by side as in the picture: (1, rows, columns, D).

        Of tiles that is the mosaic or the overview (`View.to_features`). `features` (K, T, D) are of all canvases.
        """
        patches = self.patches(features)
        maps = []
        at = 0
        for view in views:
            if isinstance(view, TiledView) and view.finer:
                maps.append(mosaic(patches[at + 1 : at + view.count], view)[None])
            else:
                maps.append(patches[at : at + 1].unflatten(1, (self.grid, self.grid)))
            at += 1 if view is None else view.count
        return maps

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
        config = self.llava.config
        for part in (config, config.vision_config, config.text_config):
            part.dtype = self.llava.dtype  # as if it had been loaded: the same model makes the same files
        config.save_pretrained(folder)
        if self.llava.generation_config is not None:
            self.llava.generation_config.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        (folder / SETTINGS_FILE).write_text(json.dumps(self.settings.to_json(), indent=2) + "\n")
        write_sources(self.sources, folder)

    @classmethod
    def load(
        cls, folder: Path | str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> RegionModel:
        """A checkpoint that `save` wrote, or a LoRA adapter that a run left, merged into its base.

        Raises:
            CheckpointError: a file is missing, unreadable or of another kind, or an adapter's base is not there or is
                another than it was trained on.
        """
        folder = Path(folder)
        settings = read_settings(folder)
        if is_adapter(folder):
            return cls._load_merged(folder, settings, device, dtype)
        try:
            kind = read_json(folder / "config.json").get("model_type")
            config_class, model_class, _ = stock_classes(settings)
            if kind != config_class.model_type:
                raise CheckpointError(
                    f"{folder}/config.json: model_type is {kind!r}, expected {config_class.model_type!r}"
                    + (f", as {SETTINGS_FILE} says tiles" if settings.tiles else "")
                )
            llava = load_model(model_class, folder, dtype=dtype, attn_implementation="sdpa")
            processor = load(AutoProcessor, folder)
        except LoadError as error:
            raise CheckpointError(str(error)) from error
        _check_reading(folder, llava.config)
        model = cls(llava, processor, settings)
        model.sources = read_sources(folder)
        check_parts(model, folder)
        llava.to(device)
        return model

    @classmethod
    def _load_merged(
        cls, folder: Path, settings: Settings, device: str | torch.device, dtype: torch.dtype
    ) -> RegionModel:
        try:
            adapter = read_adapter(folder)
            model = cls.load(adapter.base, dtype=dtype)
            if model.settings != settings:
                raise CheckpointError(f"{folder}/{SETTINGS_FILE}: other settings than those of its base {adapter.base}")
            merge(model.llava, adapter)
            model.sources = read_sources(folder)
        except LoadError as error:
            raise CheckpointError(str(error)) from error
        model.llava.to(device)
        return model


def stock_classes(settings: Settings) -> tuple[type[Any], type[Any], type[Any]]:
    """Of a checkpoint with these settings the stock classes of config, model and processor."""
    if settings.tiles:
        return LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextProcessor
    return LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor


def pinpoints(settings: Settings, canvas: int) -> list[list[int]]:
    """The grids of tiles as stock configs name them: height and width of each, pixels."""
    return [[rows * canvas, columns * canvas] for columns, rows in settings.shapes]


def check_parts(model: RegionModel, folder: Path) -> None:
    """Hold processor, tokenizer, template and settings of a checkpoint to its model.

    Raises:
        CheckpointError: they do not fit; the message names file and field.
    """
    config, processor = model.llava.config, model.processor
    kind = stock_classes(model.settings)[2]
    if not isinstance(processor, kind):
        raise CheckpointError(f"{folder}: its processor is a {type(processor).__name__}, expected a {kind.__name__}")
    where = f"{folder}/processor_config.json: image_processor"
    try:
        image_settings(folder)
    except LoadError as error:
        raise CheckpointError(str(error)) from error
    for name in ("size", "crop_size"):
        sides = dict(getattr(processor.image_processor, name, None) or {})
        if any(side not in (None, model.canvas) for side in sides.values()):
            raise CheckpointError(f"{where}: {name} is {sides}, the encoder takes {model.canvas} px")
    if model.settings.tiles:
        wanted = pinpoints(model.settings, model.canvas)
        for file, stated in (
            ("config.json", config),
            ("processor_config.json: image_processor", processor.image_processor),
        ):
            if [list(size) for size in stated.image_grid_pinpoints] != wanted:
                raise CheckpointError(
                    f"{folder}/{file}: image_grid_pinpoints are {stated.image_grid_pinpoints}, "
                    f"{SETTINGS_FILE} says tiles {model.settings.tiles}, which is {wanted}"
                )
    if model.canvas % model.patch or model.tokens_of(model.largest_view) > _MOST_IMAGE_TOKENS:
        raise CheckpointError(
            f"{folder}/config.json: vision_config: image_size {model.canvas} with patch_size {model.patch}: patches "
            f"must tile it, and be at most {_MOST_IMAGE_TOKENS:,}"
        )
    vocabulary = processor.tokenizer.get_vocab()
    rows = model.llava.get_input_embeddings().weight.shape[0]
    beyond = [token for token, i in vocabulary.items() if i >= rows]
    if beyond:
        raise CheckpointError(f"{folder}/tokenizer.json: token {beyond[0]!r} has no row in an embedding of {rows}")
    unknown = unknown_tokens(processor.tokenizer, model.codec)
    if unknown:
        raise CheckpointError(
            f"{folder}/{SETTINGS_FILE}: codec {model.settings.codec!r} needs {len(unknown)} tokens that the tokenizer "
            f"does not have, such as {unknown[0]}"
        )
    template = processor.chat_template or processor.tokenizer.chat_template
    try:
        if template not in OWN_TEMPLATES:
            check_template(template, processor.tokenizer.special_tokens_map, str(folder))
        image_token = model.dialog.image_token
    except GranvitError as error:
        raise CheckpointError(str(error) if str(folder) in str(error) else f"{folder}: {error}") from error
    if image_token != config.image_token_index:
        raise CheckpointError(
            f"{folder}/config.json: image_token_index is {config.image_token_index}, the tokenizer has {image_token} "
            f"for {processor.image_token!r}"
        )


def _check_reading(folder: Path, config: LlavaConfig | LlavaNextConfig) -> None:
    """Refuses a tower that stock LLaVA would read otherwise than we do."""
    try:
        family = family_of(config.vision_config)
        canvas_of(config.vision_config), patch_of(config.vision_config)
    except GranvitError as error:
        raise CheckpointError(f"{folder}/config.json: vision_config: {error}") from error
    if "sliding_attention" in (getattr(config.text_config, "layer_types", None) or ()):
        raise CheckpointError(
            f"{folder}/config.json: text_config.layer_types has sliding windows, which packed questions do not respect"
        )
    for name, ours in (("vision_feature_layer", family.layer), ("vision_feature_select_strategy", family.strategy)):
        if getattr(config, name) != ours:
            raise CheckpointError(
                f"{folder}/config.json: {name} is {getattr(config, name)!r}, {family.name} is read with {ours!r}"
            )


def stock_weights(llava: Llava, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
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
        name = re.sub(r"^model\.(?=multi_modal_projector\.|image_newline$)", "", name)
        named[name] = tensor.detach().contiguous()
    return named
