"""LoRA adapters on the disk, in the layout of peft, and merged into the model that they belong to.

    adapter_config.json         rank, alpha, and where the base is: a model's folder, relative to this one or absolute
    adapter_model.safetensors   the pairs of low-rank matrices, and the weights that were trained whole, by their names
    base.json                   SHA-256 of the base's weights
    granvit.json                as in every checkpoint

An adapter changes W to W + alpha / rank * B A (arXiv 2106.09685, section 4.1). Reading and merging need no peft, and
nothing of the files decides more than numbers: what an adapter changes is told by the names of its tensors.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from granvit.files import sha256
from granvit.loading.checkpoint_files import LoadError, check_files, read_json, shards

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"
# peft's for the model that it has wrapped.
PREFIX = "base_model.model."
# The parts that an adapter may hold whole, and the one that it changes.
PROJECTOR, TOWER, LANGUAGE = "model.multi_modal_projector", "model.vision_tower", "model.language_model"

_PAIR = re.compile(r"(.+)\.lora_(A|B)\.weight")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# Of peft's settings those that change no number of a trained adapter, or only say which layers have one.
_HARMLESS = frozenset(
    ("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "modules_to_save", "peft_type")
    + ("base_model_name_or_path", "inference_mode", "init_lora_weights", "peft_version", "revision", "task_type")
    + ("auto_mapping", "layers_to_transform", "layers_pattern", "megatron_core", "qalora_group_size")
)
_LARGEST_RANK = 1 << 16


@dataclass(frozen=True)
class Adapter:
    """An adapter as it was read.

    Attributes:
        folder: where it lies. base: the folder of the model that it belongs to, whose weights are the right ones.
        rank: of every pair. scale: what the product of a pair counts, alpha / rank.
        pairs: the name of a linear layer -> A (rank, in) and B (out, rank).
        whole: weights that take the place of the base's, by name.
    """

    folder: Path
    base: Path
    rank: int
    scale: float
    pairs: dict[str, tuple[Tensor, Tensor]]
    whole: dict[str, Tensor]


def is_adapter(folder: Path | str) -> bool:
    """Whether a folder holds an adapter in place of a whole model."""
    return (Path(folder) / CONFIG).exists()


def weights_of(folder: Path) -> dict[str, str]:
    """File -> SHA-256 of all that decides the weights of a model's folder; of an adapter that includes its base's.

    Raises:
        LoadError: there is no such folder, or a file of it is missing or is none.
    """
    if not folder.is_dir():
        raise LoadError(folder, "no such folder")
    check_files(folder)
    files = [folder / name for name in (CONFIG, WEIGHTS, BASE)] if is_adapter(folder) else shards(folder)
    digests = {}
    for path in files:
        try:
            digests[path.name] = sha256(path)
        except OSError as error:
            raise LoadError(path, f"cannot be read: {error.strerror}") from error
    return digests


def root_of(folder: Path) -> Path:
    """The folder with tokenizer and configs: a whole model's own, an adapter's base's. The adapters are sound."""
    while is_adapter(folder):
        folder = _base(folder, read_json(folder / CONFIG))
    return folder


def read_adapter(folder: Path) -> Adapter:
    """The adapter of a folder, whose base is there and is the one that it was trained on.

    Raises:
        LoadError: a file is missing, damaged, a pickle, or asks for more than plain LoRA; or the base is missing or
            another. The message names file and field.
    """
    check_files(folder)
    for path in sorted(folder.iterdir()):
        if path.suffix in _PICKLES:
            raise LoadError(path, f"a pickle, which is never read; an adapter's weights are {WEIGHTS}")
    config = read_json(folder / CONFIG)
    rank, alpha = _check_config(folder / CONFIG, config)
    base = _base(folder, config)
    _check_base(folder, base)
    tensors = _read_tensors(folder / WEIGHTS)
    pairs, whole = _sorted(folder / WEIGHTS, tensors, rank)
    return Adapter(folder, base, rank, alpha / rank, pairs, whole)


def _check_config(path: Path, config: dict[str, Any]) -> tuple[int, float]:
    """Rank and alpha of an adapter that is nothing but LoRA."""
    if config.get("peft_type") != "LORA":
        raise LoadError(path, f"peft_type is {config.get('peft_type')!r}, only 'LORA' is read")
    for name, value in config.items():
        plain = not value or (name, value) == ("bias", "none") or value == {"ephemeral_gpu_offload": False}
        if name not in _HARMLESS and not plain:
            raise LoadError(path, f"{name} is {json.dumps(value)[:60]}: only plain LoRA is read")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or not 1 <= rank <= _LARGEST_RANK:
        raise LoadError(path, f"r is {json.dumps(rank)[:60]}, not a whole number from 1 to {_LARGEST_RANK:,}")
    if type(alpha) not in (int, float) or not 0 < alpha <= 1e6:  # type: ignore[operator]
        raise LoadError(path, f"lora_alpha is {json.dumps(alpha)[:60]}, not a positive number of at most a million")
    return rank, float(alpha)  # type: ignore[arg-type]


