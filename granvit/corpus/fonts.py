"""The fonts of drawn pictures, and how much room a line of print takes."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import ImageFont

if TYPE_CHECKING:
    from granvit.corpus.synthetic import Line

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
