"""GRIT, the grounded image-text pairs of Kosmos-2: 20 M web pictures, phrases of their captions with boxes."""

from __future__ import annotations

from collections.abc import Iterator
from math import nan
from pathlib import Path
from typing import Any

from granvit.corpus.check import LeftOut, Refused, Rejection, shown
from granvit.corpus.importers import jsonl, webdataset
from granvit.corpus.importers.base import (
    Found,
    as_box,
    as_number,
    as_split,
    as_text,
    from_canvas,
    importer,
    parse_object,
    read_image,
    size_of,
)
from granvit.corpus.importers.image_folder import SUFFIXES as PICTURES
from granvit.corpus.importers.image_folder import chosen
from granvit.corpus.layout import CorpusError
from granvit.geometry import View
from granvit.regions import Region, RegionImage

_BOX_BY, _TEXT_BY = "detector:GLIP", "caption:GRIT"
_TABLES = (".parquet", ".jsonl", ".jsonl.gz")


@importer("grit")
def read(src: Path, *, source: str = "grit", licence: str = "", split: str = "train") -> Iterator[Found]:
    """`src` is a folder that img2dataset made of GRIT's table, or one shard or table in it.

    img2dataset, given ``--save_additional_columns '["id","noun_chunks","ref_exps"]'``, writes tar shards ``00000.tar``,
    whose samples are ``KEY.jpg`` and ``KEY.json``; or tables ``00000.parquet`` with the pictures in ``00000/KEY.jpg``
    or in the column "jpg". Shards are read where there are any, else tables, which may be JSON lines too, with the
    pictures beside them or in a column "image". The fields: "key", "url", "caption", "noun_chunks" and "ref_exps",
    lists of ``[start, end, x1, y1, x2, y2, score]``; start and end are characters of the caption.

    A referring expression becomes the text of its box, the noun chunk of the same box an alternative. Pictures may be
    resized in proportion (``--resize_mode keep_ratio``). One that was not, or that is another one by now, has not the
    shape that is stated ("original_width", or "width", and the height) and is refused as "size-mismatch".

    Boxes: x1, y1, x2, y2 as shares of the width and height, made by GLIP; its confidence is the score. Terms: the
    annotations are under the Microsoft Public License; the pictures are their owners'.

    Raises:
        CorpusError: there are neither shards nor tables.
    """
    shards, others = ([src], []) if src.is_file() else chosen(src, webdataset.SUFFIXES, "files that are no shards")
    shards, others = (shards, others) if shards else chosen(src, _TABLES)
    if not shards:
        raise CorpusError(
            f"{src} holds neither {' nor '.join(f'*{name}' for name in (*webdataset.SUFFIXES, *_TABLES))}"
        )
    yield from others
    for shard in shards:
        samples = _from_tar(shard) if shard.name.lower().endswith(webdataset.SUFFIXES) else _from_table(shard)
        for item in samples:
            if isinstance(item, LeftOut):
                yield item
                continue
            uri, row, picture = item
            count = len(row["ref_exps"]) if isinstance(row, dict) and isinstance(row.get("ref_exps"), list) else 0
            try:
                if isinstance(picture, Refused):
                    raise picture
                if isinstance(row, Refused):
                    raise row
                record, unused = _record(f"{source}/{uri}", uri, row, picture, source, licence, as_split(split))
            except Refused as refused:
                yield Rejection(refused.reason, f"{source}/{uri}", uri, None, refused.detail, count)
                continue
            yield record
            yield LeftOut("noun chunks without a referring expression", unused, uri)


# Where it is, what is said of the picture, and the picture; in place of either, why there is none.
_Sample = tuple[str, dict[str, Any] | Refused, bytes | Refused]


