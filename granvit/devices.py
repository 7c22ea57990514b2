"""Where models run: what `--device` names, checked before anything is loaded."""

from __future__ import annotations

from granvit.errors import GranvitError


def chosen_device(wanted: str) -> str:
    """A device as torch calls it; "auto" is the first GPU, or the CPU where there is none.

    Args:
        wanted: "auto", "cpu", "cuda" or "cuda:1".

    Raises:
        GranvitError: torch knows no such device, or sees none here.
    """
    import torch  # here, because the program's help needs the name and not the seconds that torch takes

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise GranvitError(f"--device {wanted}: no such device; take auto, cpu, cuda or cuda:0") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        seen = f"only {torch.cuda.device_count()}" if torch.cuda.is_available() else "none"
        raise GranvitError(f"--device {wanted}: torch sees {seen} of such GPUs here; take --device cpu, or auto")
    return wanted
