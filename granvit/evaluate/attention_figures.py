"""Pictures of what is seen: maps laid over the image, side by side for several encoders."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike
from PIL import Image

from granvit.coordinates import Box
from granvit.draw import colors_for, draw_boxes
from granvit.evaluate.attention import Floats, Seen
from granvit.evaluate.patch_encoder import PatchEncoder
from granvit.page import percent

COLORS = "inferno"
_PANEL = 2.1  # inches
_DPI = 140
_BOX = "#22d3ee"

Query = tuple[str, Box | tuple[float, float]]


def seen_figure(
    picture: Image.Image, queries: Sequence[Query], encoders: Sequence[PatchEncoder], seen: Sequence[Sequence[Seen]]
) -> Image.Image:
    """A row per query, and for each encoder its attention and what looks alike (the paper's Figure 1b).

    `queries` are (name, box or point) in image pixels; `seen[q][e]` is what encoder e saw from query q.
    """
    columns = 1 + 2 * len(encoders)
    figure, axes = _grid(len(queries), columns, picture, top=0.75)
    for row, ((name, query), of_query) in zip(axes, zip(queries, seen, strict=True), strict=True):
        _panel(row[0], picture, query)
        row[0].set_ylabel(_plain(name, 22), fontsize=8)
        for e, (encoder, one) in enumerate(zip(encoders, of_query, strict=True)):
            for column, map_p, kind in (
                (row[1 + 2 * e], one.maps.attention[0], "attention"),
                (row[2 + 2 * e], one.maps.contrast[0], "contrast"),
            ):
                _panel(column, picture, query, encoder, map_p)
                column.set_xlabel(_inside(one, kind), fontsize=8)
    for e, encoder in enumerate(encoders):
        name = _plain(encoder.name, 26)
        axes[0][1 + 2 * e].set_title(f"{name}\nattention, last layers", fontsize=8)
        axes[0][2 + 2 * e].set_title(f"{name}\nfeatures alike", fontsize=8)
    return _picture(figure)


def heads_figure(picture: Image.Image, query: Query, encoder: PatchEncoder, seen: Seen) -> Image.Image:
    """Every head of every layer: a row per layer, from the last to the first."""
    layers = seen.maps.heads[0]
    figure, axes = _grid(len(layers), layers.shape[1], picture, top=0.35, bottom=0.05, scale=0.7)
    for row, number in zip(axes, range(len(layers), 0, -1), strict=True):
        row[0].set_ylabel(f"layer {number}", fontsize=8)
        for column, map_p in zip(row, layers[number - 1], strict=True):
            _panel(column, picture, query[1], encoder, map_p)
    for head, column in enumerate(axes[0], start=1):
        column.set_title(f"head {head}", fontsize=8)
    return _picture(figure)


def words_figure(
    picture: Image.Image, queries: Sequence[Query], encoder: PatchEncoder, seen: Sequence[Seen]
) -> Image.Image:
    """A row per box: where the language model looks at the image while it says each word about the box."""
    longest = max(len(one.words) for one in seen)
    figure, axes = _grid(len(queries), longest, picture, top=0.35, bottom=0.2, scale=0.8)
    for row, (name, query), one in zip(axes, queries, seen, strict=True):
        row[0].set_ylabel(_plain(name, 22), fontsize=8)
        for column, word, map_p in zip(row, one.words, () if one.word_maps is None else one.word_maps, strict=False):
            _panel(column, picture, query, encoder, map_p)
            column.set_title(_plain(word, 20), fontsize=9)
        for column in row[len(one.words) :]:
            column.set_axis_off()
    return _picture(figure)


def located_figure(
    picture: Image.Image, phrases: Sequence[str], true: Sequence[Box | None], found: dict[str, list[Box | None]]
) -> Image.Image:
    """A panel per model: true boxes solid, the boxes that it found dashed (the paper's Figure 4b)."""
    colors = colors_for(len(phrases))
    shown = [(box, str(n), color) for n, (box, color) in enumerate(zip(true, colors, strict=True), start=1) if box]
    figure, axes = _grid(1, len(found), picture, top=0.35, bottom=0.2 * len(phrases) + 0.1, scale=1.6)
    for column, (name, boxes) in zip(axes[0], found.items(), strict=True):
        mine = [(b, str(n), c) for n, (b, c) in enumerate(zip(boxes, colors, strict=True), start=1) if b]
        drawn = draw_boxes(
            picture,
            np.reshape([box for box, _, _ in shown + mine], (-1, 4)),
            [label for _, label, _ in shown + mine],
            [color for _, _, color in shown + mine],
            dashed=[False] * len(shown) + [True] * len(mine),
        )
        column.imshow(drawn)
        column.set_xticks([])
        column.set_yticks([])
        column.set_title(_plain(name, 40), fontsize=9)
        lines = [f"{n}  {text}{'' if b else ': no box'}" for n, text, b in zip(count(1), phrases, boxes, strict=False)]
        column.set_xlabel("\n".join(_plain(textwrap.shorten(line, 50), 50) for line in lines), fontsize=8, loc="left")
    return _picture(figure)


def canvas_in_image(encoder: PatchEncoder, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Where the canvas lies on an image of (width, height): xyxy image pixels, beyond the image where it is padded."""
    left, top, right, bottom = encoder.view(size).to_image((0, 0, encoder.canvas, encoder.canvas))[0].tolist()
    return left, top, right, bottom


def _grid(
    rows: int, columns: int, picture: Image.Image, top: float, bottom: float = 0.3, scale: float = 1.0
) -> tuple[Figure, Any]:
    """Axes in the shape of the picture; `top` and `bottom` are the inches that words need."""
    width = scale * _PANEL
    height = width * min(max(picture.height / picture.width, 0.4), 2.5)
    figure = Figure(figsize=(columns * (width + 0.1) + 0.5, rows * (height + bottom) + top), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _panel(
    axes: Axes,
    picture: Image.Image,
    query: ArrayLike,
    encoder: PatchEncoder | None = None,
    map_p: Floats | None = None,
) -> None:
    width, height = picture.size
    if encoder is None or map_p is None:
        axes.imshow(picture, extent=(0, width, height, 0))
    else:
        axes.imshow(picture.convert("L"), extent=(0, width, height, 0), cmap="gray", vmin=-40, vmax=280)
        left, top, right, bottom = canvas_in_image(encoder, picture.size)
        map_gg = map_p.reshape(encoder.grid, encoder.grid)
        # Patches as they are: smoothing would show a sharpness that is not there.
        axes.imshow(
            map_gg,
            extent=(left, right, bottom, top),
            cmap=COLORS,
            vmin=0,
            alpha=0.35 + 0.45 * np.nan_to_num(map_gg) / max(np.nanmax(map_gg), 1e-12),
            interpolation="nearest",
        )
    at = np.asarray(query, dtype=float)
    if len(at) == 4:
        x, y, right, bottom = at.tolist()
        axes.add_patch(Rectangle((x, y), right - x, bottom - y, fill=False, edgecolor=_BOX, linewidth=1.4))
    else:
        axes.plot(*at.tolist(), marker="o", markersize=5, color=_BOX, markeredgecolor="black")
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])


def _plain(text: str, width: int) -> str:
    """Lines of at most `width` letters, without what matplotlib would take for a formula or cannot show."""
    shown = "".join(c if c.isprintable() else " " for c in text)
    return textwrap.fill(shown, width).replace("$", r"\$")


def _inside(seen: Seen, kind: str) -> str:
    if kind not in seen.inside or seen.chance is None:
        return ""
    return f"{percent(seen.inside[kind])} in the box (even: {percent(seen.chance)})"


def _picture(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white", bbox_inches="tight")
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")
