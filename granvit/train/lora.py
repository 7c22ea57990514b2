"""Low-rank adapters on the language model in place of its own weights (LoRA, arXiv 2106.09685), through peft.

They live as long as the stage that trains them: what it leaves is an adapter beside its base (`granvit.model.adapter`),
and whoever goes on from there, another stage too, loads it merged into that base.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from granvit.errors import GranvitError
from granvit.loading.checkpoint_files import read_json
from granvit.model.adapter import BASE, CONFIG, LANGUAGE, PREFIX, PROJECTOR, TOWER, WEIGHTS, weights_of
from granvit.model.provenance import PROVENANCE_FILE, write_sources
from granvit.model.region_model import RegionModel
from granvit.model.settings import SETTINGS_FILE
from granvit.train.config import Lora


@dataclass(frozen=True)
class Base:
    """The model that a stage's adapter belongs to: its folder, and the SHA-256 of each file of its weights."""

    folder: Path
    weights: dict[str, str]

    @classmethod
    def of(cls, folder: Path) -> Base:
        return cls(Path(os.path.realpath(folder)), weights_of(folder))

    @property
    def digest(self) -> str:
        """Short for its weights."""
        return hashlib.sha256(json.dumps(self.weights, sort_keys=True).encode()).hexdigest()[:16]


def check_targets(llava: nn.Module, lora: Lora) -> None:
    """Refuses names of layers of which the language model has none.

    Raises:
        GranvitError: the message names them, and those that there are.
    """
    inner = [name for name, part in llava.named_modules() if isinstance(part, nn.Linear)]
    there = {name.rpartition(".")[2] for name in inner if name.startswith(f"{LANGUAGE}.")}
    if not lora.targets or (unknown := set(lora.targets) - there):
        said = f"the language model has no linear layer {min(unknown)!r}" if lora.targets else "no layer is named"
        raise GranvitError(f"lora.targets: {said}; there are {', '.join(sorted(there))}")


def add_adapters(llava: nn.Module, lora: Lora, seed: int) -> None:
    """Puts an adapter beside each target in the language model, in place; nothing else changes what is computed.

    The first matrix of a pair is random, by `seed` alone, and the second zero.

    Raises:
        GranvitError: as `check_targets`.
    """
    check_targets(llava, lora)
    from peft import inject_adapter_in_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(_peft_config(lora), llava)


def _peft_config(lora: Lora, **more: Any) -> Any:
    from peft import LoraConfig

    settings: Any = {"r": lora.rank, "lora_alpha": lora.scaled, "lora_dropout": lora.dropout, **more}
    targets = "|".join(map(re.escape, sorted(lora.targets)))
    # The encoder's layers are called alike.
    return LoraConfig(target_modules=rf"{re.escape(LANGUAGE)}\..*\.({targets})", **settings)


def adapter_parameters(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for name, parameter in module.named_parameters() if ".lora_" in name]


def trained_names(llava: nn.Module) -> set[str]:
    """The weights that a stage has trained, by the names of the state dict."""
    return {name for name, parameter in llava.named_parameters() if parameter.requires_grad}


def save_adapter(
    folder: Path, place: Path, model: RegionModel, weights: Mapping[str, Tensor], lora: Lora, base: Base
) -> None:
    """Write the adapter of a stage's model, in peft's layout.

    Args:
        folder: written to. place: where that folder will be, which the way to the base begins at.
        weights: those that were trained, by their names in `model`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {PREFIX + name.replace(".default.", "."): t.detach().cpu().contiguous() for name, t in weights.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    parts = [part for part in (PROJECTOR, TOWER) if any(name.startswith(f"{part}.") for name in weights)]
    whole = [part.rpartition(".")[2] for part in parts]
    config = _peft_config(lora, modules_to_save=whole, inference_mode=True)
    config.base_model_name_or_path = _way(place, base.folder)
    config.save_pretrained(folder)
    (folder / BASE).write_text(json.dumps({"weights": base.weights}, indent=1) + "\n")
    (folder / SETTINGS_FILE).write_text(json.dumps(model.settings.to_json(), indent=2) + "\n")
    write_sources(model.sources, folder)


def copy_adapter(source: Path, folder: Path, place: Path) -> None:
    """The same adapter in another folder of the run; `folder` and `place` as in `save_adapter`."""
    folder.mkdir(parents=True, exist_ok=True)
    known = [PROVENANCE_FILE] if (source / PROVENANCE_FILE).exists() else []
    for name in (WEIGHTS, BASE, SETTINGS_FILE, *known):
        shutil.copyfile(source / name, folder / name)
    config = read_json(source / CONFIG)
    config["base_model_name_or_path"] = _way(place, source / config["base_model_name_or_path"])
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))


def _way(place: Path, base: Path) -> str:
    """Relative within a run, so that the run can be moved; absolute to a base elsewhere."""
    place, base = Path(os.path.realpath(place)), Path(os.path.realpath(base))
    run = place.parent.parent if place.name == "model" else place.parent
    return os.path.relpath(base, place) if base.is_relative_to(run) else str(base)
