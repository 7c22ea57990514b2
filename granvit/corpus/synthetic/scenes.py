"""The embedded corpus: scenes and documents laid out at random, with exact boxes and texts, and drawn.

`layout` decides *what* is in a picture, `draw` how it looks. A layout is already a full `RegionImage` without its
bytes, which is all that `LanguageWarmup` needs. Everything is a function of (seed, index), so that any picture can be
made again alone.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from granvit.geometry import intersection
from granvit.regions import Region, RegionImage

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart", "hexagon", "arrow")
PATTERNS = ("plain", "striped", "dotted", "checkered")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "green": (34, 139, 34),
    "blue": (31, 90, 200),
    "yellow": (245, 212, 30),
    "orange": (250, 130, 20),
    "purple": (128, 50, 168),
    "pink": (250, 140, 190),
    "brown": (121, 74, 40),
    "black": (25, 25, 25),
    "white": (242, 242, 242),
    "cyan": (40, 200, 215),
    "gray": (125, 125, 125),
}
# Lower border of each size word, as the object's longer side over the picture's side.
SIZES = (("small", 0.0), ("medium", 0.27), ("large", 0.36))
ITEMS = (
    "tea coffee bread milk rice sugar salt soap paper apple mango cake juice water fish egg oil beef soup pasta "
    "pen book bag cup lamp card key tape glue ink"
).split()
SHOPS = "star sun moon river city garden ocean hill lucky royal happy golden silver green grand".split()
_DOCUMENTS = ("receipt", "table", "page")
# What records of the embedded corpus name as their source; of `rendered_text` the last.
SOURCES = frozenset(f"synthetic-{kind}" for kind in ("scene", *_DOCUMENTS, "print"))
SHOP_KINDS = "mart shop store cafe books foods trading".split()
WORDS = (
    "the of and a to in is you that it he was for on are as with his they at be this have from or one had by word "
    "but not what all were we when your can said there use an each which she do how their if will up other about "
    "out many then them these so some her would make like him into time has look two more write go see number no "
    "way could people my than first water been call who oil its now find long down day did get come made may part"
).split()
# How many objects a scene is to have, fewest and most.
OBJECTS = (2, 6)
LICENCE = "CC0-1.0 (drawn by granvit)"


@dataclass(frozen=True)
class Thing:
    """One object of a scene. `box` is xyxy pixels, tight around the drawn shape."""

    box: tuple[float, float, float, float]
    size: str
    color: str
    pattern: str
    shape: str

    @property
    def caption(self) -> str:
        return f"{self.size} {self.color} {self.pattern} {self.shape}"


@dataclass(frozen=True)
class Line:
    """One printed line of a document. `at` is the left-top of its text box, `height` the font size, in pixels."""

    text: str
    at: tuple[float, float]
    height: int
    font: int


@dataclass
class Layout:
    """What a picture holds: the record without bytes, and what the drawing needs."""

    record: RegionImage
    things: list[Thing] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)


def layout(seed: int, index: int, size: int, documents: float = 0.15, objects: tuple[int, int] = OBJECTS) -> Layout:
    """Picture number `index` of the corpus `seed`, `size` x `size` pixels.

    `documents` is the share of documents in [0, 1]; the rest are scenes of so many `objects`, fewest and most.
    """
    rng = np.random.default_rng((seed, index))
    if rng.random() < documents:
        return _document(rng, index, size)
    return _scene(rng, index, size, objects)


def _scene(rng: np.random.Generator, index: int, size: int, objects: tuple[int, int]) -> Layout:
    things: list[Thing] = []
    for _ in range(int(rng.integers(objects[0], objects[1] + 1))):
        thing = _place(rng, size, things)
        if thing is not None:
            things.append(thing)
    regions = [Region(t.box, t.caption, "object", box_by="synthetic", text_by="synthetic") for t in things]
    return Layout(_record("scene", index, size, regions, _scene_caption(things, size)), things=things)


def _place(rng: np.random.Generator, size: int, others: list[Thing]) -> Thing | None:
    """A thing that hides at most a fifth of any other, or None where the scene is full."""
    taken = [t.box for t in others]
    names = {t.caption for t in others}
    for _ in range(20):
        side = rng.uniform(0.18, 0.45) * size
        width, height = side * np.array([1.0, rng.uniform(0.75, 1.0)])[:: rng.choice([1, -1])]
        x, y = rng.uniform(0, [size - width, size - height])
        box = tuple(float(round(v)) for v in (x, y, x + width, y + height))
        areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in [*taken, box]]
        if taken and (intersection(box, taken)[0] > 0.2 * np.minimum(areas[:-1], areas[-1])).any():
            continue
        longer = max(box[2] - box[0], box[3] - box[1]) / size
        thing = Thing(
            box,  # type: ignore[arg-type]
            [name for name, low in SIZES if longer >= low][-1],
            str(rng.choice(list(COLORS))),
            str(rng.choice(PATTERNS)),
            str(rng.choice(SHAPES)),
        )
        if thing.caption not in names:
            return thing
    return None


def _where(box: tuple[float, float, float, float], size: int) -> str:
    column = int((box[0] + box[2]) / 2 / size * 3)
    row = int((box[1] + box[3]) / 2 / size * 3)
    words = [("top", "middle", "bottom")[row], ("left", "center", "right")[column]]
    return "center" if words == ["middle", "center"] else " ".join(words)


def _scene_caption(things: list[Thing], size: int) -> str:
    """All things in reading order, each with its colour, shape and place."""
    ordered = sorted(things, key=lambda t: (int((t.box[1] + t.box[3]) / 2 / size * 3), t.box[0] + t.box[2]))
    said = [f"{t.color} {t.shape} {_where(t.box, size)}" for t in ordered]
    count = "1 object" if len(things) == 1 else f"{len(things)} objects"
    return f"{count}: " + ", ".join(said)


def _document(rng: np.random.Generator, index: int, size: int) -> Layout:

    kind = str(rng.choice(_DOCUMENTS))
    height = int(rng.integers(round(0.075 * size), round(0.115 * size) + 1))
    font = int(rng.integers(0, 1_000_000))
    x, y = rng.uniform(0.02, 0.1) * size, rng.uniform(0.02, 0.12) * size
    lines: list[Line] = []
    regions: list[Region] = []
    for row, text in enumerate(_texts(rng, kind)):
        big = height + 2 if kind == "receipt" and row == 0 else height
        line = Line(text, (float(round(x)), float(round(y))), big, font)
        box = text_box(line)
        if box[3] > size - 2:
            break
        y = box[3] + rng.uniform(0.15, 0.6) * height
        if box[2] > size - 2:
            continue
        lines.append(line)
        regions.append(Region(box, text, "text", box_by="synthetic", text_by="synthetic"))
    return Layout(_record(kind, index, size, regions, None), lines=lines)


def _texts(rng: np.random.Generator, kind: str) -> list[str]:
    def price() -> str:
        return f"{rng.integers(1, 100)}.{rng.integers(0, 10)}0"

    def some(words: list[str], count: int) -> list[str]:
        return [str(w) for w in rng.choice(words, count, replace=False)]

    if kind == "receipt":
        head = [" ".join([*some(SHOPS, 1), *some(SHOP_KINDS, 1)]).upper()]
        items = [f"{item} {price()}" for item in some(ITEMS, 4)]
        foot = [f"TOTAL {price()}", f"CASH {price()}"]
        return head + items[: int(rng.integers(1, 5))] + foot
    if kind == "table":
        return [f"{item} {rng.integers(1, 10)} {rng.integers(10, 100)}" for item in some(ITEMS, 7)]
    return [" ".join(some(WORDS, int(rng.integers(1, 4)))) for _ in range(8)]


def _record(kind: str, index: int, size: int, regions: list[Region], caption: str | None) -> RegionImage:
    return RegionImage(
        id=f"{kind}-{index:07d}",
        image=None,
        width=size,
        height=size,
        regions=regions,
        uri=f"{kind}-{index:07d}.png",
        source=f"synthetic-{kind}",
        licence=LICENCE,
        caption=caption,
    )


def sample_texts(count: int = 4000) -> list[str]:
    """Texts as the synthetic corpus writes them, for building a tokenizer."""
    texts: list[str] = []
    for index in range(count):
        record = layout(0, index, 256).record
        texts += [r.text for r in record.regions] + ([record.caption] if record.caption else [])
    return texts


# Fonts that matplotlib's wheel carries, so that every machine draws the same pictures.
FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "STIXGeneral.ttf",
)


def fonts_folder() -> Path:
    """Where the fonts lie."""
    import matplotlib  # here, because it is slow to import and the program's help draws nothing

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@lru_cache(maxsize=256)
def font(index: int, height: int) -> ImageFont.FreeTypeFont:
    """One of the fonts, `height` pixels high."""
    return ImageFont.truetype(str(fonts_folder() / FONTS[index % len(FONTS)]), height)


def text_box(line: Line) -> tuple[float, float, float, float]:
    """The tight box of a line's ink, xyxy pixels."""
    left, top, right, bottom = font(line.font, line.height).getbbox(line.text)
    x, y = line.at
    return (x + left, y + top, x + right, y + bottom)


_SUPERSAMPLE = 3


def draw(layout: Layout, seed: int, index: int) -> Image.Image:
    """The RGB picture of a layout; the same for the same arguments."""
    rng = np.random.default_rng((seed, index, 1))
    return _draw_document(layout, rng) if layout.lines else _draw_scene(layout, rng)


def encode(picture: Image.Image) -> bytes:
    """The picture as PNG: lossless, so that small text stays what was drawn."""
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