def _base(folder: Path, config: dict[str, Any]) -> Path:
    stated = config.get("base_model_name_or_path")
    if not isinstance(stated, str) or not stated or "\0" in stated:
        raise LoadError(folder / CONFIG, f"base_model_name_or_path is {json.dumps(stated)[:60]}, not a folder")
    return folder / stated


def _check_base(folder: Path, base: Path) -> None:
    """Holds the base's weights to what `base.json` says of them."""
    stated = read_json(folder / BASE).get("weights")
    if not isinstance(stated, dict) or not stated or not all(isinstance(value, str) for value in stated.values()):
        raise LoadError(folder / BASE, "weights is no object of files with their SHA-256")
    way = f"base_model_name_or_path in {folder / CONFIG} says where it is"
    try:
        there = base.is_dir()
    except OSError:  # a name that is too long
        there = False
    if not there:
        raise LoadError(folder, f"a LoRA adapter whose base is not there: no folder {base}; {way}")
    found = weights_of(base)
    for name in sorted(stated.keys() | found.keys()):
        if stated.get(name) != found.get(name):
            raise LoadError(
                folder, f"a LoRA adapter of another base than {base}: its {name} has another SHA-256; {way}"
            )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise LoadError(path, f"cannot be read: {error}") from error


def _sorted(
    path: Path, tensors: dict[str, Tensor], rank: int
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """The pairs and the whole weights among an adapter's tensors."""
    halves: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for stated, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise LoadError(path, f"{stated} is not finite (NaN or infinity)")
        name = stated.removeprefix(PREFIX)
        if half := _PAIR.fullmatch(name):
            halves.setdefault(half[1], {})[half[2]] = tensor
        else:
            whole[name] = tensor
    pairs = {}
    for name, pair in halves.items():
        if len(pair) < 2 or pair["A"].ndim != 2 or pair["B"].ndim != 2:
            raise LoadError(path, f"{name}: lora_A or lora_B is missing or no matrix")
        if {pair["A"].shape[0], pair["B"].shape[1]} != {rank}:
            shapes = f"{tuple(pair['A'].shape)} and {tuple(pair['B'].shape)}"
            raise LoadError(path, f"{name}: lora_A and lora_B are {shapes}, {CONFIG} says r {rank}")
        pairs[name] = (pair["A"], pair["B"])
    if not pairs:
        raise LoadError(path, "no lora_A and lora_B of any layer")
    return pairs, whole


def write_adapter(source: Path, folder: Path, dtype: torch.dtype) -> None:
    """The adapter of `source`, which is sound, as peft alone reads it; without its base's path."""
    config = {**read_json(source / CONFIG), "base_model_name_or_path": None}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tensors = {name: tensor.to(dtype) for name, tensor in _read_tensors(source / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


@torch.no_grad()
def merge(llava: nn.Module, adapter: Adapter) -> None:
    """Adds an adapter to the weights of its base, in place, each matrix in float32.

    Raises:
        LoadError: it has no place in this model; the message names the tensor. The model is unchanged then.
    """
    path, modules, weights = adapter.folder / WEIGHTS, dict(llava.named_modules()), dict(llava.named_parameters())
    for name, (a, b) in adapter.pairs.items():
        layer = modules.get(name)
        if not name.startswith(f"{LANGUAGE}.") or not isinstance(layer, nn.Linear):
            raise LoadError(path, f"{name}: the base's language model has no such linear layer")
        if (b.shape[0], a.shape[1]) != layer.weight.shape:
            raise LoadError(
                path, f"{name}: a change of {b.shape[0]}x{a.shape[1]}, the base has {tuple(layer.weight.shape)}"
            )
    for name, tensor in adapter.whole.items():
        if not name.startswith((f"{PROJECTOR}.", f"{TOWER}.")) or name not in weights:
            raise LoadError(path, f"{name}: no weight of the base's projector or encoder")
        if tensor.shape != weights[name].shape:
            raise LoadError(path, f"{name} is {tuple(tensor.shape)}, the base has {tuple(weights[name].shape)}")
    for name, (a, b) in adapter.pairs.items():
        weight = weights[f"{name}.weight"]
        change = adapter.scale * (b.float() @ a.float())
        weight.copy_(weight.float() + change.to(weight.device))
    for name, tensor in adapter.whole.items():
        weights[name].copy_(tensor)
