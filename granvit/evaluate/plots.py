"""Plots inside a page: SVG that takes its colours from the page, so that it suits a light and a dark scheme."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

# Stand-ins, exchanged at the end for what CSS decides.
INK, ACCENT = "#010101", "#020202"

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 8,
    "text.color": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.5,
}


def plot_svg(draw: Callable[[Any], None], size: tuple[float, float]) -> Markup:
    """What `draw` puts on Matplotlib axes, in the colours `INK` and `ACCENT`; `size` is in inches."""
    with rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        buffer = io.StringIO()
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    svg = buffer.getvalue()
    return Markup(svg[svg.index("<svg") :].replace(INK, "currentColor").replace(ACCENT, "var(--accent)"))
