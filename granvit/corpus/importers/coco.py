"""COCO's instance annotations, and the many data sets published in their format."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from granvit.corpus.check import SPLITS, LeftOut, Refused, Rejection, shown
from granvit.corpus.importers.base import (
    MAX_NAMES,
    Found,
    ambiguous_ids,
    as_flag,
    as_id,
    as_number,
    as_polygon,
    as_size,
    as_split,
    as_text,
    importer,
    read_image,
    read_json,
    read_regions,
    require_own_id,
    stated_sides,
)
from granvit.corpus.layout import CorpusError
from granvit.regions import Region, RegionImage

_Entry = TypeVar("_Entry")

_LICENCES = "licenses"
_PREFIX = "instances_"
_IN_IMAGE_FOLDER = "_annotations.coco.json"

# So many pictures, evenly spread, are looked for to find out their folder: of a large set often only a part is here.
_SOME = 1000
# Words of file names, beside those that are a split's own.
_TRAINVAL, _HELD_OUT = "trainval", ("minival", "valminusminival")


@importer("coco")
def read(
    src: Path,
    *,
    images: Path | None = None,
    captions: Path | None = None,
    encoding: str = "",
    source: str = "coco",
    licence: str = "",
    split: str = "",
) -> Iterator[Found]:
    """`src` is an instances JSON file, or the folder of a data set, of which all instances files are read.

    Layout: ``annotations/instances_val2017.json`` with its pictures in ``val2017/`` (or ``images/val2017/``,
    ``images/``), or ``_annotations.coco.json`` among its pictures, in the folder or in ``train/``, ``valid/`` and
    ``test/`` of it; elsewhere with `images`. The split is that which the name of the file, or else of its folder,
    states, and else `split`; files of held-out pictures are read first, so that one listed twice stays held out.
    Captions, if any, from `captions` or ``captions_val2017.json`` beside the instances: of an image's captions the
    longest is kept.

    Boxes: x, y, width, height in pixels. The category's name becomes the text, unless there is a transcription,
    ``"attributes": {"text"}``, as annotation tools write it; ``iscrowd`` becomes ignore; an outline of one polygon is
    kept, and "score", in [0, 1]. An image's "license" becomes its terms, by its name in "licenses", unless `licence`
    names them. Masks of several polygons or of run lengths, keypoints and further attributes are left out and counted.
    Tables are joined by the value of their ids, "1" being 1; an id that several entries have is "ambiguous-id", as is
    what refers to it. Terms: COCO's annotations are CC BY 4.0, its photos under their Flickr licences.

    Raises:
        CorpusError: no instances file, one that is not in the format, no pictures, or captions of none of them.
    """
    splits = {file: split_named(file.stem, file.parent.name) or as_split(split) for file in _instance_files(src)}
    for file in held_out_first(splits):
        yield from _read_file(file, splits[file], images, captions, encoding, source, licence)


def _instance_files(src: Path) -> list[Path]:
    if src.is_file():
        return [src]
    files = sorted(src.glob(f"annotations/{_PREFIX}*.json")) or sorted(src.glob(_IN_IMAGE_FOLDER))
    files = files or sorted(file for file in src.glob(f"*/{_IN_IMAGE_FOLDER}") if as_split(file.parent.name) in SPLITS)
    if not files:
        raise CorpusError(f"{src} holds neither annotations/{_PREFIX}*.json nor {_IN_IMAGE_FOLDER}")
    return files


def split_named(*names: str) -> str:
    """The split that the first of these names with a word for one states, such as "instances_val2017"; else ""."""
    for name in names:
        for word in re.findall("[a-z]+", name.lower()):
            if as_split(word) in SPLITS:
                return as_split(word)
            if word == _TRAINVAL or word in _HELD_OUT:
                return "train" if word == _TRAINVAL else "val"
    return ""


def held_out_first(splits: dict[Path, str]) -> list[Path]:
    """The files in the order to read them: of an image that is in two of them the first one counts."""
    return sorted(splits, key=lambda file: splits[file] not in ("val", "test"))


def _read_file(
    file: Path, split: str, images: Path | None, captions: Path | None, encoding: str, source: str, licence: str
) -> Iterator[Found]:
    tables = load_tables(file, encoding=encoding)
    part = file.stem.removeprefix(_PREFIX) if file.stem.startswith(_PREFIX) else ""
    base = file.parent.parent
    beside = [base / part, base / "images" / part, base / "images", file.parent] if part else [file.parent]
    root = images or folder_of(file, beside, [_file_name(image) for image in some_entries(tables["images"])])
    caption_of: dict[Hashable, str] = {}
    caption_file = captions or file.with_name(f"captions_{part}.json")
    if captions or caption_file.exists():
        ids = {as_id(image.get("id")) for image in tables["images"]}
        caption_of, left_out = _captions(caption_file, ids, encoding)
        yield from left_out

    def locate(image: dict[str, Any]) -> tuple[str, str]:
        name = _file_name(image)
        return name, f"{root.resolve().name}/{name}"

    yield from read_tables(tables, file, Variant(root, locate), source, licence, split, caption_of)


def _file_name(image: dict[str, Any]) -> str:
    """The picture's path, with slashes where a tool on Windows wrote it."""
    return as_text(image.get("file_name")).replace("\\", "/")


