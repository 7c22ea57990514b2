"""What was seen, as PNGs and as a page in which any patch can be asked what it looks at."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from granvit.bootstrap import Estimate
from granvit.coordinates import Box
from granvit.draw import save_picture
from granvit.evaluate.attention import LAST_LAYERS, Floats, Seen, attend_box, attend_point, patch_weights
from granvit.evaluate.attention_figures import (
    COLORS,
    Query,
    canvas_in_image,
    heads_figure,
    located_figure,
    seen_figure,
    words_figure,
)
from granvit.evaluate.attention_mass import HEADLINES, MassReport, Share
from granvit.evaluate.patch_encoder import PatchEncoder
from granvit.files import write_text
from granvit.geometry import centres
from granvit.images import decode
from granvit.page import data_uri, percent, write_page
from granvit.predict import GranViT
from granvit.regions import RegionImage

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
    for number, record in enumerate(examples, start=1):
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
            found[encoder.name] = GranViT(encoder.model).locate(picture, phrases)
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
    weights = patch_weights(encoder.look(encoder.show([picture])))
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


def _numbers(seen: Seen) -> list[str]:
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
