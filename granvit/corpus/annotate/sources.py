"""Where images to annotate come from: a folder, Parquet, WebDataset tars, a `datasets` folder, a corpus.

A source lists its files with the number of images in each, and reads any one image by file and index. The order of
the list is the order of the annotated corpus; it depends on names alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from granvit.corpus.annotate.base import ImageSource, InputFile, Listed, new_record, other_files, stamp
from granvit.corpus.check import SPLITS, LeftOut, Refused, Rejection
from granvit.corpus.importers import parquet, webdataset
from granvit.corpus.importers.base import as_split, read_image
from granvit.corpus.importers.image_folder import HEAD_BYTES, LEFT_OUT, kind_of, listing, unsupported
from granvit.corpus.layout import MANIFEST, CorpusError, group_ends
from granvit.corpus.store import Corpus
from granvit.files import sha256
from granvit.links import LinkOutsideError, check_link, read_within, walk, within
from granvit.regions import RegionImage

_USUAL_COLUMNS = ("image", "img", "picture", "jpg", "jpeg", "png", "webp", "bytes")


@dataclass(frozen=True)
class _PackedSource:
    """Files of one kind, each with many images in it.

    Attributes:
        only: the one file of `root` that is meant; empty for all below it.
    """

    root: Path
    name: str
    licence: str
    only: str = ""
    suffixes: ClassVar[tuple[str, ...]]

    @classmethod
    def names(cls, root: Path) -> Iterator[str]:
        return _names(root, cls.suffixes)

    def _wanted(self) -> Iterator[str]:
        return iter([self.only]) if self.only else self.names(self.root)


class ParquetSource(_PackedSource):
    """Parquet files with a column of encoded images: binary, or a struct with "bytes" as `datasets` writes it."""

    suffixes = (".parquet",)

    def files(self) -> Iterator[Listed]:
        for name in self._wanted():
            try:
                table = _parquet(self.root / name)
                yield InputFile(name, table.metadata.num_rows, stamp(self.root / name))
            except Refused as refused:
                yield Rejection(refused.reason, "", name, None, refused.detail)
        if not self.only:
            yield from other_files(self.root, self.suffixes)

    def identify(self, file: str, index: int) -> RegionImage:
        return new_record((f"{self.name}/{file}:{index}", f"{file}:{index}"), None, self.name, self.licence)

    def read(self, file: str, index: int) -> RegionImage:
        table = _parquet(self.root / file)
        ends = group_ends(table.metadata)
        group = next(i for i, end in enumerate(ends) if index < end)
        value = _rows(self.root / file, group).row(index - (ends[group - 1] if group else 0))
        image = value["bytes"] if isinstance(value, dict) else value
        if not image:
            raise Refused("missing-image", "the image column holds no bytes here")
        return replace(self.identify(file, index), image=image)


@lru_cache(maxsize=8)
def _parquet(file: Path) -> Any:
    """The open file; its image column is `_image_column(file)`.

    Raises:
        Refused: it is damaged or has no column of images.
    """
    table = parquet.open_parquet(file)
    _image_column(file, table.schema_arrow)
    return table


def _image_column(file: Path, schema: pa.Schema) -> str:
    def holds_bytes(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" and holds_bytes(field.type) for field in kind)
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    columns = [field.name for field in schema if holds_bytes(field.type)]
    usual = [name for name in _USUAL_COLUMNS if name in columns]
    if usual or len(columns) == 1:
        return (usual or columns)[0]
    raise Refused("no-image-column", f"no column of {file.name} is known to hold images: {', '.join(schema.names)}")


class _Rows:
    """The image column of a row group, decoded batch by batch: rows are asked for in order, but for a second try."""

    def __init__(self, file: Path, group: int) -> None:
        self._parquet, self._group = _parquet(file), group
        self._name = _image_column(file, self._parquet.schema_arrow)
        self._begin()

    def _begin(self) -> None:
        self._batches = parquet.batches(self._parquet, self._group, [self._name])
        self._batch: Any = None
        self._start, self._end = 0, 0
        self._failure: Refused | None = None

    def row(self, index: int) -> Any:
        """Raises:
        Refused: it cannot be read, or nothing behind a row that could not.
        """
        if index < self._start:
            self._begin()
        while index >= self._end:
            if self._failure:
                raise self._failure
            try:
                self._batch = next(self._batches)
            except Refused as refused:
                self._failure = refused
                continue
            except StopIteration:
                self._failure = Refused("damaged-parquet", f"row group {self._group} ends after {self._end} rows")
                continue
            self._start, self._end = self._end, self._end + self._batch.num_rows
        row = parquet.row_of(self._batch, index - self._start)
        if isinstance(row, Refused):
            raise row
        return row[self._name]


@lru_cache(maxsize=2)
def _rows(file: Path, group: int) -> _Rows:
    return _Rows(file, group)


class TarSource(_PackedSource):
    """WebDataset tars: every picture in them is an image, whatever else its sample holds."""

    suffixes = webdataset.SUFFIXES

    def files(self) -> Iterator[Listed]:
        for name in self._wanted():
            if not name.lower().endswith(".tar"):
                yield Rejection("compressed-tar", "", name, None, "images are read from anywhere in a tar: unpack it")
                continue
            try:
                check_link(self.root / name)
            except LinkOutsideError as error:
                yield Rejection("link-outside", "", name, None, str(error))
                continue
            found, refused, others = _pictures_in(self.root / name)
            for member, why in refused:
                yield Rejection(why.reason, "", f"{name}:{member}", None, why.detail)
            yield from others
            if found:
                yield InputFile(name, len(found), stamp(self.root / name))
        if not self.only:
            yield from other_files(self.root, self.suffixes)

    def identify(self, file: str, index: int) -> RegionImage:
        member, _, _ = _pictures_in(self.root / file)[0][index]
        return new_record((f"{self.name}/{file}/{member}", f"{file}:{member}"), None, self.name, self.licence)

    def read(self, file: str, index: int) -> RegionImage:
        _, start, length = _pictures_in(self.root / file)[0][index]
        with (self.root / file).open("rb") as tar:
            tar.seek(start)
            data = tar.read(length)
        if len(data) < length:
            raise Refused("damaged-tar", f"cut off after {len(data)} of {length} bytes")
        return replace(self.identify(file, index), image=data)


@lru_cache(maxsize=4)
def _pictures_in(tar: Path) -> tuple[list[tuple[str, int, int]], list[tuple[str, Refused]], list[LeftOut]]:
    """Name, start and length of each picture of a tar, what is wrong with other members, and what is none."""
    pictures: dict[str, tuple[str, int, int]] = {}
    refused: list[tuple[str, Refused]] = []
    others: list[LeftOut] = []
    with tar.open("rb") as file:
        for name, place in webdataset.places(tar):
            if isinstance(place, Refused):
                refused.append((name, place))
                continue
            file.seek(place[0])
            kind = kind_of(name, file.read(min(HEAD_BYTES, place[1])))
            if kind in LEFT_OUT:
                others.append(LeftOut(LEFT_OUT[kind], 1, f"{tar.name}:{name}"))
            elif kind == "unsupported":
                refused.append((name, unsupported(name)))
            elif name in pictures:
                refused.append((name, Refused("duplicate-id", "an earlier member has this name")))
            else:
                pictures[name] = (name, *place)
    return list(pictures.values()), refused, others


@dataclass(frozen=True)
class DatasetSource:
    """A folder written by `save_to_disk` of the `datasets` library: its first column of images, all its splits."""

    root: Path
    name: str
    licence: str

    def files(self) -> Iterator[Listed]:
        for split, rows in _splits(self.root).items():
            files = sorted((self.root / split).rglob("*.arrow"))
            yield InputFile(split, len(rows), ",".join(f"{file.name}:{stamp(file)}" for file in files))

    def identify(self, file: str, index: int) -> RegionImage:
        place = f"{file}:{index}" if file else f"{index}"
        split = as_split(file)
        known = split if split in SPLITS else ""
        return new_record((f"{self.name}/{place}", place), None, self.name, self.licence, known)

    def read(self, file: str, index: int) -> RegionImage:
        image = _splits(self.root)[file][index]["bytes"]
        if not image:
            raise Refused("missing-image", "the data set holds no bytes for this image")
        return replace(self.identify(file, index), image=image)


@lru_cache(maxsize=1)
def _splits(root: Path) -> dict[str, Any]:
    """The image column of each split by its name; a data set without splits is its own only one, named ""."""
    try:
        from datasets import DatasetDict, Image, load_from_disk
    except ImportError as error:
        raise CorpusError(f"{root} is a data set of another library: pip install datasets ({error})") from error
    try:
        loaded = load_from_disk(str(root))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise CorpusError(f"{root}: the data set cannot be read: {error}") from error
    splits = dict(sorted(loaded.items())) if isinstance(loaded, DatasetDict) else {"": loaded}
    columns = {}
    for split, rows in splits.items():
        name = next((name for name, feature in rows.features.items() if isinstance(feature, Image)), None)
        if name is None:
            raise CorpusError(f"{root}: no column of {split or 'the data set'} holds images")
        columns[split] = rows.cast_column(name, Image(decode=False))[name]
    return columns


def _names(root: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Files below `root` with one of the endings, as paths relative to it, in order."""
    for name in walk(root):
        if name.lower().endswith(suffixes) and not any(part.startswith(".") for part in name.split("/")):
            yield name


