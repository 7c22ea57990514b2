"""Visual Genome: 5.4 M phrases, each about a region, on 108,077 photos."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

from granvit.corpus.check import LeftOut, Refused, Rejection, shown
from granvit.corpus.importers.base import (
    Found,
    ambiguous_ids,
    as_id,
    as_sides,
    as_size,
    as_text,
    importer,
    read_image,
    read_regions,
    require_own_id,
)
from granvit.corpus.importers.jsonl import read_rows
from granvit.corpus.layout import CorpusError
from granvit.regions import Region, RegionImage

_REGIONS, _IMAGES, _OBJECTS = "region_descriptions.json", "image_data.json", "objects.json"
_FURTHER = (_OBJECTS, "attributes.json", "relationships.json", "question_answers.json", "scene_graphs.json")


@importer("visual_genome")
def read(
    src: Path,
    *,
    images: Path | None = None,
    objects: bool = False,
    source: str = "visual_genome",
    licence: str = "CC BY 4.0",
) -> Iterator[Found]:
    """`src` is the folder with ``region_descriptions.json``, ``image_data.json`` and, for `objects`, ``objects.json``.

    ``region_descriptions.json``: a list of ``{"id" or "image_id", "regions": [{"region_id", "image_id", "phrase", "x",
    "y", "width", "height"}]}``. ``image_data.json``: a list of ``{"image_id", "url", "width", "height", "coco_id"}``;
    the url ends in the picture's folder and name, ``VG_100K_2/1.jpg``. These folders are in `src`, in ``images/``
    there, or in `images`. With `objects` a picture's objects, ``{"names", "x", "y", "w", "h"}``, are regions behind
    its phrases, the first of their names the text. The tables of attributes, relationships and questions have no
    place in a record. There are no official splits. An id that two photos, or two regions of one photo, have is
    "ambiguous-id", as is a region that names another photo than the one it is listed for.

    About half of the photos are COCO's, those of RefCOCO's test sets among them: check for leakage.

    Boxes: x, y, width, height in pixels. Terms: annotations CC BY 4.0; the photos, of YFCC100M and COCO, under their
    Flickr licences.

    Raises:
        CorpusError: one of the files is missing, or is no list; there are no pictures.
    """
    named = (_REGIONS, _IMAGES, _OBJECTS) if objects else (_REGIONS, _IMAGES)
    if missing := [name for name in named if not (src / name).is_file()]:
        raise CorpusError(f"{src} lacks {', '.join(missing)}")
    folders = [images] if images else [src, src / "images"]
    root = next((at for at in folders if (at / "VG_100K").is_dir() or (at / "VG_100K_2").is_dir()), None)
    if root is None:
        raise CorpusError(f"{src}: found neither VG_100K/ nor VG_100K_2/: name the folder that they are in")
    photos, unclear = _by_image(src / _IMAGES)
    things, doubtful = _by_image(src / _OBJECTS) if objects else ({}, set())
    described: set[Hashable] = set()
    for index, row in enumerate(_rows(src / _REGIONS)):
        uri = f"{_REGIONS}:{index}"
        written = row.get("id", row.get("image_id"))
        key = as_id(written)
        regions = _read(row, "regions", "region_id", key, _phrase)
        if key in things and key not in described:
            regions += _read(things[key], "objects", "object_id", key, _object)
        described.add(key)
        try:
            if key in unclear or key in doubtful:
                raise Refused("ambiguous-id", f"several entries of a table have the image id {shown(written)}")
            if key is None or key not in photos:
                raise Refused("unknown-image", f"no entry of {_IMAGES} has the id {shown(written)}")
            photo = photos[key]
            uri = "/".join(as_text(photo.get("url")).split("/")[-2:])
            width, height = as_size(photo.get("width"), photo.get("height"))
            yield RegionImage(
                id=f"{source}/{uri}",
                image=read_image(root, uri),
                width=width,
                height=height,
                regions=regions,
                uri=uri,
                source=source,
                licence=licence,
            )
        except Refused as refused:
            yield Rejection(refused.reason, f"{source}/{uri}", uri, None, refused.detail, len(regions))
    yield LeftOut(f"photo that {_REGIONS} does not describe", len(photos.keys() - described))
    yield LeftOut(
        "object of a photo that is not described",
        sum(len(_listed(things[key], "objects")) for key in things.keys() - described),
    )
    for name in _FURTHER:
        if (src / name).is_file() and not (objects and name == _OBJECTS):
            yield LeftOut(f"table {name}")


def _by_image(file: Path) -> tuple[dict[Hashable, dict[str, Any]], set[Hashable]]:
    """The rows of a table by image id, and the ids that several of them have."""
    rows = [(as_id(row.get("image_id")), row) for row in _rows(file)]
    return {key: row for key, row in rows if key is not None}, ambiguous_ids(rows)


def _read(
    row: dict[str, Any], name: str, id_name: str, image: Hashable, read: Callable[[dict[str, Any]], Region]
) -> list[Region]:
    """The regions that a row lists for its image."""
    entries = _listed(row, name)
    ambiguous = ambiguous_ids((as_id(entry.get(id_name)), entry) for entry in entries)

    done: set[Hashable] = set()

    def checked(entry: dict[str, Any]) -> Region:
        require_own_id(entry, id_name, ambiguous, done)
        named = entry.get("image_id")
        if named is not None and as_id(named) != image:
            raise Refused("ambiguous-id", f"it is listed for the image {shown(image)}, and names {shown(named)}")
        return read(entry)

    return read_regions(entries, checked)


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    for index, row in enumerate(read_rows(file)):
        if not isinstance(row, dict):
            raise CorpusError(f"{file}: entry {index} should be an object, got {shown(row)}")
        yield row


def _listed(row: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The objects in a list; what is none counts as an empty one, which gives a region that the gate refuses."""
    values = row.get(name)
    return [value if isinstance(value, dict) else {} for value in values] if isinstance(values, list) else []


def _phrase(row: dict[str, Any]) -> Region:
    return Region(as_sides([row.get(name) for name in ("x", "y", "width", "height")]), as_text(row.get("phrase")))


def _object(row: dict[str, Any]) -> Region:
    names = row.get("names")
    text, *others = [as_text(name) for name in names] if isinstance(names, list) and names else [""]
    return Region(as_sides([row.get(name) for name in ("x", "y", "w", "h")]), text, alternatives=others)