@dataclass(frozen=True)
class Variant:
    """What a data set in COCO's format does in its own way.

    Attributes:
        root: the folder that pictures are read from.
        locate: of an entry of "images", the picture's path below `root`, and its uri.
        names: of an entry of "categories", its names, the best one first.
    """

    root: Path
    locate: Callable[[dict[str, Any]], tuple[str, str]]
    names: Callable[[dict[str, Any]], list[str]] = lambda category: [as_text(category.get("name"))]


def read_tables(
    tables: dict[str, Any],
    file: Path,
    variant: Variant,
    source: str,
    licence: str,
    split: str,
    caption_of: dict[Hashable, str] | None = None,
) -> Iterator[Found]:
    """The records of the tables of `file`, joined by their ids; `caption_of` holds captions by `as_id` of the image.

    Raises:
        CorpusError: a category's id is neither number nor string.
    """
    reader = _Annotations(tables, file, variant)
    ambiguous = ambiguous_ids((as_id(image.get("id")), image) for image in tables["images"])
    by_image: defaultdict[Hashable, list[dict[str, Any]]] = defaultdict(list)
    for annotation in tables["annotations"]:
        by_image[as_id(annotation.get("image_id"))].append(annotation)
    done: set[Hashable] = set()
    for image in tables["images"]:
        key = as_id(image.get("id"))
        path, uri = variant.locate(image)
        listed = [] if key is None or key in ambiguous else by_image.pop(key, [])
        regions = reader.regions(listed)
        try:
            if key is None:
                raise Refused("bad-field", f"an image's id is a number or a string, got {shown(image.get('id'))}")
            if key in ambiguous:
                raise Refused("ambiguous-id", f"{file.name} lists several images of the id {shown(key)}")
            if key in done:
                raise Refused("duplicate-id", f"{file.name} lists the image of the id {shown(key)} again")
            done.add(key)
            width, height = as_size(image.get("width"), image.get("height"))
            yield RegionImage(
                id=f"{source}/{uri}",
                image=read_image(variant.root, path),
                width=width,
                height=height,
                regions=regions,
                uri=uri,
                source=source,
                licence=licence or reader.licence(image),
                caption=(caption_of or {}).get(key),
                split=split,
            )
        except Refused as refused:
            yield Rejection(refused.reason, f"{source}/{uri}", uri, None, refused.detail, len(regions))
    for named, orphans in by_image.items():
        reason, what = ("ambiguous-id", "several have") if named in ambiguous else ("unknown-image", "is not listed")
        for index, annotation in enumerate(orphans):
            detail = f"annotation {shown(annotation.get('id'))} names the image {shown(annotation.get('image_id'))}"
            yield Rejection(reason, "", file.name, index, f"{detail}, which {what}")
    for what, count in reader.left_out.items():
        yield LeftOut(what, count, file.name)


