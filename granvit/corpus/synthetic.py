"""The embedded corpus: scenes and documents laid out at random, with exact boxes and texts.

This file decides *what* is in a picture; `drawing.py` decides how it looks. A layout is already a full
`RegionImage` without its bytes, which is all that `LanguageWarmup` needs. Everything is a function of
(seed, index), so that any picture can be made again alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

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
    from granvit.corpus.fonts import text_box

    kind = str(rng.choice(["receipt", "table", "page"]))
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
