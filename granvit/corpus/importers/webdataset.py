"""WebDataset: tar shards in which the files of one sample share a name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from granvit.corpus.check import UNKNOWN_SIZE, LeftOut, Refused, Rejection, shown
from granvit.corpus.importers.base import (
    Found,
    as_caption,
    as_size,
    as_split,
    as_text,
    decode_text,
    importer,
    parse_object,
    read_regions,
)
from granvit.corpus.importers.jsonl import region_of
from granvit.corpus.importers.pictures import SUFFIXES as PICTURES
from granvit.corpus.importers.pictures import chosen
from granvit.corpus.importers.tars import SUFFIXES, Parts, samples, unless_refused
from granvit.corpus.layout import CorpusError
from granvit.regions import RegionImage

_TEXTS = ("json", "txt")


@importer("webdataset", without_regions=True)
def read(src: Path, *, source: str = "", licence: str = "", split: str = "", encoding: str = "") -> Iterator[Found]:
    """`src` is a folder of shards, ``*.tar``, ``*.tar.gz`` or ``*.tgz``, or one of them.

    Members that follow each other and have the same path up to the first dot are one sample: a picture, and beside it
    ``.json`` and ``.txt``, both optional. A JSON object with "regions" is in the layout of the importer jsonl ("image"
    and the size may be absent, "id" may be there); of any other, such as img2dataset's, "caption" is read. The text
    file, in `encoding`, is a caption too, where the JSON has none. Members of other endings are counted and not read.
    A sample whose files are in several places of a shard is refused as "not-grouped"; a key that an earlier shard has
    too is told apart by its shard's name.

    Shards are read in memory and never unpacked. Members whose path leads out of the archive, links and devices are
    refused as "unsafe-member". A shard that is cut off gives the samples in front of the damage but the last one, which
    is refused as "damaged-tar": some of its files may be missing. A sample has at most some 270 MB, and a compressed
    shard unpacks to at most a hundred times its size.

    Boxes: x1, y1, x2, y2 in absolute pixels. Terms: the data set's own; state them with `licence`.

    Raises:
        CorpusError: there are no shards.
    """
    shards, others = ([src], []) if src.is_file() else chosen(src, SUFFIXES, "files that are no shards")
    if not shards:
        raise CorpusError(f"{src} holds no shards: {', '.join(f'*{suffix}' for suffix in SUFFIXES)}")
    yield from others
    name = src.resolve().name
    seen: set[str] = set()
    for shard in shards:
        keys = set[str]()
        for item in samples(shard, lambda ending: ending in _TEXTS or f".{ending}" in PICTURES):
            if isinstance(item, LeftOut):
                yield item
                continue
            key, parts = item
            keys.add(key)
            unique = f"{shard.name.partition('.')[0]}/{key}" if key in seen else key
            uri = f"{shard.name}:{key}"
            try:
                yield _record(uri, unique, parts, source, source or name, licence, split, encoding)
            except Refused as refused:
                yield Rejection(refused.reason, "", uri, None, refused.detail, _regions_in(parts))
            pictures = [ending for ending in parts if f".{ending}" in PICTURES]
            yield LeftOut("further pictures of a sample", max(0, len(pictures) - 1), uri)
            unread = [ending for ending in parts if ending and ending not in _TEXTS and f".{ending}" not in PICTURES]
            yield from (LeftOut(f"members .{ending}", 1, uri) for ending in unread)
        seen |= keys


def _record(
    uri: str, key: str, parts: Parts, source: str, default: str, licence: str, split: str, encoding: str
) -> RegionImage:
    files = {ending: unless_refused(content) for ending, content in parts.items()}
    pictures = [ending for ending in files if f".{ending}" in PICTURES]
    if not pictures:
        raise Refused("missing-image", f"the sample has only {', '.join(sorted(files))}")
    row = parse_object(files["json"]) if "json" in files else {}
    ours = "regions" in row
    if ours and not isinstance(row["regions"], list):
        raise Refused("bad-field", f"regions should be a list, got {shown(row['regions'])}")
    origin = source or (as_text(row.get("source")) if ours else "") or default
    width, height = as_size(row.get("width"), row.get("height")) if ours else UNKNOWN_SIZE
    return RegionImage(
        id=(as_text(row.get("id")) if ours else "") or f"{origin}/{key}",
        image=files[pictures[0]],
        width=width,
        height=height,
        regions=read_regions(row["regions"], region_of) if ours else [],
        uri=uri,
        source=origin,
        licence=licence or as_text(row.get("licence")),
        caption=as_caption(row.get("caption")) or _text(files.get("txt", b""), encoding) or None,
        split=as_split(split or row.get("split")),
    )


def _regions_in(parts: Parts) -> int:
    """How many regions a sample states that is refused."""
    try:
        regions = parse_object(unless_refused(parts.get("json", b""))).get("regions")
    except Refused as refused:
        return refused.regions
    return len(regions) if isinstance(regions, list) else 0


def _text(data: bytes, encoding: str) -> str:
    try:
        return decode_text(data, encoding).strip()
    except UnicodeError as error:
        raise Refused("bad-encoding", f"the .txt is not {encoding or 'UTF-8'}: {error!s:.100}") from error