@dataclass
class _Annotations:
    """The reader of a file's annotations.

    Attributes:
        left_out: what they state beyond a region, and how often.
    """

    tables: dict[str, Any]
    file: Path
    variant: Variant
    left_out: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._names: dict[Hashable, list[str]] = {}
        self._unclear: set[Hashable] = set()
        for category in self.tables["categories"]:
            key, names = as_id(category.get("id")), self.variant.names(category)
            self.left_out["further name of a category"] += max(len(names) - MAX_NAMES, 0)
            names = names[:MAX_NAMES]
            if key is None:
                got = shown(category.get("id"))
                raise CorpusError(f"{self.file}: a category's id is a number or a string, got {got}")
            if self._names.setdefault(key, names) != names:
                self._unclear.add(key)
        self._ambiguous = ambiguous_ids((as_id(row.get("id")), row) for row in self.tables["annotations"])
        stated = [(as_id(row.get("id")), row) for row in self.tables[_LICENCES]]
        unclear = ambiguous_ids(stated)
        self._licences: dict[Hashable, str] = {
            key: _terms(row) for key, row in stated if key is not None and key not in unclear
        }

    def licence(self, image: dict[str, Any]) -> str:
        """The terms of an image, "" where it states none. In a file that lists none, the number says nothing."""
        if image.get("license") is None or not self.tables[_LICENCES]:
            return ""
        key = as_id(image["license"])
        self.left_out["licence of an image that is not listed, or several times"] += key not in self._licences
        return self._licences.get(key, "")

    def regions(self, annotations: list[dict[str, Any]]) -> list[Region]:
        """The regions of one image's annotations, refused ones among them."""
        done: set[Hashable] = set()

        def read(annotation: dict[str, Any]) -> Region:
            require_own_id(annotation, "id", self._ambiguous, done)
            return self._region(annotation)

        return read_regions(annotations, read)

    def _region(self, annotation: dict[str, Any]) -> Region:
        attributes = annotation.get("attributes")
        is_text = isinstance(attributes, dict) and "text" in attributes
        crowd = as_flag("iscrowd", annotation.get("iscrowd"))
        ignore = as_flag("ignore", annotation.get("ignore")) or crowd
        if isinstance(attributes, dict) and is_text:
            text, others = as_text(attributes["text"]), []
        else:
            text, *others = self._category(annotation.get("category_id"), ignore)
        self.left_out["attributes other than a text"] += isinstance(attributes, dict) and len(attributes) > is_text
        for name in ("keypoints", "isfake", "isreflected"):
            self.left_out[f"{name} of an annotation"] += bool(annotation.get(name))
        return Region(
            box=stated_sides(annotation.get("bbox")),
            text=text,
            kind="text" if is_text else "object",
            score=None if annotation.get("score") is None else as_number(annotation["score"]),
            alternatives=others,
            polygon=self._polygon(annotation.get("segmentation")),
            ignore=ignore,
        )

    def _category(self, written: Any, ignore: bool) -> list[str]:
        """The category's names; one that is to be ignored needs none."""
        key = as_id(written)
        if key in self._unclear:
            raise Refused("ambiguous-id", f"{self.file.name} lists several categories of the id {shown(key)}")
        if key not in self._names and not ignore:
            raise Refused("unknown-category", f"{self.file.name} lists no category of the id {shown(written)}")
        return self._names.get(key) or [""]

    def _polygon(self, outline: Any) -> list[float] | None:
        if isinstance(outline, list) and len(outline) == 1:
            return as_polygon(outline[0])
        self.left_out["mask of several polygons"] += isinstance(outline, list) and len(outline) > 1
        self.left_out["mask of run lengths"] += isinstance(outline, dict)
        return None


def _terms(licence: dict[str, Any]) -> str:
    return " ".join((as_text(licence.get("name")) or as_text(licence.get("url"))).split())


def load_tables(
    file: Path, names: tuple[str, ...] = ("images", "annotations", "categories"), encoding: str = ""
) -> dict[str, list[dict[str, Any]]]:
    """The lists of objects of these `names` in a JSON file, and of "licenses", which may be absent.

    An entry that is no object counts as one without fields.

    Raises:
        CorpusError: there are no such lists.
    """
    data = read_json(file, encoding)
    tables = {}
    for name in (*names, _LICENCES):
        entries = data.get(name) if isinstance(data, dict) else None
        if name == _LICENCES and not isinstance(entries, list):
            entries = []
        if not isinstance(entries, list):
            raise CorpusError(f"{file}: not in COCO's format: {name!r} should be a list of objects")
        tables[name] = [entry if isinstance(entry, dict) else {} for entry in entries]
    return tables


def some_entries(entries: list[_Entry]) -> list[_Entry]:
    """Some of the entries, enough to find out where their pictures are."""
    return entries[:: len(entries) // _SOME + 1]


def holds_some(folder: Path, names: list[str]) -> bool:
    """Whether one of the pictures of these names is below a folder."""
    return any(os.path.isfile(folder / name) for name in names if name)


def folder_of(file: Path, candidates: list[Path], names: list[str]) -> Path:
    """The first folder that holds some of the pictures that `file` names.

    Raises:
        CorpusError: none does.
    """
    for folder in candidates:
        if holds_some(folder, names):
            return folder
    raise CorpusError(f"{file}: found none of its pictures in {', '.join(map(str, candidates))}: name their folder")


def _captions(file: Path, images: set[Any], encoding: str) -> tuple[dict[Hashable, str], list[LeftOut]]:
    """The longest caption by the id of each of these images, and what is not kept."""
    longest: dict[Hashable, str] = {}
    left_out = Counter[str]()
    rows = load_tables(file, ("annotations",), encoding)["annotations"]
    for row in rows:
        key, caption = as_id(row.get("image_id")), as_text(row.get("caption"))
        if key is None or key not in images:
            left_out["caption of an image that is not listed"] += 1
        elif not caption.strip():
            left_out["caption that is no text"] += 1
        else:
            left_out["further caption of an image"] += key in longest
            longest[key] = max(longest.get(key, ""), caption, key=len)
    if rows and not longest:
        raise CorpusError(f"{file}: none of {len(rows)} captions is one of a listed image")
    return longest, [LeftOut(what, count, file.name) for what, count in left_out.items()]
