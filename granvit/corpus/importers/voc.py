"""PASCAL VOC's detection annotations, and what annotation tools write in their format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize
from xml.etree.ElementTree import Element

from granvit.corpus.check import SPLITS, LeftOut, Refused, Rejection
from granvit.corpus.importers.base import MAX_NAMES, Found, as_flag, as_split, importer, read_image, read_regions
from granvit.corpus.importers.pictures import SUFFIXES
from granvit.corpus.importers.split_lists import splits_of
from granvit.corpus.importers.voc_xml import box_of, read_xml, size_of
from granvit.corpus.layout import CorpusError
from granvit.regions import Region, RegionImage

_LAYOUT = "the layout is Annotations/*.xml and JPEGImages/*, or both kinds of files in train/, valid/ and test/"
# What an object states beside its name, its boxes and whether it is difficult; "Unspecified" states nothing.
_FURTHER = ("part", "polygon", "pose", "truncated", "occluded", "actions", "point")
_NOTHING = ("", "0", "unspecified")


@importer("voc")
def read(src: Path, *, encoding: str = "", source: str = "voc", licence: str = "", split: str = "") -> Iterator[Found]:
    """`src` is a folder such as ``VOCdevkit/VOC2012``, with ``Annotations/*.xml`` and ``JPEGImages/*``.

    Or, as annotation tools export it, pictures and XML side by side, in `src` or in ``train/``, ``valid/`` and
    ``test/`` there. An annotation and its picture have the same name up to the ending; the names that the XML states
    are not used, and pictures of one name are "ambiguous-id". The split is that of the list
    ``ImageSets/Main/train.txt``, ``val.txt`` or ``test.txt`` (or of those of the classes, ``car_val.txt``) which names
    the picture, where there are such, or of the folder, and else `split`. A picture in two lists is held out. Lines
    that name no picture are counted; if no line of a held-out split names one, and some pictures are in no list, the
    import ends, for those would be trained on.

    An object's ``name`` becomes the text, each of its ``bndbox`` a region, ``difficult`` becomes ignore; parts (head,
    hand, foot), polygons, pose, truncated and occluded are left out and counted. XML with a document type is refused:
    it could hold entities.

    Boxes: xmin, ymin, xmax, ymax in pixels counted from 1, the last ones included, so that 1 is taken from xmin and
    ymin. Tools that count from 0 are off by that one pixel. Terms: the photos are Flickr's, under its terms of use.

    Raises:
        CorpusError: `src` is not in the layout, or its lists do not name its pictures.
    """
    left_out = Counter[str]()
    for part in _parts(src):
        pictures, annotations = part.pictures(), part.annotations()
        left_out["file that is neither picture nor annotation"] += part.others()
        default = part.split or as_split(split)
        names = [file.name for files in pictures.values() for file in files]
        split_of, unused = splits_of(_lists(part.folder), names, encoding, default)
        yield from unused
        for key, files in pictures.items():
            stated = annotations.pop(key, [])
            for picture in files:
                uri = picture.relative_to(src).as_posix()
                count = 0
                try:
                    if len(files) > 1 or len(stated) > 1:
                        # Whose the regions are is not known: they go with the first one.
                        count = sum(_count(file, encoding) for file in stated if picture is files[0])
                        raise Refused("ambiguous-id", f"one name: {', '.join(file.name for file in files + stated)}")
                    if not stated:
                        raise Refused("missing-annotation", f"no file {part.xml}{picture.stem}.xml")
                    root = read_xml(stated[0], encoding)
                    regions = _regions(root, left_out)
                    count = len(regions)
                    width, height = size_of(root)
                    yield RegionImage(
                        id=f"{source}/{uri}",
                        image=read_image(src, uri),
                        width=width,
                        height=height,
                        regions=regions,
                        uri=uri,
                        source=source,
                        licence=licence,
                        split=split_of.get(picture.stem, default),
                    )
                except Refused as refused:
                    yield Rejection(refused.reason, f"{source}/{uri}", uri, None, refused.detail, count)
        for files in annotations.values():
            for file in files:
                uri, detail = file.relative_to(src).as_posix(), f"no picture {part.jpg}{file.stem}.*"
                yield Rejection("missing-image", "", uri, None, detail, _count(file, encoding))
    for what, count in left_out.items():
        yield LeftOut(what, count)


@dataclass(frozen=True)
class _Part:
    """A folder with two for annotations and pictures, `xml` and `jpg`; or with both kinds of files, if those are ""."""

    folder: Path
    xml: str
    jpg: str
    split: str

    def annotations(self) -> dict[str, list[Path]]:
        """The XML files by the name up to the ending."""
        return _by_stem([file for file in sorted((self.folder / self.xml).iterdir()) if _is_xml(file)])

    def pictures(self) -> dict[str, list[Path]]:
        """The pictures by the name up to the ending: whatever is in a folder for them, else what is named as one."""
        return _by_stem([file for file in sorted((self.folder / self.jpg).iterdir()) if self._is_picture(file)])

    def others(self) -> int:
        """How many files are neither, as macOS adds some."""
        files = {*(self.folder / self.xml).iterdir(), *(self.folder / self.jpg).iterdir()}
        return sum(not _is_xml(file) and not self._is_picture(file) for file in files)

    def _is_picture(self, file: Path) -> bool:
        named = bool(self.jpg) and file.parent.name == self.jpg.strip("/")
        return not _is_macos(file) and (named or file.name.lower().endswith(SUFFIXES))


def _parts(src: Path) -> list[_Part]:
    """The folders of a data set, those of held-out pictures first.

    Raises:
        CorpusError: there are none.
    """
    whole = _part(src, src.resolve().name)
    if whole:
        return [whole]
    subfolders = [folder for folder in sorted(src.iterdir()) if folder.is_dir()] if src.is_dir() else []
    found = [part for folder in subfolders if (part := _part(folder, folder.name)) and part.split]
    if not found:
        missing = next(name for name in ("Annotations", "JPEGImages") if not (src / name).is_dir())
        raise CorpusError(f"{src} lacks the folder {missing}/; {_LAYOUT}")
    return sorted(found, key=lambda part: part.split == "train")


def _part(folder: Path, name: str) -> _Part | None:
    split = as_split(name) if as_split(name) in SPLITS else ""
    if (folder / "Annotations").is_dir() and (folder / "JPEGImages").is_dir():
        return _Part(folder, "Annotations/", "JPEGImages/", split)
    return _Part(folder, "", "", split) if folder.is_dir() and any(map(_is_xml, folder.iterdir())) else None


def _is_xml(file: Path) -> bool:
    return file.suffix.lower() == ".xml" and not _is_macos(file)


def _is_macos(file: Path) -> bool:
    """Whether macOS put the file beside another one."""
    return file.name.startswith("._") or file.name == ".DS_Store"


def _by_stem(files: list[Path]) -> dict[str, list[Path]]:
    """Files by their names up to the ending, in the one of Unicode's spellings that is not macOS's."""
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(normalize("NFC", file.stem), []).append(file)
    return found


def _lists(folder: Path) -> dict[str, list[Path]]:
    """The lists by split: the whole one, or those of the classes, which name the same pictures."""
    lists = folder / "ImageSets/Main"
    whole = {name: lists / f"{name}.txt" for name in SPLITS if name}
    return {name: [file] if file.is_file() else sorted(lists.glob(f"*_{file.name}")) for name, file in whole.items()}


@dataclass(frozen=True)
class _Stated:
    """A box of an object with what the object states; None for the box that a damaged object lacks."""

    names: list[str]
    difficult: str
    bndbox: Element | None


def _boxes(root: Element) -> list[_Stated]:
    found = []
    for element in root.findall("object"):
        names = [name.text or "" for name in element.findall("name")[:MAX_NAMES]]
        difficult = (element.findtext("difficult") or "").strip()
        none: list[Element | None] = [None]
        found += [_Stated(names, difficult, bndbox) for bndbox in element.findall("bndbox") or none]
    return found


def _count(file: Path, encoding: str) -> int:
    """How many regions an annotation states that is not used."""
    try:
        return len(_boxes(read_xml(file, encoding)))
    except Refused:
        return 0


def _regions(root: Element, left_out: Counter[str]) -> list[Region]:
    for stated in root.findall("object"):
        left_out["further name of an object"] += max(len(stated.findall("name")) - MAX_NAMES, 0)
        for field in stated:
            if field.tag in _FURTHER and (len(field) or (field.text or "").strip().lower() not in _NOTHING):
                left_out[f"{field.tag} of an object"] += 1
    return read_regions(_boxes(root), _region)


def _region(stated: _Stated) -> Region:
    if stated.bndbox is None:
        raise Refused("bad-box", "an object without bndbox")
    text, *others = stated.names or [""]
    ignore = as_flag("difficult", "" if stated.difficult.lower() in _NOTHING else stated.difficult)
    return Region(box_of(stated.bndbox), text, alternatives=others, ignore=ignore)
