"""FineHARD, the region captions of FG-CLIP: 12 M web pictures, 40 M regions, captioned by a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from granvit.corpus.check import LeftOut, Refused, Rejection, shown
from granvit.corpus.importers.base import (
    Found,
    as_box,
    as_caption,
    as_number,
    as_split,
    as_text,
    from_canvas,
    importer,
    read_image,
    size_of,
)
from granvit.corpus.importers.jsonl import read_rows
from granvit.corpus.layout import CorpusError
from granvit.geometry import View
from granvit.regions import Region, RegionImage

# What the authors' own loader removes from every path.
_PREFIX = "grit-20m/data-12m/"
_MAKER = "model:FineHARD"


@importer("finehard")
def read(
    src: Path, *, images: Path | None = None, source: str = "finehard", licence: str = "", split: str = "train"
) -> Iterator[Found]:
    """`src` is the data set's folder with ``jsonfiles/*.json``, that folder, or one of the files.

    A file is a list of ``{"f_path", "caption", "short_caption", "bbox_info": [{"bbox", "short_expr", "long_expr",
    "flag_short_neg", "short_expr_negs", ...}]}``. The caption is the picture's; a region's text is the short
    expression, the long one an alternative. The hard negatives, which are wrong on purpose, and the short captions are
    counted and not read. The pictures,
    which img2dataset downloads, are in `images`, by default ``data/grit-12m/`` or ``grit-12m/`` beside the data set;
    ``f_path`` is relative to it behind its first two folders, ``grit-20m/data-12m/``. What is no longer on the web is
    quarantined as "missing-image".

    Boxes: x1, y1, x2, y2 as shares of the width and height, then the detector's confidence. Terms: annotations
    Apache-2.0; the pictures are their owners'.

    Raises:
        CorpusError: no such file, one that is no list, or no folder of pictures.
    """
    files, base = _files(src)
    beside = (base.parent / "data/grit-12m", base.parent / "grit-12m", base / "grit-12m")
    root = images or next((folder for folder in beside if folder.is_dir()), None)
    if root is None:
        raise CorpusError(f"{src}: found no folder grit-12m beside it: name the folder of the pictures")
    for file in files:
        for index, entry in enumerate(read_rows(file)):
            uri, count = f"{file.name}:{index}", 0
            try:
                if isinstance(entry, Refused):
                    raise entry
                if not isinstance(entry, dict) or not as_text(entry.get("f_path")):
                    raise Refused("missing-field", "f_path")
                uri = as_text(entry["f_path"]).removeprefix(_PREFIX)
                listed = entry.get("bbox_info")
                if listed is not None and not isinstance(listed, list):
                    raise Refused("bad-field", f"bbox_info should be a list, got {shown(listed)}")
                listed = listed or []
                count = len(listed)
                yield _record(entry, listed, uri, root, source, licence, as_split(split))
            except Refused as refused:
                yield Rejection(refused.reason, f"{source}/{uri}", uri, None, refused.detail, count)
                continue
            rows = [row for row in listed if isinstance(row, dict)]
            yield LeftOut("short captions", int(bool(entry.get("caption") and entry.get("short_caption"))), uri)
            yield LeftOut("regions' hard negatives", sum(bool(row.get("short_expr_negs")) for row in rows), uri)


def _files(src: Path) -> tuple[list[Path], Path]:
    """The annotation files and the data set's folder."""
    folder = src / "jsonfiles" if (src / "jsonfiles").is_dir() else src
    files = [folder] if folder.is_file() else sorted([*folder.glob("*.json"), *folder.glob("*.jsonl")])
    if not files:
        raise CorpusError(f"{src} holds no jsonfiles/*.json")
    inner = files[0].parent
    return files, inner.parent if inner.name == "jsonfiles" else inner


def _record(
    entry: dict[str, Any], listed: list[Any], uri: str, root: Path, source: str, licence: str, split: str
) -> RegionImage:
    data = read_image(root, uri)
    width, height = size_of(data)
    view = View.squash((width, height), 1)
    return RegionImage(
        id=f"{source}/{uri}",
        image=data,
        width=width,
        height=height,
        regions=[_region(row, view) for row in listed],
        uri=uri,
        source=source,
        licence=licence,
        caption=as_caption(entry.get("caption")) or as_caption(entry.get("short_caption")),
        split=split,
    )


def _region(value: Any, view: View) -> Region:
    row = value if isinstance(value, dict) else {}
    written = row.get("bbox")
    numbers = written if isinstance(written, list) else []
    short, long = as_text(row.get("short_expr")), as_text(row.get("long_expr"))
    return Region(
        box=from_canvas(as_box(numbers[:4]), view),
        text=short or long,
        score=as_number(numbers[4]) if len(numbers) > 4 else None,
        box_by=_MAKER,
        text_by=_MAKER,
        alternatives=[long] if long else [],
    )
