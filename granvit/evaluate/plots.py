"""Plots inside a page: SVG that takes its colours from the page, so that it suits a light and a dark scheme."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

# `as_svg` exchanges them for what CSS decides: the colour of text, and the accent.
INK, ACCENT = "#010101", "#2563eb"

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 8,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.5,
}


@contextmanager
def page_style() -> Iterator[None]:
    """Within, figures are drawn and saved in the page's ink, in its own font, without a box around them."""
    with rc_context(_STYLE):
        yield


def plot_svg(draw: Callable[[Any], None], size: tuple[float, float]) -> Markup:
    """What `draw` puts on Matplotlib axes, in the colours `INK` and `ACCENT`; `size` is in inches."""
    with page_style():
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        return as_svg(figure)


def as_svg(figure: Figure) -> Markup:
    """A figure as an <svg> element, its inks exchanged for the page's."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    svg = buffer.getvalue()
    return Markup(svg[svg.index("<svg") :].replace(INK, "currentColor").replace(ACCENT, "var(--accent)"))


def as_png(figure: Figure) -> bytes:
    """A figure as a picture of black and blue on white, for pages of others."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor="white")
    return buffer.getvalue()
