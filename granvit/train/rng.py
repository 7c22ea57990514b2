"""The state of every random generator a training step may draw from."""

from __future__ import annotations

import base64
import random
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed

Raw = dict[str, Any]


def snapshot() -> Raw:
    """The generators of Python, NumPy, torch and the current CUDA device, as they are now."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state(), "cuda": cuda}


def encode(raw: Raw) -> dict[str, Any]:
    """A snapshot as JSON-able values."""
    version, words, gauss = raw["python"]
    name, keys, *rest = raw["numpy"]
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, keys.tolist(), *rest],
        "torch": _text(raw["torch"]),
        "cuda": None if raw["cuda"] is None else _text(raw["cuda"]),
    }


def restore(encoded: dict[str, Any]) -> None:
    """Sets every generator to what `encode` described."""
    version, words, gauss = encoded["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = encoded["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    torch.set_rng_state(_bytes(encoded["torch"]))
    if encoded["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(_bytes(encoded["cuda"]))


def start(*place: int) -> None:
    """New generators for one rank of several that go on where another number of ranks stopped."""
    set_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))


def _text(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
