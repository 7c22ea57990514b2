"""WebDataset: tar shards in which the files of one sample share a name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from granvit.corpus.importers.base import as_split, as_text, importer, parse_object
from granvit.corpus.importers.jsonl import region_of
from granvit.corpus.importers.pictures import SUFFIXES as PICTURES
from granvit.corpus.importers.tars import SUFFIXES, Parts, samples, unless_refused
from granvit.corpus.layout import CorpusError
from granvit.corpus.quarantine import UNKNOWN_SIZE, Refused, Rejection
from granvit.regions import RegionImage


@importer("webdataset", without_regions=True)
def read(src: Path, *, source: str = "", licence: str = "", split: str = "") -> Iterator[RegionImage | Rejection]:
    """`src` is a folder of shards, ``*.tar``, ``*.tar.gz`` or ``*.tgz``, or one of them.

    Members that follow each other and have the same path up to the first dot are one sample: a picture, and beside it
    ``.json`` and ``.txt``, both optional. A JSON object with "regions" is in the layout of the importer jsonl ("image"
    and the size may be absent, "id" may be there); of any other, such as img2dataset's, "caption" is read. The text
    file is a caption too, where the JSON has none. Other members are passed over.

    Shards are read in memory and never unpacked. Members whose path leads out of the archive, links and devices are
    refused as "unsafe-member". A shard that is cut off gives the samples in front of the damage but the last one, which
    is refused as "damaged-tar": some of its files may be missing.

    Boxes: x1, y1, x2, y2 in absolute pixels. Terms: the data set's own; state them with `licence`.

    Raises:
        CorpusError: there are no shards.
    """
    shards = [src] if src.is_file() else sorted(path for path in src.glob("*") if path.name.endswith(SUFFIXES))
    if not shards:
        raise CorpusError(f"{src} holds no shards: {', '.join(f'*{suffix}' for suffix in SUFFIXES)}")
    name = src.resolve().name
    for shard in shards:
        for key, parts in samples(shard):
            yield _record(f"{shard.name}:{key}", key, parts, source, source or name, licence, split)


def _record(
    uri: str, key: str, parts: Parts, source: str, default: str, licence: str, split: str
) -> RegionImage | Rejection:
    try:
        files = {ending: unless_refused(content) for ending, content in parts.items()}
        ending = next((ending for ending in files if f".{ending}" in PICTURES), None)
        if ending is None:
            raise Refused("missing-image", f"the sample has only {', '.join(sorted(files))}")
        row = _parsed(files["json"]) if "json" in files else {}
        ours = "regions" in row
        origin = source or (as_text(row.get("source")) if ours else "") or default
        return RegionImage(
            id=(as_text(row.get("id")) if ours else "") or f"{origin}/{key}",
            image=files[ending],
            width=row.get("width", UNKNOWN_SIZE[0]) if ours else UNKNOWN_SIZE[0],
            height=row.get("height", UNKNOWN_SIZE[1]) if ours else UNKNOWN_SIZE[1],
            regions=[region_of(region) for region in row["regions"]] if ours else [],
            uri=uri,
            source=origin,
            licence=licence or as_text(row.get("licence")),
            caption=as_text(row.get("caption")) or _text(files.get("txt", b"")) or None,
            split=as_split(split or row.get("split")),
        )
    except Refused as refused:
        return Rejection(refused.reason, "", uri, None, refused.detail)


def _parsed(data: bytes) -> dict[str, Any]:
    row = parse_object(data)
    for name, kind in (("width", int), ("height", int), ("regions", list)):
        if "regions" in row and not isinstance(row.get(name, kind()), kind):
            raise Refused("bad-field", f"{name} should be {kind.__name__}, got {row[name]!r:.100}")
    return row


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace").strip()
