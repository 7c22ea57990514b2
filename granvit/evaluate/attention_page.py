"""What was seen, as PNGs and as a page in which any patch can be asked what it looks at."""

from __future__ import annotations

import base64
import io
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike
from PIL import Image

from granvit.bootstrap import Estimate
from granvit.coordinates import Box
from granvit.draw import colors_for, draw_boxes, save_picture
from granvit.evaluate.attention import LAST_LAYERS, Floats, QueryMaps, attend_box, attend_point, patch_weights
from granvit.evaluate.attention_mass import HEADLINES, MassReport, Share
from granvit.evaluate.patch_encoder import PatchEncoder
from granvit.files import write_text
from granvit.geometry import centres
from granvit.images import decode
from granvit.page import data_uri, percent, write_page
from granvit.predict import GranViT
from granvit.regions import RegionImage

COLORS = "inferno"
_PANEL = 2.1  # inches
_DPI = 140
_BOX = "#22d3ee"

Query = tuple[str, Box | tuple[float, float]]


def seen_figure(
    picture: Image.Image,
    queries: Sequence[Query],
    encoders: Sequence[PatchEncoder],
    seen: Sequence[Sequence[QueryMaps]],
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


def heads_figure(picture: Image.Image, query: Query, encoder: PatchEncoder, seen: QueryMaps) -> Image.Image:
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
    picture: Image.Image, queries: Sequence[Query], encoder: PatchEncoder, seen: Sequence[QueryMaps]
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


def _inside(seen: QueryMaps, kind: str) -> str:
    if kind not in seen.inside or seen.chance is None:
        return ""
    return f"{percent(seen.inside[kind])} in the box (even: {percent(seen.chance)})"


def _picture(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white", bbox_inches="tight")
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")


_LONGEST_SIDE = 640
_EXAMPLE_REGIONS = 4
KINDS = {
    "attention": f"attention, last {LAST_LAYERS} layers",
    "similarity": "features alike",
    "contrast": "features alike, mean taken away",
}
WORDS = {"words": "answer words"}


def write_picture(
    out: Path,
    picture: Image.Image,
    encoders: Sequence[PatchEncoder],
    boxes: Sequence[Box],
    points: Sequence[tuple[float, float]] = (),
    phrases: Sequence[str] = (),
    title: str = "What it sees",
) -> Path:
    """Everything about one picture: PNGs and `attend.html` in `out`.

    Args:
        picture: EXIF-upright RGB.
        encoders: one column each; those of checkpoints also answer and locate.
        boxes, points: where to look from, in image pixels; at least one of either.
        phrases: what to locate; the n-th is what the n-th box holds, where there is one.

    Returns:
        The page's path.
    """
    named: list[Query] = [
        *((phrases[n] if n < len(phrases) else f"box {n + 1}", box) for n, box in enumerate(boxes)),
        *((f"point {x:.0f}, {y:.0f}", (x, y)) for x, y in points),
    ]
    figures = _figures(out, picture, encoders, named, phrases)
    seen = figures.pop("seen")
    rows = [
        {"name": name, "cells": [_numbers(one) for one in of_query], "even": percent(of_query[0].chance)}
        for (name, _), of_query in zip(named, seen, strict=True)
        if of_query[0].chance is not None
    ]
    path = out / "attend.html"
    write_page(
        path,
        "attention.html.j2",
        title=title,
        summary=f"What is seen from each box or point by {_listed([e.name for e in encoders])}.",
        kinds=KINDS | WORDS,
        encoders=[e.name for e in encoders],
        rows=rows,
        mass=[],
        viewers=[_viewer(picture, encoder, named[0]) for encoder in encoders],
        viewed=data_uri(_thumbnail(picture)),
        shape=[picture.width, picture.height],
        ramp=_ramp(),
        examples=[{"heading": "", "figures": figures["figures"]}],
        facts={},
    )
    return path


def write_mass(
    out: Path, report: MassReport, encoders: Sequence[PatchEncoder], examples: Iterable[RegionImage]
) -> Path:
    """The numbers over a corpus and some of its pictures: `attention-mass.json`, `.html` and PNGs in `out`."""
    write_text(out / "attention-mass.json", json.dumps(report.to_json(), indent=1) + "\n")
    shown = []
    for number, record in enumerate((record for record in examples if not record.text_only), start=1):
        regions = [r for r in record.regions if not r.ignore][:_EXAMPLE_REGIONS]
        picture = decode(record.image or b"")
        named: list[Query] = [(r.text, r.box) for r in regions]
        figures = _figures(out, picture, encoders, named, [r.text for r in regions], f"example{number}-", heads=False)
        shown.append({"heading": record.id, "figures": figures["figures"]})
    counted = _listed([f"{count} {kind} regions" for kind, count in report.regions.items()])
    path = out / "attention-mass.html"
    write_page(
        path,
        "attention.html.j2",
        title="Attention inside the box",
        summary=f"How much of what is seen from a region lies in it: {report.images} images, {counted}.",
        kinds={},
        encoders=report.encoders,
        rows=[],
        mass=[
            {
                "kind": kind,
                "rows": [{"name": name, "cells": [_share(s) for s in table[name]]} for name in _order(table)],
            }
            for kind, table in report.shares.items()
        ],
        viewers=[],
        viewed="",
        shape=[1, 1],
        ramp=[],
        examples=shown,
        facts={"Left out": f"{report.too_small} regions that hold less than a patch's area beside a single patch"},
    )
    return path


def _figures(
    out: Path,
    picture: Image.Image,
    encoders: Sequence[PatchEncoder],
    named: Sequence[Query],
    phrases: Sequence[str],
    prefix: str = "",
    heads: bool = True,
) -> dict[str, Any]:
    """What was seen from each query by each encoder ("seen"), and its pictures, also written to `out` ("figures")."""
    seen = [
        [attend_box(e, picture, q) if len(q) == 4 else attend_point(e, picture, q) for e in encoders] for _, q in named
    ]
    boxes = [(query, of_query) for query, of_query in zip(named, seen, strict=True) if len(query[1]) == 4]
    made = [("encoders", "Side by side", seen_figure(picture, named, encoders, seen))]
    found: dict[str, list[Box | None]] = {}
    for e, encoder in enumerate(encoders):
        if heads:
            heading = f"Every head of {encoder.name}, from {named[0][0]}"
            made.append((f"heads-{e + 1}", heading, heads_figure(picture, named[0], encoder, seen[0][e])))
        said = [(query, of_query[e]) for query, of_query in boxes if of_query[e].words]
        if said:
            figure = words_figure(picture, [query for query, _ in said], encoder, [one for _, one in said])
            made.append((f"words-{e + 1}", f"What {encoder.name} looks at, word by word of its answer", figure))
        if encoder.model is not None and phrases:
            found[encoder.name] = list(GranViT(encoder.model).locate(picture, phrases))
    if found:
        true: list[Any] = [query[1] for query, _ in boxes][: len(phrases)]
        true += [None] * (len(phrases) - len(true))
        made.append(
            ("located", "Located: true boxes solid, found ones dashed", located_figure(picture, phrases, true, found))
        )
    for name, _, image in made:
        save_picture(image, out / f"{prefix}{name}.png")
    return {
        "seen": seen,
        "figures": [{"heading": text, "src": data_uri(image), "width": image.width} for _, text, image in made],
    }


def _viewer(picture: Image.Image, encoder: PatchEncoder, query: Query) -> dict[str, Any]:
    """What every patch sees, for the page's script: a byte per pair of patches, each row scaled to its largest."""
    weights = patch_weights(encoder.encode(encoder.show([picture])))
    at = np.asarray(query[1], dtype=float)
    return {
        "name": encoder.name,
        "grid": encoder.grid,
        "canvas": canvas_in_image(encoder, picture.size),
        "at": (at if len(at) == 2 else centres(at)[0]).tolist(),
        "maps": {kind: _as_bytes(weights[kind].numpy()) for kind in KINDS},
    }


def _as_bytes(weights_pp: Floats) -> str:
    others = weights_pp * (1 - np.eye(len(weights_pp)))
    largest = others.max(1, keepdims=True)
    scaled = np.divide(others, largest, out=np.zeros_like(others), where=largest > 0)
    return base64.b64encode((255 * scaled).round().astype(np.uint8).tobytes()).decode()


def _ramp() -> list[list[int]]:
    """256 colours (red, green, blue), the figures' own."""
    return (np.asarray(matplotlib.colormaps[COLORS](np.linspace(0, 1, 256)))[:, :3] * 255).round().astype(int).tolist()


def _thumbnail(picture: Image.Image) -> Image.Image:
    small = picture.copy()
    small.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    return small


def _numbers(seen: QueryMaps) -> list[str]:
    return [percent(seen.inside[kind]) if kind in seen.inside else "–" for kind in KINDS | WORDS]


def _order(table: Mapping[str, Any]) -> list[str]:
    """What is said first, then layer by layer; single heads are left to the JSON."""
    layers = [name for name in table if ", layer " in name and ", head " not in name]
    return [name for name in HEADLINES if name in table] + sorted(layers, key=lambda n: (n.split(",")[0], len(n), n))


def _share(share: Share | None) -> dict[str, str] | None:
    if share is None:
        return None
    change = ""
    if share.change is not None:
        change = f"{100 * share.change.value:+.1f} points {_interval(share.change)}"
    return {
        "value": percent(share.inside.value),
        "interval": _interval(share.inside),
        "even": percent(share.chance),
        "change": change,
    }


def _interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def _listed(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