@dataclass(frozen=True)
class LinkedSource:
    """A source whose links lead no further than its place, unless they are to be followed: see `links.within`."""

    source: ImageSource
    place: Path
    follow_links: bool

    def files(self) -> Iterator[Listed]:
        return read_within(self.source.files(), self.place, follow_links=self.follow_links)

    def identify(self, file: str, index: int) -> RegionImage:
        with within(self.place, follow_links=self.follow_links):
            return self.source.identify(file, index)

    def read(self, file: str, index: int) -> RegionImage:
        with within(self.place, follow_links=self.follow_links):
            return self.source.read(file, index)


def open_source(
    src: str | Path, keep: bool = False, name: str = "", licence: str = "", follow_links: bool = False
) -> ImageSource:
    """The source at `src`, known by what is there.

    Args:
        keep: a corpus's regions and captions are kept; otherwise only its images are taken.
        name: the data set's name, the first part of every id; by default that of the folder or file.
        licence: the terms of the images. A corpus keeps its own names, ids and terms where these two are empty.
        follow_links: what a link leads to outside of `src` is read too, and not refused as "link-outside".

    Raises:
        CorpusError: there is nothing of the kind, or `keep` is asked of something without regions.
    """
    root = Path(src)
    if not root.exists():
        raise CorpusError(f"{root} does not exist")
    with within(root, follow_links=follow_links):
        return LinkedSource(next(_known(root, keep, name, licence)), root, follow_links)


