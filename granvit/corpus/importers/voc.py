"""PASCAL VOC's detection annotations, and what annotation tools write in their format.

Other data sets state their boxes in VOC's XML too, and the splits of their pictures in lists with one name a line, as
VOC's ``ImageSets/Main/val.txt``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from unicodedata import normalize
from xml.etree.ElementTree import Element, ParseError

from defusedxml.ElementTree import fromstring  # type: ignore[import-untyped]

from granvit.corpus.check import SPLITS, UNKNOWN_SIZE, LeftOut, Refused, Rejection
from granvit.corpus.importers.base import (
    MAX_FILE_BYTES,
    MAX_NAMES,
    Box,
    Found,
    as_flag,
    as_split,
    importer,
    is_text_encoding,
    read_image,
    read_regions,
    read_text,
    refusal_is_fatal,
)
from granvit.corpus.importers.image_folder import SUFFIXES
from granvit.corpus.layout import CorpusError
from granvit.errors import GranvitError
from granvit.files import read_regular
from granvit.regions import Region, RegionImage

_DECLARED = re.compile(rb"""(?:\xef\xbb\xbf)?<\?xml[^>]{0,100}?encoding\s*=\s*["']([A-Za-z0-9._-]{1,40})["']""")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def read_xml(file: Path, encoding: str = "") -> Element:
    """The root of an XML file that declares no document type, and so no entities to expand or files to fetch.

    Its text is in the encoding that it declares or has a mark of, and else in the one named, or UTF-8.

    Raises:
        Refused: "bad-xml".
    """
    try:
        return fromstring(_decoded(read_regular(file, MAX_FILE_BYTES), encoding), forbid_dtd=True)
    # ValueError: what defusedxml forbids, or a file that is not regular or too large; LookupError: an encoding that
    # nobody knows.
    except (ParseError, OSError, ValueError, LookupError) as error:
        message = str(error) if isinstance(error, GranvitError) else f"{file.name}: {error}"
        raise Refused("bad-xml", message) from error


def _decoded(data: bytes, encoding: str) -> str | bytes:
    """The text, or the bytes where only the parser can tell: it knows UTF-8, and UTF-16 by its mark."""
    found = _DECLARED.match(data)
    declared = found[1].decode() if found else ""
    if declared and not is_text_encoding(declared):
        raise LookupError(f"unknown encoding: {declared}")
    # Bytes in which the declaration itself could be read as ASCII are not UTF-16, whatever it says.
    if declared.lower().startswith(("utf-16", "utf_16", "utf16")):
        declared = "utf-8"
    for name in filter(None, (declared, encoding)):
        try:
            return data.decode("utf-8-sig" if data.startswith(b"\xef\xbb\xbf") else name)
        except UnicodeError:
            pass
    return data


def size_of(root: Element) -> tuple[int, int]:
    """(width, height) in pixels that an annotation states; unknown where it states none."""
    sides = [_NUMBER.fullmatch((root.findtext(f"size/{name}") or "").strip()) for name in ("width", "height")]
    width, height = (float(side[0]) if side else 0.0 for side in sides)
    whole = width.is_integer() and height.is_integer() and min(width, height) > 0
    return (int(width), int(height)) if whole else UNKNOWN_SIZE


def box_of(bndbox: Element) -> Box:
    """The box of a ``bndbox``. Its pixels count from 1, the last ones included.

    Raises:
        Refused: "bad-box" where one of the four is missing, stated twice, or no number.
    """
    xmin, ymin, xmax, ymax = (_side(bndbox, name) for name in ("xmin", "ymin", "xmax", "ymax"))
    return xmin - 1, ymin - 1, xmax, ymax


def _side(bndbox: Element, name: str) -> float:
    stated = [(element.text or "").strip() for element in bndbox.findall(name)]
    if len(stated) != 1 or not _NUMBER.fullmatch(stated[0]):
        raise Refused("bad-box", f"{name} should be one number, got {', '.join(stated) or 'none':.100}")
    return float(stated[0])


# In this order: of a picture in two lists, the held-out split counts.
_SPLITS = ("test", "val", "train")
# A list of one class states behind the name whether the picture shows it: 1, 0 or -1.
_COLUMN = re.compile(r"(.*\S)\s+-?[01]")
_LIST_BYTES = 1 << 30


def splits_of(
    lists: Mapping[str, Iterable[Path]], pictures: Iterable[str], encoding: str = "", default: str = ""
) -> tuple[dict[str, str], list[LeftOut]]:
    """The split of each picture that a list names, by its name's stem, and which lines say nothing.

    A line may name the picture with or without its ending and folders, be from Windows, and state a class's column. A
    picture in the lists of two splits is held out: it belongs to test before val, and to val before train.

    Args:
        lists: the files by split, "train", "val" or "test".
        pictures: the pictures' names.
        encoding: of the lists, see `read_text`.
        default: the split of the pictures that no list names, where one is stated.

    Raises:
        CorpusError: a list cannot be read; or a list of held-out pictures names none of them while no list names some,
            which then would be trained on.
    """
    stems = {_same(name): PurePosixPath(name).stem for name in pictures}
    stems |= {_same(stem): stem for stem in stems.values()}
    split_of: dict[str, str] = {}
    used = Counter[str]()
    lost: dict[str, list[str]] = {}
    repeated = []
    for split in _SPLITS:
        for file in lists.get(split, ()):
            for where, line in _lines(file, encoding):
                stem = next((stems[name] for name in _names(line) if name in stems), None)
                if stem is None:
                    lost.setdefault(split, []).append(where)
                    continue
                used[split] += 1
                if split_of.setdefault(stem, split) != split:
                    repeated.append(where)
    for split in ("test", "val"):
        unlisted = len(set(stems.values()) - split_of.keys())
        if split in lost and not used[split] and unlisted and not default:
            raise CorpusError(
                f"{lost[split][0]}: none of {len(lost[split])} lines for {split} names a picture, and {unlisted} "
                "pictures, which no list names, would be trained on: mend the names, or state the split of those"
            )
    named_nothing = [where for split in _SPLITS for where in lost.get(split, [])]
    ignored = {"line of a split list that names no picture": named_nothing,
            "line of a split list, its picture being held out by another": repeated}  # fmt: skip
    return split_of, [LeftOut(what, len(lines), lines[0]) for what, lines in ignored.items() if lines]


def _lines(file: Path, encoding: str) -> Iterator[tuple[str, str]]:
    """The lines that hold something, each with the words for where it is."""
    with refusal_is_fatal(file):
        text = read_text(file, encoding, _LIST_BYTES)
    for number, line in enumerate(text.split("\n"), start=1):
        if line := line.strip():
            yield f"{file.name}:{number}: {line!r:.100}", line


def _names(line: str) -> Iterator[str]:
    """What a line may mean, the likeliest first: a name may hold blanks and end in a number."""
    column = _COLUMN.fullmatch(line)
    for text in filter(None, (line, column and column[1])):
        name = text.strip("\"'").replace("\\", "/").rpartition("/")[2]
        yield _same(name)
        if name.lower().endswith(SUFFIXES):
            yield _same(PurePosixPath(name).stem)


def _same(name: str) -> str:
    """A name in the one of Unicode's spellings that lists have; macOS stores "é" as two characters."""
    return normalize("NFC", name)


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
