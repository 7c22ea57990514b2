"""Visual Genome: 5.4 M phrases, each about a region, on 108,077 photos."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from granvit.corpus.importers.base import as_id, as_sides, as_text, importer, read_image
from granvit.corpus.importers.rows import read_rows
from granvit.corpus.layout import CorpusError
from granvit.corpus.quarantine import UNKNOWN_SIZE, Refused, Rejection
from granvit.regions import Region, RegionImage

_REGIONS, _IMAGES, _OBJECTS = "region_descriptions.json", "image_data.json", "objects.json"


@importer("visual_genome")
def read(
    src: Path,
    *,
    images: Path | None = None,
    objects: bool = False,
    source: str = "visual_genome",
    licence: str = "CC BY 4.0",
) -> Iterator[RegionImage | Rejection]:
    """`src` is the folder with ``region_descriptions.json``, ``image_data.json`` and, for `objects`, ``objects.json``.

    ``region_descriptions.json``: a list of ``{"id" or "image_id", "regions": [{"region_id", "image_id", "phrase", "x",
    "y", "width", "height"}]}``. ``image_data.json``: a list of ``{"image_id", "url", "width", "height", "coco_id"}``;
    the url ends in the picture's folder and name, ``VG_100K_2/1.jpg``. These folders are in `src`, in ``images/``
    there, or in `images`. With `objects` a picture's objects, ``{"names", "x", "y", "w", "h"}``, are regions behind
    its phrases, the first of their names the text. There are no official splits.

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
    photos = {as_id(row.get("image_id")): row for row in _rows(src / _IMAGES)}
    things = {as_id(row.get("image_id")): row for row in _rows(src / _OBJECTS)} if objects else {}
    for index, row in enumerate(_rows(src / _REGIONS)):
        uri = f"{_REGIONS}:{index}"
        try:
            key = as_id(row.get("id", row.get("image_id")))
            if key is None or key not in photos:
                raise Refused(
                    "unknown-image", f"no entry of {_IMAGES} has the id {row.get('id', row.get('image_id'))!r:.100}"
                )
            photo = photos[key]
            uri = "/".join(as_text(photo.get("url")).split("/")[-2:])
            yield RegionImage(
                id=f"{source}/{uri}",
                image=read_image(root, uri),
                width=photo.get("width", UNKNOWN_SIZE[0]),
                height=photo.get("height", UNKNOWN_SIZE[1]),
                regions=[_phrase(value) for value in _listed(row, "regions")]
                + [_object(value) for value in _listed(things.get(key, {}), "objects")],
                uri=uri,
                source=source,
                licence=licence,
            )
        except Refused as refused:
            yield Rejection(refused.reason, f"{source}/{uri}", uri, None, refused.detail)


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    for index, row in enumerate(read_rows(file)):
        if not isinstance(row, dict):
            raise CorpusError(f"{file}: entry {index} should be an object, got {row!r:.100}")
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
