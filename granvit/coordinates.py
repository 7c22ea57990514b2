"""Box <-> text codecs.

A codec turns a relative box ``(x1, y1, x2, y2)`` in [0, 1] into text and back. Which one a model speaks is a
setting of its checkpoint; `get_codec` finds it again from that setting.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from granvit.errors import GranvitError

Box = tuple[float, float, float, float]


class Codec(Protocol):
    """What every codec offers. `spec` names it in a checkpoint; `tokens` are the tokens it adds to a vocabulary."""

    @property
    def spec(self) -> str: ...

    @property
    def tokens(self) -> list[str]: ...

    def encode(self, box: ArrayLike) -> str:
        """A relative box (x1, y1, x2, y2) in [0, 1] as text; values outside are clipped."""
        ...

    def decode(self, text: str) -> Box | None:
        """The box that `text` as a whole states, or None where it states none, or an empty one."""
        ...


def _checked(values: list[float]) -> Box | None:
    x1, y1, x2, y2 = values
    inside = all(0.0 <= v <= 1.0 for v in values)
    return (x1, y1, x2, y2) if inside and x1 < x2 and y1 < y2 else None


def _clipped(box: ArrayLike) -> list[float]:
    values = np.asarray(box, dtype=float)
    if values.shape != (4,) or not np.isfinite(values).all():
        raise GranvitError(f"a box is four finite numbers, got {box!r}")
    return [float(v) for v in values.clip(0, 1)]


@dataclass(frozen=True)
class Decimal:
    """``[0.125, 0.250, 0.500, 0.750]``: three decimals, the paper's wording (section 3.2)."""

    spec: str = "decimal"
    _pattern = re.compile(r"\[\s*" + r"\s*,\s*".join([r"([01](?:\.\d{1,4})?)"] * 4) + r"\s*\]", re.ASCII)

    @property
    def tokens(self) -> list[str]:
        return []

    def encode(self, box: ArrayLike) -> str:
        return "[" + ", ".join(f"{v:.3f}" for v in _clipped(box)) + "]"

    def decode(self, text: str) -> Box | None:
        match = self._pattern.fullmatch(text.strip())
        return _checked([float(v) for v in match.groups()]) if match else None


@dataclass(frozen=True)
class Int1000:
    """``[125, 250, 500, 750]``: thousandths as integers (the convention of Qwen3-VL and InternVL)."""

    spec: str = "int1000"
    _pattern = re.compile(r"\[\s*" + r"\s*,\s*".join([r"(\d{1,4})"] * 4) + r"\s*\]", re.ASCII)

    @property
    def tokens(self) -> list[str]:
        return []

    def encode(self, box: ArrayLike) -> str:
        return "[" + ", ".join(str(round(v * 1000)) for v in _clipped(box)) + "]"

    def decode(self, text: str) -> Box | None:
        match = self._pattern.fullmatch(text.strip())
        return _checked([int(v) / 1000 for v in match.groups()]) if match else None


@dataclass(frozen=True)
class Loc:
    """``<loc0128><loc0256><loc0512><loc0768>``: one token per coordinate, in the order x1, y1, x2, y2.

    PaliGemma's idea, in this project's order (PaliGemma writes y before x). A coordinate falls into one of
    `bins` equal bins; decoding gives the bin's centre, except that the outermost bins reach the border.
    """

    bins: int = 1024

    @property
    def spec(self) -> str:
        return "loc" if self.bins == 1024 else f"loc:{self.bins}"

    @property
    def tokens(self) -> list[str]:
        return [f"<loc{i:04d}>" for i in range(self.bins)]

    def encode(self, box: ArrayLike) -> str:
        return "".join(f"<loc{min(int(v * self.bins), self.bins - 1):04d}>" for v in _clipped(box))

    def decode(self, text: str) -> Box | None:
        match = re.fullmatch(r"<loc(\d{4})>" * 4, text.strip(), re.ASCII)
        if not match:
            return None
        bins = [int(v) for v in match.groups()]
        if max(bins) >= self.bins:
            return None
        return _checked([0.0 if b == 0 else 1.0 if b == self.bins - 1 else (b + 0.5) / self.bins for b in bins])


def get_codec(spec: str) -> Codec:
    """The codec that a checkpoint or recipe names: "decimal", "int1000", "loc" or "loc:BINS".

    Raises:
        ValueError: no codec has that name.
    """
    if spec == "decimal":
        return Decimal()
    if spec == "int1000":
        return Int1000()
    match = re.fullmatch(r"loc(?::(\d+))?", spec, re.ASCII)
    if match and 2 <= int(match.group(1) or 1024) <= 9999:
        return Loc(int(match.group(1) or 1024))
    raise GranvitError(
        f"unknown coordinate codec {spec!r}: use 'decimal', 'int1000', 'loc' or 'loc:BINS' (2-9999 bins)"
    )
