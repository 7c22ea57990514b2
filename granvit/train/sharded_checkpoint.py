"""Tensors of all ranks on the disk: a folder of safetensors files, one per rank (torch's distributed checkpoint).

Every rank writes what it holds, and any number of ranks reads it back, each what it needs. torch's own way of storing
such a checkpoint keeps its table of contents as a pickle; its Hugging Face form, used here, keeps it in the files'
headers.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn

from granvit.errors import CheckpointError


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
    """New tensors, each spread over the ranks as its namesake in `expected`, if `folder` holds just these.

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
