"""Rendered text: letters in many fonts with a box around each, for an encoder that has to learn to read.

A thousand scans show too little text to learn letters from, and say where a line is but not where its letters are.
Of rendered text there are as many pictures as are wanted, with exact boxes.
"""

from __future__ import annotations

import string
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from granvit.corpus.synthetic.scenes import ITEMS, LICENCE, SHOPS, WORDS, encode, fonts_folder
from granvit.regions import Region, RegionImage

FONTS = (
    *("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSans-Oblique.ttf", "DejaVuSansMono.ttf"),
    *("DejaVuSansMono-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf", "STIXGeneral.ttf", "STIXGeneralBol.ttf"),
)
# The size of the text, as a share of the picture's side, and how much narrower or wider than its font it may be.
_HEIGHTS, _WIDTHS = (0.11, 0.22), (0.75, 1.15)
_PUNCTUATION = ".,:;-/()%&*#@!$+='\""


def is_rendered_text(seed: int, index: int, prints: float) -> bool:
    """Whether picture number `index` of the embedded corpus is rendered text, where a share of `prints` of them is."""
    return prints > 0 and np.random.default_rng((seed, index, 2)).random() < prints


def render_text(seed: int, index: int, size: int) -> RegionImage:
    """Picture number `index` of rendered text, `size` x `size` pixels: words and numbers, a region per letter."""
    rng = np.random.default_rng((seed, index, 3))
    width = round(size / rng.uniform(*_WIDTHS))  # drawn so wide, then made `size` wide
    paper = int(rng.integers(170, 256))
    picture = Image.new("L", (width, size), paper)
    pen = ImageDraw.Draw(picture)
    ink = int(rng.integers(0, min(130, paper - 80)))
    height = size * rng.uniform(*_HEIGHTS)
    font = _font(int(rng.integers(len(FONTS))), max(7, round(height)))
    regions: list[Region] = []
    y = rng.uniform(-0.5, 0.5) * height
    while y < size:
        x = rng.uniform(-0.5, 2) * height
        while x < width:
            word = _word(rng)
            pen.text((x, y), word, fill=ink, font=font)
            regions += _letters(word, font, (x, y), (width, size))
            x += font.getlength(word) + height * rng.choice([0.35, 0.35, rng.uniform(0.5, 4)])
        y += height * rng.uniform(1.0, 1.7)
    file = encode(_worn(picture.resize((size, size)), rng))
    name = f"print-{index:07d}"
    return RegionImage(name, file, size, size, regions, uri=f"{name}.png", source="synthetic-print", licence=LICENCE)


def _word(rng: np.random.Generator) -> str:
    """A word, a number, or letters in disorder, so that no letter can be told from its neighbours alone."""
    if rng.random() < 0.3:
        return _number(rng)
    if rng.random() < 0.3:
        word = "".join(rng.choice(list(string.ascii_lowercase), rng.integers(1, 8)))
    else:
        word = str(rng.choice([*WORDS, *ITEMS, *SHOPS]))
        word = "".join(rng.permutation(list(word))) if rng.random() < 0.5 else word
    case = rng.random()
    word = word.upper() if case < 0.65 else word.capitalize() if case < 0.8 else word
    return word + str(rng.choice(list(_PUNCTUATION))) if rng.random() < 0.15 else word


def _number(rng: np.random.Generator) -> str:
    """Digits as they stand in dates, prices, telephone numbers and counts."""
    groups = ["".join(rng.choice(list(string.digits), rng.integers(1, 5))) for _ in range(rng.integers(1, 4))]
    return str(rng.choice([".", ".", ",", ":", "/", "-", ""])).join(groups)


def _letters(word: str, font: ImageFont.FreeTypeFont, at: tuple[float, float], drawn: tuple[int, int]) -> list[Region]:
    """A region per letter of a word, where at least half of it lies in the picture.

    `drawn` is the picture's (width, height) before it is made square; boxes are xyxy pixels of the square one.
    """
    width, size = drawn
    _, top, _, bottom = font.getbbox(word)
    regions = []
    edges = [(at[0] + font.getlength(word[:place])) / width * size for place in range(len(word) + 1)]
    for letter, left, right in zip(word, edges[:-1], edges[1:], strict=True):
        box = np.array([left, at[1] + top, right, at[1] + bottom])
        seen = np.clip(box, 0, size)
        if np.prod(seen[2:] - seen[:2]) >= 0.5 * np.prod(box[2:] - box[:2]) > 0:
            x1, y1, x2, y2 = seen.tolist()
            regions.append(Region((x1, y1, x2, y2), letter, "text", box_by="synthetic", text_by="synthetic"))
    return regions


def _worn(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture as a scan: blurred, noisy, unevenly lit."""
    if rng.random() < 0.6:
        picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.3))))
    light = np.linspace(-1, 1, picture.width)[None] * rng.uniform(-25, 25)
    noisy = np.asarray(picture, np.float32) + light + rng.normal(0, rng.uniform(0, 14), picture.size[::-1])
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


@lru_cache(maxsize=1024)
def _font(face: int, height: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(fonts_folder() / FONTS[face]), height)
