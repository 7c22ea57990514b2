"""Any vision encoder as pixels -> patch features and attention, so that encoders of all families can be compared.

Features are those that a stock LLaVA reads, attention is what transformers gives as `attentions`; what stands before
the patches (a class token, registers) is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel

from granvit.errors import GranvitError
from granvit.geometry import Boxes, Fit, View, area, as_boxes, cells, intersection
from granvit.loading.models import LoadError, image_settings, load, load_model
from granvit.loading.run_folder import checkpoint_of
from granvit.model.encoders import load_encoder
from granvit.model.families import ENCODERS, HOLDERS, family_of
from granvit.model.forward import normalise
from granvit.model.region_model import RegionModel
from granvit.model.settings import SETTINGS_FILE

# What `load_encoder` makes a square tower of.
_KNOWN = {*ENCODERS, *HOLDERS, "siglip2_vision_model"}
# Parts behind the patch features: a tower of no known family may lack them.
_BEHIND = ("head.", "pooler.", "layernorm.", "post_layernorm.")
# What says nothing about a checkpoint in its path.
_SILENT = ("checkpoint", "model", "encoder")


@dataclass
class EncoderOutput:
    """What an encoder made of N canvases: features (N, P, D), and of each layer its attention (N, heads, P, P).

    Entry (q, p) of a head's map is how much patch q looks at patch p; a row sums to 1 less what went to tokens that
    are no patches.
    """

    features: Tensor
    attentions: list[Tensor]


class PatchEncoder:
    """A frozen encoder of square canvases, ready to be looked into.

    Attributes:
        name: how it is called in tables.
        canvas, patch: sides of the input and of a patch, pixels; `grid` patches stand along a side.
        layer: which of the `hidden_states` are the features.
        model: the whole checkpoint that the encoder belongs to, None where there is the encoder alone.
    """

    def __init__(
        self,
        name: str,
        tower: PreTrainedModel,
        colors: tuple[Sequence[float], Sequence[float]],
        layer: int = -1,
        fit: Fit = "letterbox",
        model: RegionModel | None = None,
    ):
        """`colors` are the mean and the deviation of each channel, in [0, 1].

        Raises:
            ValueError: the tower does not cut a square canvas into a square grid of patches.
        """
        self.name, self.tower, self.layer, self.fit, self.model = name, tower.eval(), layer, fit, model
        self.mean, self.std = (torch.tensor(values, dtype=torch.float32) for values in colors)
        config = tower.config
        self.canvas = _side(name, config, "image_size")
        self.patch = _side(name, config, "patch_size")
        self.grid = self.canvas // self.patch

    @classmethod
    def of(cls, model: RegionModel, name: str) -> PatchEncoder:
        """The encoder of a checkpoint, with the checkpoint's own way to show pictures."""
        colors = (model.processor.image_processor.image_mean, model.processor.image_processor.image_std)
        tower, layer = model.llava.model.vision_tower, model.llava.config.vision_feature_layer
        return cls(name, tower, colors, layer, model.settings.fit, model)

    def view(self, size: tuple[int, int]) -> View:
        """How a whole image of (width, height) pixels becomes the canvas."""
        return View.fit(self.fit, size, self.canvas)

    def show(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Whole EXIF-upright RGB pictures -> canvases, uint8 (N, H, W, 3)."""
        fill = tuple(int(v * 255) for v in self.mean.tolist())
        canvases = [np.asarray(self.view(p.size).apply(p, fill)) for p in pictures]  # type: ignore[arg-type]
        return torch.from_numpy(np.stack(canvases))

    @torch.inference_mode()
    def features(self, canvases: Tensor) -> Tensor:
        """Patch features of canvases uint8 (N, H, W, 3): (N, P, D), as the language model of a checkpoint gets them."""
        if self.model is not None:
            return self.model.patches(self.model.features(canvases.to(self.model.device)))
        return self._patches(self._run(canvases).hidden_states[self.layer])

    @torch.inference_mode()
    def encode(self, canvases: Tensor) -> EncoderOutput:
        """Features, and the attention of every layer that leads to them."""
        with eager_attention(self.tower):
            layers = self._run(canvases, output_attentions=True).attentions
        if not layers:
            raise GranvitError(f"{self.name}: {type(self.tower).__name__} gives no attention")
        patches = self.grid**2
        # The last of the hidden states is what the last layer gives.
        leading = layers[: len(layers) + 1 + self.layer]
        return EncoderOutput(self.features(canvases), [layer[..., -patches:, -patches:] for layer in leading])

    def _run(self, canvases: Tensor, **options: bool) -> Any:
        device, dtype = self.tower.device, self.tower.dtype
        pixels = normalise(canvases.to(device), self.mean.to(device), self.std.to(device)).to(dtype)
        return self.tower(pixel_values=pixels, output_hidden_states=True, **options)

    def _patches(self, hidden: Tensor) -> Tensor:
        if hidden.ndim != 3 or hidden.shape[1] < self.grid**2:
            raise GranvitError(
                f"{self.name}: hidden states of shape {tuple(hidden.shape)} do not hold {self.grid} x {self.grid} "
                f"patches; an encoder that keeps one token for each patch of {self.patch} px is needed"
            )
        return hidden[:, -(self.grid**2) :]

    def coverage(self, view: View, boxes: Any) -> Boxes:
        """How much of each patch each box covers, in [0, 1], (R, P); boxes (R, 4) in image pixels."""
        cells_p4 = cells(self.grid, self.patch)
        return intersection(view.to_canvas(view.clip(as_boxes(boxes))), cells_p4) / area(cells_p4)


@contextmanager
def eager_attention(module: PreTrainedModel) -> Iterator[None]:
    """Within, the module computes attention in the one way that can tell its weights."""
    before = module.config._attn_implementation
    module.set_attn_implementation("eager")
    try:
        yield
    finally:
        module.set_attn_implementation(before)


def load_patch_encoder(folder: Path | str, device: str | torch.device = "cpu", name: str | None = None) -> PatchEncoder:
    """A granvit checkpoint or run, or the directory of an encoder.

    That is one of a family that can be trained here, or any other transformers vision model that keeps one token for
    each patch (ViT, BEiT, I-JEPA, RADIO...). A checkpoint sees pictures as it was trained to; for a bare encoder they
    are padded to a square.

    Raises:
        ValueError: no such model, or its weights or colours are missing.
        CheckpointError: a granvit checkpoint is damaged.
    """
    folder = Path(folder)
    name = name or folder.name
    inner = checkpoint_of(folder)
    if (inner / SETTINGS_FILE).exists():
        return PatchEncoder.of(RegionModel.load(inner, device), name)
    try:
        kind = load(AutoConfig, inner).model_type
    except LoadError as error:
        raise GranvitError(f"{inner}: no encoder that transformers can load: {error.within(inner)}") from error
    if kind in _KNOWN:
        known = load_encoder(inner)
        layer = family_of(known.tower.config).layer
        return PatchEncoder(name, known.tower.to(device), (known.mean, known.std), layer)
    return PatchEncoder(name, _any_tower(inner).to(device), _colors(inner))


def load_patch_encoders(folders: Sequence[Path | str], device: str | torch.device = "cpu") -> list[PatchEncoder]:
    """Several, each under a name of its own: as much of its path as tells it from the others.

    Raises:
        ValueError: as `load_patch_encoder`, or one directory is named twice.
    """
    paths = [Path(folder) for folder in folders]
    if len({p.resolve() for p in paths}) < len(paths):
        raise GranvitError("the same encoder is named twice")
    telling = [p.parent if p.name in _SILENT and p.parent.name else p for p in paths]
    names = [p.name for p in telling]
    if len(set(names)) < len(names):
        names = [str(p) for p in paths]
    return [load_patch_encoder(p, device, name) for p, name in zip(paths, names, strict=True)]


def _any_tower(folder: Path) -> PreTrainedModel:
    try:
        return load_model(AutoModel, folder, dtype=torch.float32, may_lack=_BEHIND)
    except LoadError as error:
        raise GranvitError(f"{folder}: no encoder that transformers can load: {error.within(folder)}") from error


def _side(name: str, config: Any, field: str) -> int:
    value = getattr(config, field, None)
    sides = set(value) if isinstance(value, (list, tuple)) else {value}
    if len(sides) != 1 or not isinstance(side := sides.pop(), int):
        raise GranvitError(
            f"{name}: config.json: {field} is {value!r}, one number is needed (square canvas and patches)"
        )
    return side


def _colors(folder: Path) -> tuple[Sequence[float], Sequence[float]]:
    settings = image_settings(folder)
    if "image_mean" not in settings or "image_std" not in settings:
        raise GranvitError(
            f"{folder}/preprocessor_config.json: no image_mean and image_std, so the colours that this encoder expects "
            "are unknown"
        )
    return settings["image_mean"], settings["image_std"]
