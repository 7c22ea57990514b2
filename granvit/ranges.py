"""Which numbers settings may be: checked before anything is loaded, so that what can't go well never begins."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_type_hints

from granvit.errors import GranvitError

Ranges = Mapping[str, tuple[float, float]]

LARGEST = 2**31 - 1
ABOVE_0, BELOW_1 = math.nextafter(0.0, 1.0), math.nextafter(1.0, 0.0)
_SHARE = (0.0, 1.0)
_AT_LEAST_1 = (1, LARGEST)
_ABOVE_0 = (ABOVE_0, LARGEST)

# Smallest and largest by a setting's own name, or with that of its group; all others are from 0 to `LARGEST`.
ANY: Ranges = {
    "seed": (0, 2**32 - 1),  # what numpy takes as a seed
    "min_confidence": _SHARE,
    "similarity": (ABOVE_0, 1.0),
    **dict.fromkeys(("val_fraction", "overlap", "detect.threshold"), (0.0, BELOW_1)),
    "detect.nms_iou": (ABOVE_0, 1.0),
    **dict.fromkeys(("batch", "shard_images", "questions_per_conversation", "samples_per_shard"), _AT_LEAST_1),
    **dict.fromkeys((f"detect.{name}" for name in ("top_k", "batch_size")), _AT_LEAST_1),
    **dict.fromkeys((f"caption.{name}" for name in ("max_words", "region_tokens", "global_tokens")), _AT_LEAST_1),
    **dict.fromkeys((f"caption.{name}" for name in ("concurrency", "batch_size")), _AT_LEAST_1),
    **dict.fromkeys(("image_seconds", "caption.timeout_s", "caption.patience_s"), _ABOVE_0),
    "caption.longest_side": (28, LARGEST),
}
OF_RECIPES: Ranges = {
    **ANY,
    **dict.fromkeys(("batch_size", "images_per_step", "log_every", "save_keep"), _AT_LEAST_1),
    **dict.fromkeys(("train", "val", "max_answer", "max_tokens", "canvas", "text_tile"), _AT_LEAST_1),
    **dict.fromkeys(("questions", "subphrases", "mirror", "windows", "documents", "prints"), _SHARE),
    **dict.fromkeys(("alpha", "blur", "smear", "min_lr_ratio"), _SHARE),
    "betas": (0.0, 0.9999999),
    "epochs": (ABOVE_0, 1e9),
    "window_side": (1e-3, 1e3),
    "lora.rank": (1, 1 << 16),
    "lora.alpha": (ABOVE_0, 1e6),
    "lora.dropout": (0.0, 0.99),
    "size": (32, 10_000),
}


def check_ranges(settings: Any, ranges: Ranges = ANY) -> None:
    """Refuses a number that is not finite or out of its setting's range, anywhere in a dataclass of dataclasses.

    Raises:
        GranvitError: the message names the setting as it is typed on the command line.
    """
    for flag, name, number in _numbers(settings, "", ()):
        own = name[-1] if name else ""
        low, high = ranges.get(".".join(name[-2:]), ranges.get(own, (0, LARGEST)))
        if not (math.isfinite(number) and low <= number <= high):
            below = math.isfinite(number) and number < low
            raise GranvitError(f"--{flag} {number}: must be {_least(low) if below else _possible(low, high)}")


def _least(low: float) -> str:
    return "above 0" if low == ABOVE_0 else f"at least {low:g}"


def _possible(low: float, high: float) -> str:
    if ABOVE_0 != low and high != BELOW_1:
        return f"from {low:g} to {high:g}"
    return f"{_least(low)} and {'less than 1' if high == BELOW_1 else f'at most {high:g}'}"


def _numbers(value: Any, flag: str, name: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...], float]]:
    """Each number with its flag and what other words stand before it, and its setting's name within its groups."""
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield flag, name, value
    elif is_dataclass(value):
        for setting in fields(value):
            part, typed = getattr(value, setting.name), setting.name.replace("_", "-")
            if setting.name in _unnamed(value.__class__):
                inner = flag
            else:
                inner = f"{flag}.{typed}" if flag else typed
            yield from _numbers(part, inner, (*name, setting.name))
    elif isinstance(value, Mapping):
        from granvit.questions import Task  # here, because help is shown without NumPy

        for key, part in value.items():  # tasks have flags of their own; other keys, such as sources, are words
            yield from _numbers(part, f"{flag}.{key}" if key in get_args(Task) else f"{flag} {key}", name)
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _numbers(part, f"{flag}.{index}" if is_dataclass(part) else flag, name)


@cache
def _unnamed(kind: Any) -> frozenset[str]:
    """The settings of a dataclass whose own settings the command line shows without a prefix."""
    hints = get_type_hints(kind, include_extras=True)
    marks = {setting.name: getattr(hints[setting.name], "__metadata__", ()) for setting in fields(kind)}
    return frozenset(name for name, own in marks.items() if any(getattr(mark, "name", None) == "" for mark in own))
