"""Box <-> text codecs.

A codec turns a relative box ``(x1, y1, x2, y2)`` in [0, 1] into text and back. Which one a model speaks is a
setting of its checkpoint; `get_codec` finds it again from that setting.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from granvit.errors import GranvitError

Box = tuple[float, float, float, float]


class Codec(Protocol):
    """What every codec offers. `spec` names it in a checkpoint; `tokens` are the tokens it adds to a vocabulary."""

    @property
    def spec(self) -> str: ...

    @property
    def tokens(self) -> list[str]: ...

    @property
    def positions(self) -> NDArray[np.float64]:
        """Where each of `tokens` lies, in bins, (tokens, axes): those that say nearly the same lie close by."""
        ...

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

    @property
    def positions(self) -> NDArray[np.float64]:
        return np.zeros((0, 1))

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

    @property
    def positions(self) -> NDArray[np.float64]:
        return np.zeros((0, 1))

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

    @property
    def positions(self) -> NDArray[np.float64]:
        return np.arange(self.bins, dtype=float)[:, None]

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


@dataclass(frozen=True)
class Cell:
    """``<cell0137><wide06><high09>``: the cell that a box's centre lies in, then its width and its height.

    The picture is `bins` x `bins` cells, counted row by row, as Kosmos-2's patch indices are (which name two corners
    in place of centre and size). So one token says where to look: a language model that is not trained finds the
    patches of a box by it, where it had to combine the digits of four numbers. Decoding gives the middle of the cell
    and of the sizes' bins, cut to the picture; the last bin of a size reaches from border to border.
    """

    bins: int

    @property
    def spec(self) -> str:
        return f"cell:{self.bins}"

    @property
    def tokens(self) -> list[str]:
        cells = [f"<cell{i:04d}>" for i in range(self.bins**2)]
        return cells + [f"<{side}{i:02d}>" for side in ("wide", "high") for i in range(self.bins)]

    @property
    def positions(self) -> NDArray[np.float64]:
        """(column, row) of the cells; the sizes lie so far from them and from each other that none is near."""
        at, far = np.arange(self.bins), 1e6 * np.ones(self.bins)
        cells = np.stack(np.meshgrid(at, at), axis=-1).reshape(-1, 2)
        return np.concatenate([cells, np.stack([at, far], 1), np.stack([at, 2 * far], 1)])

    def _side(self, low: float, high: float) -> tuple[int, int]:
        """The bins of centre and size along one axis."""
        centre, size = (min(int(v * self.bins), self.bins - 1) for v in ((low + high) / 2, high - low))
        return (self.bins // 2 if size == self.bins - 1 else centre), size

    def _ends(self, centre: int, size: int) -> tuple[float, float]:
        if size == self.bins - 1:
            return 0.0, 1.0
        middle, half = (centre + 0.5) / self.bins, (size + 0.5) / self.bins / 2
        return max(middle - half, 0.0), min(middle + half, 1.0)

    def encode(self, box: ArrayLike) -> str:
        x1, y1, x2, y2 = _clipped(box)
        (column, wide), (row, high) = self._side(x1, x2), self._side(y1, y2)
        return f"<cell{row * self.bins + column:04d}><wide{wide:02d}><high{high:02d}>"

    def decode(self, text: str) -> Box | None:
        match = re.fullmatch(r"<cell(\d{4})><wide(\d{2})><high(\d{2})>", text.strip(), re.ASCII)
        if not match:
            return None
        cell, wide, high = (int(v) for v in match.groups())
        if cell >= self.bins**2 or max(wide, high) >= self.bins:
            return None
        row, column = divmod(cell, self.bins)
        (x1, x2), (y1, y2) = self._ends(column, wide), self._ends(row, high)
        return _checked([x1, y1, x2, y2])


def get_codec(spec: str) -> Codec:
    """The codec that a checkpoint or recipe names: "decimal", "int1000", "loc", "loc:BINS" or "cell:BINS".

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
    match = re.fullmatch(r"cell:(\d+)", spec, re.ASCII)
    if match and 2 <= int(match.group(1)) <= 99:
        return Cell(int(match.group(1)))
    raise GranvitError(
        f"unknown coordinate codec {spec!r}: use 'decimal', 'int1000', 'loc', 'loc:BINS' (2-9999 bins) or 'cell:BINS' "
        "(2-99 cells a side)"
    )