def _from_tar(shard: Path) -> Iterator[_Sample | LeftOut]:
    for item in webdataset.samples(shard, lambda ending: ending == "json" or f".{ending}" in PICTURES):
        if isinstance(item, LeftOut):
            yield item
            continue
        key, parts = item
        uri, only = f"{shard.name}:{key}", f"only {', '.join(filter(None, parts))}"
        picture = next((content for ending, content in parts.items() if f".{ending}" in PICTURES), None)
        picture = Refused("missing-image", only) if picture is None else picture
        try:
            row = parse_object(webdataset.unless_refused(parts.get("json", Refused("missing-annotation", only))))
            yield uri, row, parts.get("") or picture
        except Refused as refused:
            yield uri, refused, parts.get("") or picture


def _from_table(table: Path) -> Iterator[_Sample]:
    for index, row in enumerate(jsonl.read_rows(table)):
        uri = f"{table.name}:{index}"
        if not isinstance(row, dict):
            why = row if isinstance(row, Refused) else Refused("not-json", f"an object is expected, got {shown(row)}")
            yield uri, why, why
            continue
        try:
            yield uri, row, _picture(row, table)
        except Refused as refused:
            yield uri, row, refused


def _picture(row: dict[str, Any], table: Path) -> bytes:
    """The row's own picture, or the file named by its key, in the folder of the table's name or beside the table."""
    for name in ("image", "jpg"):
        data = row[name].get("bytes") if isinstance(row.get(name), dict) else row.get(name)
        if isinstance(data, bytes):
            return data
    if as_text(row.get("status")) not in ("", "success"):
        raise Refused("missing-image", f"not downloaded: {as_text(row.get('error_message')) or row['status']}")
    folder = table.with_name(table.name.partition(".")[0])
    return read_image(folder if folder.is_dir() else table.parent, f"{as_text(row.get('key'))}.jpg")


def _record(
    id: str, uri: str, row: dict[str, Any], data: bytes, source: str, licence: str, split: str
) -> tuple[RegionImage, int]:
    """The record, and how many noun chunks no referring expression grew from."""
    for name in ("caption", "ref_exps"):
        if not isinstance(row.get(name), str if name == "caption" else list):
            raise Refused("missing-field", f"{name}: was it among img2dataset's additional columns?")
    chunks = row.get("noun_chunks")
    if chunks is not None and not isinstance(chunks, list):
        raise Refused("bad-field", f"noun_chunks should be a list, got {shown(chunks)}")
    width, height = size_of(data)
    _require_shape(row, width, height)
    view = View.squash((width, height), 1)
    # Spans of one box, as it is written: the expression, then the chunk that it grew from.
    spans = [*row["ref_exps"], *(chunks or [])]
    regions: dict[Any, Region] = {}
    unused = 0
    for index, span in enumerate(spans):
        region = _region(span, row["caption"], view)
        if region.box in regions:
            regions[region.box].alternatives.append(region.text)
        elif index < len(row["ref_exps"]):
            regions[region.box] = region
        else:
            unused += 1
    record = RegionImage(
        id=id,
        image=data,
        width=width,
        height=height,
        regions=list(regions.values()),
        uri=as_text(row.get("url")) or uri,
        source=source,
        licence=licence,
        caption=row["caption"],
        split=split,
    )
    return record, unused


def _require_shape(row: dict[str, Any], width: int, height: int) -> None:
    """A resized picture keeps its shape to a pixel; one that was padded, cut, turned or replaced does not."""
    stated = [as_number(row.get(f"original_{name}", row.get(name))) for name in ("width", "height")]
    if abs(stated[0] * height - stated[1] * width) > max(*stated, width, height):
        raise Refused("size-mismatch", f"stated {stated[0]:g}x{stated[1]:g}, upright picture {width}x{height}")


def _region(span: Any, caption: str, view: View) -> Region:
    """A region of [start, end, x1, y1, x2, y2, score]; where something is odd, one that `check_record` refuses."""
    numbers = [as_number(value) for value in span] if isinstance(span, list) and len(span) == 7 else [nan] * 7
    start, end, *box, score = numbers
    text = caption[int(start) : int(end)] if 0 <= start < end <= len(caption) else ""
    return Region(from_canvas(as_box(box), view), text, score=score, box_by=_BOX_BY, text_by=_TEXT_BY)
