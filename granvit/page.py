"""Self-contained HTML pages: templates that share one look, pictures embedded, written whole or not at all."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from granvit.files import write_text

# The longest side of a WebP.
_LONGEST = 16_383


def write_page(path: str | Path, template: str, **content: Any) -> None:
    """Fills a template of `granvit/assets/templates` and writes it to `path`; all texts are escaped.

    Raises:
        jinja2.UndefinedError: the template uses a name that `content` lacks.
    """
    loader = jinja2.PackageLoader("granvit", "assets/templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template(template).render(content)
    write_text(path, page)


def data_uri(image: Image.Image, quality: int = 85) -> str:
    """The picture as a WebP inside an address, for the `src` of an <img>; smaller where WebP has no room for it."""
    if max(image.size) > _LONGEST:
        image = image.copy()
        image.thumbnail((_LONGEST, _LONGEST))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def percent(value: float) -> str:
    """A fraction as people read it: 0.8741 is "87.4%"."""
    return f"{100 * value:.1f}%"
