"""TextOCR: every word in the photographs of TextVQA."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any

from granvit.corpus.check import Refused, Rejection, shown
from granvit.corpus.importers.base import (
    Found,
    as_id,
    as_polygon,
    as_size,
    as_split,
    as_text,
    importer,
    read_image,
    read_json,
    read_regions,
    stated_sides,
)
from granvit.corpus.layout import CorpusError
from granvit.regions import Region, RegionImage

_UNREADABLE = "."
# The published zip unpacks to train_images/, also for the validation split; the file names in the JSON say "train/".
_FOLDERS = ("train_images", "train_val_images/train_images", "train", "images")


@importer("textocr")
def read(
    src: Path, *, images: Path | None = None, source: str = "textocr", licence: str = "CC BY 4.0", split: str = ""
) -> Iterator[Found]:
    """`src` is ``TextOCR_0.1_train.json`` (or val); its pictures are in ``train_images/`` beside it, or in `images`.

    The file: ``"imgs"`` {image id: {"id", "width", "height", "set", "file_name": "train/ID.jpg"}}, ``"anns"``
    {annotation id: {"id", "image_id", "bbox", "utf8_string", "points", "area"}} and ``"imgToAnns"`` {image id:
    [annotation ids]}. The word ``.`` stands for one that is illegible or not English, kept as ignore. The split is that
    of the file, ``"set"``, unless `split` names another. What has an id that is there twice, or is listed for another
    image than it names itself, is "ambiguous-id"; an annotation that is listed for no image is reported too.

    Boxes: x, y, width, height in pixels; ``points``, the outline clockwise from the word's own top left, is kept as
    polygon. Pictures that OpenImages lists as rotated may be stored turned against their stated size: those are
    refused as "size-mismatch". Terms: annotations CC BY 4.0, the pictures are OpenImages' (CC BY 2.0).

    Raises:
        CorpusError: no such file, not in the layout, or no folder of pictures.
    """
    tables = _Tables(src)
    root = images or next((src.parent / name for name in _FOLDERS if (src.parent / name).is_dir()), None)
    if root is None:
        raise CorpusError(f"{src}: none of {', '.join(_FOLDERS)} is beside it: name the folder of the pictures")
    for written, image in tables.images:
        key = as_id(written)
        name = as_text(image.get("file_name")).rpartition("/")[2]
        uri = f"{root.resolve().name}/{name}"
        regions = tables.regions(key)
        try:
            if key in tables.ambiguous or as_id(image.get("id", written)) != key:
                raise Refused("ambiguous-id", f"{src.name} has several images of the id {shown(written)}")
            width, height = as_size(image.get("width"), image.get("height"))
            yield RegionImage(
                id=f"{source}/{uri}",
                image=read_image(root, name),
                width=width,
                height=height,
                regions=regions,
                uri=uri,
                source=source,
                licence=licence,
                split=as_split(split or image.get("set")),
            )
        except Refused as refused:
            yield Rejection(refused.reason, f"{source}/{uri}", uri, None, refused.detail, len(regions))
    yield from tables.rest()


class _Tables:
    """The tables of a file, joined by ids.

    Attributes:
        images: each image's id as it is written, and its entry.
        ambiguous: the ids of images that are there twice.

    Raises:
        CorpusError: it is not in the layout.
    """

    def __init__(self, file: Path) -> None:
        if not file.is_file():
            raise CorpusError(f"{file} is not a file; name TextOCR_0.1_train.json")
        self._file = file
        data = read_json(file, pairs=_Table)
        imgs, anns, listed = (_entries(file, data, name) for name in ("imgs", "anns", "imgToAnns"))
        if imgs and not any(isinstance(image, dict) for image in imgs.values()):
            raise CorpusError(f"{file}: not in TextOCR's layout: every entry of 'imgs' should be an object")
        self.images = [(key, image if isinstance(image, dict) else {}) for key, image in imgs.pairs]
        self.ambiguous = _repeated(key for key, _ in imgs.pairs)
        self._annotations = {as_id(key): row for key, row in anns.pairs}
        self._unclear = _repeated(key for key, _ in anns.pairs)
        self._listed: dict[Hashable, list[Any]] = {}
        for key, keys in listed.pairs:
            self._listed.setdefault(as_id(key), []).extend(keys if isinstance(keys, list) else [keys])
        # An annotation that two images claim could be either's; one that an image claims twice is there once.
        claims = [(image, key) for image, keys in self._listed.items() for key in {as_id(key) for key in keys}]
        self._unclear |= _repeated(key for _, key in claims)
        self._unlisted = self._annotations.keys() - {key for _, key in claims}

    def regions(self, image: Hashable) -> list[Region]:
        """The regions that are listed for an image, unless several have its id."""
        if image in self.ambiguous:
            return []
        done: set[Hashable] = set()

        def read(written: Any) -> Region:
            key = as_id(written)
            row = self._annotations.get(key)
            if key is None or row is None:
                raise Refused("unknown-annotation", f"{self._file.name} has no annotation of the id {shown(written)}")
            stated = as_id(row.get("image_id", image)) if isinstance(row, dict) else image
            if key in self._unclear or stated != image:
                detail = f"annotation {shown(written)} is there, or listed, for more than one image"
                raise Refused("ambiguous-id", detail)
            if key in done:
                raise Refused("duplicate-id", f"annotation {shown(written)} is listed again")
            done.add(key)
            return _region(row)

        return read_regions(self._listed.pop(image, []), read)

    def rest(self) -> Iterator[Rejection]:
        """The annotations of images that are not there, or that are there twice, and those that no image has."""
        for image, keys in self._listed.items():
            several = image in self.ambiguous
            reason, what = ("ambiguous-id", "several have") if several else ("unknown-image", "none has")
            for index, key in enumerate(keys):
                detail = f"annotation {shown(key)} is listed for the image {shown(image)}, an id that {what}"
                yield Rejection(reason, "", self._file.name, index, detail)
        for index, key in enumerate(sorted(self._unlisted, key=str)):
            detail = f"annotation {shown(key)} is listed for no image"
            yield Rejection("unlisted-annotation", "", self._file.name, index, detail)


class _Table(dict[str, Any]):
    """An object of JSON that remembers the keys that are in it twice; `dict` would keep the last of them."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self._pairs = pairs if len(pairs) != len(self) else None

    @property
    def pairs(self) -> list[tuple[str, Any]]:
        return self._pairs if self._pairs is not None else list(self.items())


def _entries(file: Path, data: Any, name: str) -> _Table:
    table = data.get(name) if isinstance(data, dict) else None
    if not isinstance(table, _Table):
        raise CorpusError(f"{file}: not in TextOCR's layout: {name!r} should be an object")
    return table


def _repeated(keys: Iterable[Any]) -> set[Hashable]:
    return {key for key, count in Counter(map(as_id, keys)).items() if count > 1}


def _region(value: Any) -> Region:
    row = value if isinstance(value, dict) else {}
    text = as_text(row.get("utf8_string"))
    return Region(
        box=stated_sides(row.get("bbox")),
        text=text,
        kind="text",
        polygon=as_polygon(row.get("points")),
        ignore=text == _UNREADABLE,
    )
