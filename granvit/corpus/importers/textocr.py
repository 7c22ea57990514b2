"""TextOCR: every word in the photographs of TextVQA."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from granvit.corpus.importers.base import as_polygon, as_sides, as_split, as_text, importer, read_image, read_json
from granvit.corpus.layout import CorpusError
from granvit.corpus.quarantine import UNKNOWN_SIZE, Refused, Rejection
from granvit.regions import Region, RegionImage

_UNREADABLE = "."
# The published zip unpacks to train_images/, also for the validation split; the file names in the JSON say "train/".
_FOLDERS = ("train_images", "train_val_images/train_images", "train", "images")


@importer("textocr")
def read(
    src: Path, *, images: Path | None = None, source: str = "textocr", licence: str = "CC BY 4.0", split: str = ""
) -> Iterator[RegionImage | Rejection]:
    """`src` is ``TextOCR_0.1_train.json`` (or val); its pictures are in ``train_images/`` beside it, or in `images`.

    The file: ``"imgs"`` {image id: {"id", "width", "height", "set", "file_name": "train/ID.jpg"}}, ``"anns"``
    {annotation id: {"id", "image_id", "bbox", "utf8_string", "points", "area"}} and ``"imgToAnns"`` {image id:
    [annotation ids]}. The word ``.`` stands for one that is illegible or not English, kept as ignore. The split is that
    of the file, ``"set"``, unless `split` names another.

    Boxes: x, y, width, height in pixels; ``points``, the outline clockwise from the word's own top left, is kept as
    polygon. Pictures that OpenImages lists as rotated may be stored turned against their stated size: those are
    refused as "size-mismatch". Terms: annotations CC BY 4.0, the pictures are OpenImages' (CC BY 2.0).

    Raises:
        CorpusError: no such file, not in the layout, or no folder of pictures.
    """
    imgs, anns, listed = _tables(src)
    root = images or next((src.parent / name for name in _FOLDERS if (src.parent / name).is_dir()), None)
    if root is None:
        raise CorpusError(f"{src}: none of {', '.join(_FOLDERS)} is beside it: name the folder of the pictures")
    for image_id, image in imgs.items():
        name = as_text(image.get("file_name")).rpartition("/")[2]
        uri = f"{root.resolve().name}/{name}"
        try:
            yield RegionImage(
                id=f"{source}/{uri}",
                image=read_image(root, name),
                width=image.get("width", UNKNOWN_SIZE[0]),
                height=image.get("height", UNKNOWN_SIZE[1]),
                regions=[_region(anns.get(str(key))) for key in _keys(listed.pop(image_id, []))],
                uri=uri,
                source=source,
                licence=licence,
                split=as_split(split or image.get("set")),
            )
        except Refused as refused:
            yield Rejection(refused.reason, f"{source}/{uri}", uri, None, refused.detail)
    for unknown, keys in listed.items():
        for index, key in enumerate(_keys(keys)):
            detail = f"annotation {key!r} names image {unknown!r}, which is not listed"
            yield Rejection("unknown-image", "", src.name, index, detail)


def _tables(file: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Any], dict[str, Any]]:
    if not file.is_file():
        raise CorpusError(f"{file} is not a file; name TextOCR_0.1_train.json")
    data = read_json(file)
    for name in ("imgs", "anns", "imgToAnns"):
        if not isinstance(data, dict) or not isinstance(data.get(name), dict):
            raise CorpusError(f"{file}: not in TextOCR's layout: {name!r} should be an object")
    if not all(isinstance(image, dict) for image in data["imgs"].values()):
        raise CorpusError(f"{file}: not in TextOCR's layout: every entry of 'imgs' should be an object")
    return data["imgs"], data["anns"], dict(data["imgToAnns"])


def _keys(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _region(value: Any) -> Region:
    row = value if isinstance(value, dict) else {}
    text = as_text(row.get("utf8_string"))
    return Region(
        box=as_sides(row.get("bbox")),
        text=text,
        kind="text",
        polygon=as_polygon(row.get("points")),
        ignore=text == _UNREADABLE,
    )
