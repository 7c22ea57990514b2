"""How the embedded corpus looks: shapes, patterns, textures, print. Pure functions of a layout and a generator."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from granvit.corpus.fonts import font, text_box
from granvit.corpus.synthetic import COLORS, Layout, Thing

_SUPERSAMPLE = 3


def draw(layout: Layout, seed: int, index: int) -> Image.Image:
    """The RGB picture of a layout; the same for the same arguments."""
    rng = np.random.default_rng((seed, index, 1))
    return _draw_document(layout, rng) if layout.lines else _draw_scene(layout, rng)


def encode(picture: Image.Image) -> bytes:
    """The picture as PNG: lossless, so that small print stays what was drawn."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _draw_scene(layout: Layout, rng: np.random.Generator) -> Image.Image:
    size = layout.record.width
    picture = Image.fromarray(_background(size, rng))
    pen = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(0, 12))):  # clutter: short strokes that belong to no region
        x, y = rng.uniform(0, size, 2)
        dx, dy = rng.uniform(-0.08, 0.08, 2) * size
        pen.line((x, y, x + dx, y + dy), fill=tuple(int(v) for v in rng.integers(60, 200, 3)), width=1)
    for thing in layout.things:
        _draw_thing(picture, thing, rng)
    return picture


def _background(size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A textured background: two muted tones blended by a gradient, a coarse noise or broad bands."""
    tones = rng.integers(90, 215, (2, 3)) * 0.6 + rng.integers(90, 215) * 0.4
    kind = rng.integers(3)
    axis = np.linspace(0, 1, size, dtype=np.float32)
    if kind == 0:
        blend = np.add.outer(axis * rng.uniform(0, 1), axis * rng.uniform(0, 1)) / 2
    elif kind == 1:
        coarse = Image.fromarray((rng.random((8, 8)) * 255).astype(np.uint8))
        blend = np.asarray(coarse.resize((size, size), Image.Resampling.BILINEAR)) / np.float32(255)
    else:
        phase = np.add.outer(axis * rng.uniform(1, 6), axis * rng.uniform(1, 6))
        blend = (0.5 + 0.5 * np.sin(2 * np.pi * phase)).astype(np.float32)
    field = tones[0] + (tones[1] - tones[0]) * blend[..., None] * 0.6
    grain = rng.normal(0, 6, (size, size, 1))
    return np.clip(field + grain, 0, 255).astype(np.uint8)


def _draw_thing(picture: Image.Image, thing: Thing, rng: np.random.Generator) -> None:
    x1, y1, x2, y2 = (int(v) for v in thing.box)
    width, height = x2 - x1, y2 - y1
    mask = _shape_mask(thing.shape, width, height)
    jitter = rng.integers(-12, 13, 3)
    base = np.clip(np.array(COLORS[thing.color]) + jitter, 0, 255)
    # The second tone is far from the first in lightness, or the pattern would vanish.
    second = base * 0.35 if base.mean() > 110 else base * 0.4 + 150
    marks = _pattern(thing.pattern, width, height, rng)
    colors = np.where(marks[..., None], second, base).astype(np.uint8)
    picture.paste(Image.fromarray(colors), (x1, y1), mask)


@lru_cache(maxsize=4096)
def _shape_mask(shape: str, width: int, height: int) -> Image.Image:
    big = Image.new("L", (width * _SUPERSAMPLE, height * _SUPERSAMPLE), 0)
    pen = ImageDraw.Draw(big)
    w, h = big.width - 1, big.height - 1
    if shape in _POLYGONS:
        pen.polygon([(x * w, y * h) for x, y in _POLYGONS[shape]], fill=255)
    elif shape == "square":
        pen.rectangle((0, 0, w, h), fill=255)
    else:
        pen.ellipse((0, 0, w, h), fill=255)
        if shape == "ring":
            pen.ellipse((0.27 * w, 0.27 * h, 0.73 * w, 0.73 * h), fill=0)
    return big.resize((width, height), Image.Resampling.BOX)


def _star() -> list[tuple[float, float]]:
    angles = np.pi * (np.arange(10) / 5 - 0.5)
    radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
    return _unit(np.stack([radius * np.cos(angles), radius * np.sin(angles)], 1))


def _heart() -> list[tuple[float, float]]:
    t = np.linspace(0, 2 * np.pi, 40)
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return _unit(np.stack([16 * np.sin(t) ** 3, y], 1))


def _unit(points: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Points stretched to the unit square, so that the region's box is tight."""
    low, high = points.min(0), points.max(0)
    return [(float(x), float(y)) for x, y in (points - low) / (high - low)]


_POLYGONS: dict[str, list[tuple[float, float]]] = {
    "triangle": [(0.5, 0), (1, 1), (0, 1)],
    "diamond": [(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)],
    "star": _star(),
    "heart": _heart(),
    "hexagon": [(0.25, 0), (0.75, 0), (1, 0.5), (0.75, 1), (0.25, 1), (0, 0.5)],
    "arrow": [(0, 0.3), (0.55, 0.3), (0.55, 0), (1, 0.5), (0.55, 1), (0.55, 0.7), (0, 0.7)],
    "cross": [
        (0.33, 0), (0.67, 0), (0.67, 0.33), (1, 0.33), (1, 0.67), (0.67, 0.67),
        (0.67, 1), (0.33, 1), (0.33, 0.67), (0, 0.67), (0, 0.33), (0.33, 0.33),
    ],
}  # fmt: skip


def _pattern(name: str, width: int, height: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Where the second tone goes, bool (height, width)."""
    y, x = np.mgrid[:height, :width] + rng.integers(0, 12, 2)[:, None, None]
    if name == "striped":
        slope = rng.choice([-1.0, 0.0, 1.0])
        return np.asarray((x * (1.0 if slope else 0.0) + y * (slope or 1.0)) % 9 < 4)
    if name == "dotted":
        return np.asarray((x % 9 - 4) ** 2 + (y % 9 - 4) ** 2 <= 7)
    if name == "checkered":
        return np.asarray((x // 7 + y // 7) % 2 == 0)
    return np.zeros((height, width), bool)


def _draw_document(layout: Layout, rng: np.random.Generator) -> Image.Image:
    size = layout.record.width
    paper = int(rng.integers(205, 250))
    picture = Image.new("L", (size, size), paper)
    pen = ImageDraw.Draw(picture)
    for line in layout.lines:
        pen.text(line.at, line.text, font=font(line.font, line.height), fill=int(rng.integers(0, 70)))
    if layout.record.source == "synthetic-table":
        for line in layout.lines:
            bottom = text_box(line)[3] + 1
            pen.line((0, bottom, size, bottom), fill=paper - 60)
    if rng.random() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.2, 0.6))))
    noisy = np.asarray(picture, np.float32) + rng.normal(0, rng.uniform(1, 7), (size, size))
    tint = rng.uniform(0.94, 1.0, 3)
    return Image.fromarray(np.clip(noisy[..., None] * tint, 0, 255).astype(np.uint8))
