"""Which device a command computes on."""

from __future__ import annotations

from typing import Literal

from granvit.errors import GranvitError

Device = Literal["auto", "cpu", "cuda"]


def pick_device(device: str) -> str:
    """The device that `--device` names: "auto" is the GPU where there is one.

    Raises:
        GranvitError: CUDA is asked for where there is none.
    """
    import torch  # takes seconds, which a command that fails before this point is spared

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise GranvitError(f"--device {device}: torch sees no CUDA GPU here; use --device cpu, or auto")
    return device
