"""Which device a command computes on."""

from __future__ import annotations

from typing import Literal

from granvit.errors import GranvitError

Device = Literal["auto", "cpu", "cuda"]


def pick_device(device: str) -> str:
    """The device that `--device` names: "auto" is the GPU where there is one, "cuda:1" the second.

    Raises:
        GranvitError: torch knows no such device, or sees none here.
    """
    import torch  # takes seconds, which a command that fails before this point is spared

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise GranvitError(f"--device {device}: no such device; use auto, cpu, cuda or cuda:0") from None
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise GranvitError(f"--device {device}: torch sees no CUDA GPU here; use --device cpu, or auto")
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise GranvitError(f"--device {device}: torch sees {torch.cuda.device_count()} GPU(s) here")
    return device
