"""Features of a frozen encoder on disk: a picture is encoded once, however often its image comes up again.

folder/
  cache.json                        which encoder, in which precision, and how features are kept
  features-RANK-NUMBER.safetensors  one tensor (T, D) per canvas, named by its digest; a tiled picture has several

A picture is known by all of its canvas's bytes, so neither two corpora that use the same id nor a corpus that was
changed can be mistaken. Every process writes files of its own, whole or not at all, and reads all that were there when
it started.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from granvit.errors import CheckpointError
from granvit.files import atomic_file, locked, read_json, write_text
from granvit.model.region_model import RegionModel

FACTS = "cache.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# A file holds so many bytes of features.
_FILE_BYTES = 1 << 28


class FeatureCache:
    """Image tokens by the digest of their canvas."""

    def __init__(
        self,
        folder: Path | str,
        model: RegionModel,
        dtype: Literal["fp32", "bf16"] = "fp32",
        gigabytes: float = 100.0,
        rank: int = 0,
        ranks: int = 1,
    ):
        """For the model's encoder as it is now. The folder is opened when the first features are asked for.

        `gigabytes` is what the folder may hold; each of the `ranks` processes adds its share of what is left, and what
        finds no room is encoded each time.
        """
        self.folder, self.model, self.dtype, self.rank = Path(folder), model, dtype, rank
        self._limit, self._ranks = int(gigabytes * 1e9), ranks
        self._encoder = encoder_digest(model)
        self._is_open = False
        self._files: dict[str, Any] = {}  # digest -> the open file that holds it
        self._new: dict[str, Tensor] = {}
        self._room = 0
        self._number = 0

    @torch.no_grad()
    def features(self, pixels: Tensor, digests: Sequence[str]) -> Tensor:
        """`model.features(pixels)`, (I, T, D), computed for pictures alone that are not in the cache.

        Raises:
            CheckpointError: the folder holds features of another encoder or precision, or a damaged file.
        """
        if not self._is_open:
            self._open(pixels.device.type)
        missing = [i for i, digest in enumerate(digests) if digest not in self._files and digest not in self._new]
        rows: dict[int, Tensor] = {}
        if missing:
            computed = self.model.features(pixels[missing]).to(DTYPES[self.dtype])
            rows.update(zip(missing, computed, strict=True))
        for i, digest in enumerate(digests):
            if i not in rows:
                rows[i] = self._stored(digest).to(pixels.device, non_blocking=True)
        for i in missing:
            self._add(digests[i], rows[i])
        return torch.stack([rows[i] for i in range(len(digests))]).to(self.model.llava.dtype)

    def _open(self, device: str) -> None:
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.model.llava.dtype
        facts = {"encoder": self._encoder, "computed in": str(precision), "kept in": self.dtype}
        path = self.folder / FACTS
        with locked(path, wait=True):
            if not path.exists():
                write_text(path, json.dumps(facts, indent=1) + "\n")
        stored = read_json(path, CheckpointError)
        for name, value in facts.items():
            there = stored.get(name) if isinstance(stored, dict) else None
            if there != value:
                raise CheckpointError(
                    f"{path}: {name} is {there!r} there and {value!r} in this run: name another folder as "
                    "loop.feature_cache, or delete this one"
                )
        files = sorted(self.folder.glob("features-*.safetensors"))
        for file in files:
            try:
                opened = safe_open(file, framework="pt")
                self._files.update(dict.fromkeys(opened.keys(), opened))
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{file}: {error}; delete it, its pictures are then encoded anew") from error
        self._room = (self._limit - sum(file.stat().st_size for file in files)) // self._ranks
        own = [int(file.stem.rsplit("-", 1)[1]) for file in files if file.stem.startswith(f"features-{self.rank}-")]
        self._number = max(own, default=-1) + 1
        self._is_open = True

    def _stored(self, digest: str) -> Tensor:
        if digest in self._new:
            return self._new[digest]
        features: Tensor = self._files[digest].get_tensor(digest)
        return features

    def _add(self, digest: str, features: Tensor) -> None:
        if digest in self._new or features.nbytes > self._room:
            return
        self._room -= features.nbytes
        self._new[digest] = features.cpu()
        if sum(tensor.nbytes for tensor in self._new.values()) >= _FILE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what is not on the disk yet."""
        if not self._new:
            return
        path = self.folder / f"features-{self.rank}-{self._number:06d}.safetensors"
        while path.exists():  # another run fills the same folder
            self._number += 1
            path = self.folder / f"features-{self.rank}-{self._number:06d}.safetensors"
        with atomic_file(path) as unfinished:
            save_file({k: v.contiguous() for k, v in self._new.items()}, unfinished)
        opened = safe_open(path, framework="pt")
        self._files.update(dict.fromkeys(self._new, opened))
        self._number += 1
        self._new = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()


def encoder_digest(model: RegionModel) -> str:
    """What features depend on besides pixels and precision: the tower's weights and config, and the normalisation."""
    tower, processor = model.llava.model.vision_tower, model.processor.image_processor
    facts = [tower.config.to_dict(), list(processor.image_mean), list(processor.image_std)]
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True, default=str).encode(), digest_size=16)
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
