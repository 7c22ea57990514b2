"""Tensors on the disk: safetensors files, written to the last byte and checked when they are read.

Of sharded weights (FSDP2) a folder of such files, one per rank (torch's distributed checkpoint): every rank writes what
it holds, and any number of ranks reads it back, each what it needs. torch's own way of storing such a checkpoint keeps
its table of contents as a pickle; its Hugging Face form, used here, keeps it in the files' headers.
"""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

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


def distinct(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of a module with each of its tensors once; a tied one under its first name."""
    first: dict[int, str] = {}
    kept = module.state_dict(keep_vars=True)
    return {name: tensor.detach() for name, tensor in kept.items() if first.setdefault(id(tensor), name) == name}


def write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> list[Path]:
    """Writes the rank's part of `tensors` to files of its own in `folder`, and returns these. Every rank calls it."""
    from torch.distributed.checkpoint import HuggingFaceStorageWriter, save

    if tensors:
        save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    return sorted(folder.glob(f"shard-{dist.get_rank() + 1:05d}-*.safetensors"))


def read_shards(folder: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """New tensors, each spread over the ranks as the one of the same name in `expected`, if `folder` holds just these.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of another shape or type, or a file is damaged.
    """
    from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader, load
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    try:
        stored = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata if folder.exists() else {}
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointError(f"{folder}: cannot be read: {error}") from error
    for name, tensor in expected.items():
        if name not in stored:
            raise CheckpointError(f"{folder}: tensor {name!r} is missing")
        found = stored[name]
        assert isinstance(found, TensorStorageMetadata)  # such files hold nothing else
        there, here = (found.properties.dtype, tuple(found.size)), (tensor.dtype, tuple(tensor.shape))
        if there != here:
            raise CheckpointError(
                f"{folder}: tensor {name!r} is {there[0]} {there[1]}, this run has {here[0]} {here[1]}"
            )
    if unknown := sorted(stored.keys() - expected.keys()):
        raise CheckpointError(f"{folder}: tensor {unknown[0]!r} is unknown to this run ({len(unknown)} such)")
    tensors = {name: torch.empty_like(tensor, requires_grad=False) for name, tensor in expected.items()}
    if tensors:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process reads for itself
                load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)))
        except CheckpointException as error:
            raise CheckpointError(f"{folder}: cannot be read: {next(iter(error.failures.values()))}") from error
    return tensors
