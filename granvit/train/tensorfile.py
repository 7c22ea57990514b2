"""Tensors on the disk: safetensors files, written to the last byte and checked when they are read."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from granvit.errors import CheckpointError, GranvitError
from granvit.files import open_regular


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file in which tied tensors are stored once and their other names in the header."""
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        storage = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and storage in first:
            aliases[name] = first[storage]
        else:
            first[storage] = name
            kept[name] = tensor.detach().contiguous()
    save_file(kept, path, metadata={"format": "pt", "tied": json.dumps(aliases)})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that `write_tensors` made, tied ones under all their names.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        open_regular(path).close()  # the library would wait for ever on a pipe
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            tied = json.loads((file.metadata() or {}).get("tied", "{}"))
    except (OSError, SafetensorError, GranvitError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    return {**tensors, **{name: tensors[kept] for name, kept in tied.items()}}


def read_expected(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, tied ones under all their names, if they are the expected ones."""
    stored = read_tensors(path)
    for name, tensor in expected.items():
        if name not in stored:
            raise CheckpointError(f"{path}: tensor {name!r} is missing")
        if stored[name].shape != tensor.shape or stored[name].dtype != tensor.dtype:
            there, here = (f"{t.dtype} {tuple(t.shape)}" for t in (stored[name], tensor))
            raise CheckpointError(f"{path}: tensor {name!r} is {there}, this run has {here}")
    if unknown := sorted(stored.keys() - expected.keys()):
        raise CheckpointError(f"{path}: tensor {unknown[0]!r} is unknown to this run ({len(unknown)} such)")
    return stored


def facts_of(path: Path) -> dict[str, int]:
    """Length and checksum of a file, by which damage is found."""
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return {"bytes": path.stat().st_size, "crc32": crc}


def check_file(path: Path, facts: Mapping[str, int]) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: is missing")
    if path.stat().st_size != facts["bytes"]:
        raise CheckpointError(f"{path}: has {path.stat().st_size} bytes, {facts['bytes']} were written")
    if facts_of(path) != facts:
        raise CheckpointError(f"{path}: is damaged, its checksum differs")
