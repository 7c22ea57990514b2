"""Pictures that a plain `convert("RGB")` would show otherwise than they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image


def photo(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (10, 20, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((200, 100))


def odd_pictures() -> dict[str, tuple[str, Image.Image, dict[str, Any]]]:
    """By name: the file's ending, the picture, and the options to save it with."""
    turned = Image.Exif()
    turned[0x0112] = 6
    rng = np.random.default_rng(1)
    rgba = photo().convert("RGBA")
    rgba.putalpha(Image.fromarray(rng.integers(0, 256, (100, 200), dtype=np.uint8)))
    palette = photo().convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    deep = Image.fromarray((rng.integers(0, 1 << 16, (100, 200))).astype(np.uint16))
    return {
        "turned": (".jpg", photo(), {"exif": turned}),
        "turned png": (".png", photo(), {"exif": turned}),
        "transparent": (".png", rgba, {}),
        "transparent grey": (".png", rgba.convert("LA"), {}),
        "sixteen bits": (".png", deep, {}),
        "transparent palette": (".png", palette, {"transparency": 3}),
        "animation": (".gif", palette, {"save_all": True, "append_images": [photo(2).convert("P")]}),
        "cmyk": (".jpg", photo().convert("CMYK"), {}),
        "one bit": (".png", photo().convert("1"), {}),
    }