def open_sources(src: str | Path, follow_links: bool = False) -> Iterator[ImageSource]:
    """Every source at `src`, where `open_source` gives the first: Parquet, tars and pictures may lie side by side.

    Raises:
        CorpusError: as `open_source`.
    """
    root = Path(src)
    if not root.exists():
        raise CorpusError(f"{root} does not exist")
    with within(root, follow_links=follow_links):
        sources = list(_known(root, keep=False, name="", licence=""))
    return (LinkedSource(source, root, follow_links) for source in sources)


def _known(root: Path, keep: bool, name: str, licence: str) -> Iterator[ImageSource]:
    if (root / MANIFEST).exists():
        Corpus(root)
        yield CorpusSource(root, keep, licence, name)
        return
    name = name or root.resolve().name
    if keep:
        raise CorpusError(f"{root} is no corpus, so it has no boxes to keep")
    if root.is_file():
        for kind in (ParquetSource, TarSource):
            if root.name.lower().endswith(kind.suffixes):
                yield kind(root.parent, name.partition(".")[0], licence, root.name)
                return
        raise CorpusError(f"{root} is neither Parquet nor a tar; pictures are given as a folder")
    if any((root / file).exists() for file in ("dataset_dict.json", "state.json")):
        yield DatasetSource(root, name, licence)
        return
    packed = [kind for kind in (ParquetSource, TarSource) if any(kind.names(root))]
    yield from (kind(root, name, licence) for kind in packed)
    kinds = Counter(kind for _, kind in listing(root))
    if kinds["picture"] or (packed and kinds["unsupported"]):
        yield FolderSource(root, name, licence)
    elif not packed:
        others = f" ({kinds['unsupported']} pictures in formats that are not read)" if kinds["unsupported"] else ""
        raise CorpusError(f"{root} holds no picture, Parquet file, tar, data set or corpus{others}")


@dataclass(frozen=True)
class FolderSource:
    """Pictures below a folder, known by their contents; files that are none are counted."""

    root: Path
    name: str
    licence: str

    def files(self) -> Iterator[Listed]:
        for uri, kind in listing(self.root):
            if kind == "unsupported":
                refused = unsupported(uri)
                yield Rejection(refused.reason, f"{self.name}/{uri}", uri, None, refused.detail)
            if kind in LEFT_OUT:
                yield LeftOut(LEFT_OUT[kind], 1, uri)
            if kind != "picture":
                continue
            try:
                check_link(self.root / uri)
                yield InputFile(uri, 1, stamp(self.root / uri))
            except LinkOutsideError as error:
                yield Rejection("link-outside", f"{self.name}/{uri}", uri, None, str(error))
            except OSError as error:  # a link to nowhere
                yield Rejection("missing-image", f"{self.name}/{uri}", uri, None, str(error.strerror))

    def identify(self, file: str, index: int) -> RegionImage:
        return new_record((f"{self.name}/{file}", file), None, self.name, self.licence)

    def read(self, file: str, index: int) -> RegionImage:
        return replace(self.identify(file, index), image=read_image(self.root, file))


@dataclass(frozen=True)
class CorpusSource:
    """An existing corpus, with its regions or without; a `name` goes in front of its ids, which stay each its own."""

    root: Path
    keep: bool
    licence: str
    name: str = ""

    def files(self) -> Iterator[Listed]:
        yield InputFile(MANIFEST, len(_corpus(self.root)), sha256(self.root / MANIFEST))

    def identify(self, file: str, index: int) -> RegionImage:
        record = _corpus(self.root)[index]
        name = f"{self.name}/{record.id}" if self.name else record.id
        source, licence = self.name or record.source, self.licence or record.licence
        record = replace(record, id=name, source=source, licence=licence)
        return record if self.keep else replace(record, regions=[], caption=None)

    def read(self, file: str, index: int) -> RegionImage:
        corpus = _corpus(self.root)
        corpus.check_shard(corpus.shard_of(index))
        return self.identify(file, index)


@lru_cache(maxsize=1)
def _corpus(root: Path) -> Corpus:
    return Corpus(root)
