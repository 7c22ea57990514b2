"""Which numbers settings may be: checked before anything is loaded, so that what can't go well never begins."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from granvit.errors import GranvitError

Ranges = Mapping[str, tuple[float, float]]

LARGEST = 2**31 - 1
_SHARE = (0.0, 1.0)
_AT_LEAST_1 = (1, LARGEST)

# Smallest and largest by a setting's own name, or with that of its group; all others are from 0 to `LARGEST`.
ANY: Ranges = {"seed": (0, 2**32 - 1), "min_confidence": _SHARE}  # what numpy takes as a seed
OF_RECIPES: Ranges = {
    **ANY,
    **dict.fromkeys(("batch_size", "images_per_step", "log_every", "save_keep"), _AT_LEAST_1),
    **dict.fromkeys(("train", "val", "max_answer", "max_tokens", "canvas", "text_tile"), _AT_LEAST_1),
    **dict.fromkeys(("questions", "subphrases", "mirror", "windows", "documents", "prints"), _SHARE),
    **dict.fromkeys(("alpha", "blur", "smear", "min_lr_ratio"), _SHARE),
    "betas": (0.0, 0.9999999),
    "epochs": (math.nextafter(0.0, 1.0), 1e9),
    "window_side": (1e-3, 1e3),
    "lora.rank": (1, 1 << 16),
    "lora.alpha": (math.nextafter(0.0, 1.0), 1e6),
    "lora.dropout": (0.0, 0.99),
    "size": (32, 10_000),
}


def check_ranges(settings: Any, ranges: Ranges = ANY) -> None:
    """Refuses a number that is not finite or out of its setting's range, anywhere in a dataclass of dataclasses.

    Raises:
        GranvitError: the message names the setting as the command line does.
    """
    for path, own, number in _numbers(settings, "", ""):
        grouped = ".".join(path.split(".")[-2:])
        low, high = ranges.get(grouped, ranges.get(own, (0, LARGEST)))
        if not (math.isfinite(number) and low <= number <= high):
            possible = f"at least {low:g}" if math.isfinite(number) and number < low else f"from {low:g} to {high:g}"
            raise GranvitError(f"--{path.replace('_', '-')} {number}: must be {possible}")


def _numbers(value: Any, path: str, own: str) -> Iterator[tuple[str, str, float]]:
    """Where each number is, and the name of the setting that it belongs to."""
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield path, own, value
        return
    inner: list[tuple[str, str, Any]] = []
    if is_dataclass(value):
        inner = [(field.name, field.name, getattr(value, field.name)) for field in fields(value)]
    elif isinstance(value, Mapping):
        inner = [(str(key), own, part) for key, part in value.items()]
    elif isinstance(value, list | tuple):
        inner = [(str(index), own, part) for index, part in enumerate(value)]
    for name, setting, part in inner:
        yield from _numbers(part, f"{path}.{name}" if path else name, setting)
