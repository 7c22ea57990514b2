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

from granvit.corpus.annotate.base import ImageSource, InputFile, Listed, new_record, stamp
from granvit.corpus.annotate.packed_sources import DatasetSource, ParquetSource, TarSource
from granvit.corpus.check import LeftOut, Rejection
from granvit.corpus.importers.base import read_image
from granvit.corpus.importers.image_folder import LEFT_OUT, listing, unsupported
from granvit.corpus.layout import MANIFEST, CorpusError, sha256
from granvit.corpus.store import Corpus
from granvit.links import LinkOutsideError, check_link, read_within, within
from granvit.regions import RegionImage


@dataclass(frozen=True)
class LinkedSource:
    """A source whose links lead no further than its place, unless they are to be followed: see `links.within`."""

    source: ImageSource
    place: Path
    follow_links: bool

    def files(self) -> Iterator[Listed]:
        return read_within(self.source.files(), self.place, follow_links=self.follow_links)

    def identify(self, file: str, index: int) -> tuple[str, str]:
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
        return LinkedSource(_known(root, keep, name, licence), root, follow_links)


def _known(root: Path, keep: bool, name: str, licence: str) -> ImageSource:
    name = name or root.resolve().name
    if (root / MANIFEST).exists():
        Corpus(root)
        return CorpusSource(root, keep, licence)
    if keep:
        raise CorpusError(f"{root} is no corpus, so it has no boxes to keep")
    if root.is_file():
        for kind in (ParquetSource, TarSource):
            if root.name.lower().endswith(kind.suffixes):
                return kind(root.parent, name.partition(".")[0], licence, root.name)
        raise CorpusError(f"{root} is neither Parquet nor a tar; pictures are given as a folder")
    if any((root / file).exists() for file in ("dataset_dict.json", "state.json")):
        return DatasetSource(root, name, licence)
    for kind in (ParquetSource, TarSource):
        if any(kind.names(root)):
            return kind(root, name, licence)
    kinds = Counter(kind for _, kind in listing(root))
    if not kinds["picture"]:
        others = f" ({kinds['unsupported']} pictures in formats that are not read)" if kinds["unsupported"] else ""
        raise CorpusError(f"{root} holds no picture, Parquet file, tar, data set or corpus{others}")
    return FolderSource(root, name, licence)


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

    def identify(self, file: str, index: int) -> tuple[str, str]:
        return f"{self.name}/{file}", file

    def read(self, file: str, index: int) -> RegionImage:
        return new_record(self.identify(file, index), read_image(self.root, file), self.name, self.licence)


@dataclass(frozen=True)
class CorpusSource:
    """An existing corpus, with its regions or without."""

    root: Path
    keep: bool
    licence: str

    def files(self) -> Iterator[Listed]:
        yield InputFile(MANIFEST, len(_corpus(self.root)), sha256(self.root / MANIFEST))

    def identify(self, file: str, index: int) -> tuple[str, str]:
        record = _corpus(self.root)[index]
        return record.id, record.uri

    def read(self, file: str, index: int) -> RegionImage:
        corpus = _corpus(self.root)
        corpus.check_shard(corpus.shard_of(index))
        record = corpus[index]
        record = replace(record, licence=self.licence or record.licence)
        return record if self.keep else replace(record, regions=[], caption=None)


@lru_cache(maxsize=1)
def _corpus(root: Path) -> Corpus:
    return Corpus(root)
