"""What images to annotate come in, whatever they lie in: files of so many images each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from granvit.corpus.check import UNKNOWN_SIZE, LeftOut, Rejection
from granvit.corpus.importers.image_folder import LEFT_OUT, listing
from granvit.regions import RegionImage


@dataclass(frozen=True)
class InputFile:
    """A file that holds images.

    Attributes:
        name: relative to the source's place, with slashes.
        images: how many it holds.
        stamp: changes when the file does; size and time of the last change, or a checksum.
    """

    name: str
    images: int
    stamp: str


Listed = InputFile | Rejection | LeftOut


class Source(Protocol):
    """Images to annotate; plain data, so that it travels to workers, which open the files themselves."""

    def files(self) -> Iterator[Listed]:
        """The files in order; in place of one that cannot be read, why; and what else is there and not read."""
        ...

    def identify(self, file: str, index: int) -> tuple[str, str]:
        """Id and URI of one image, without touching its picture."""
        ...

    def read(self, file: str, index: int) -> RegionImage:
        """One image, its regions as they are to be before annotation.

        Raises:
            Refused: it cannot be read.
        """
        ...


def beside(root: Path, read: tuple[str, ...]) -> Iterator[LeftOut]:
    """What a folder holds besides the files whose names end on one of `read`, which are the images' source."""
    for uri, kind in listing(root):
        if not uri.lower().endswith(read):
            yield LeftOut(LEFT_OUT.get(kind, f"pictures beside the {read[0]} files"), 1, uri)


def new_record(
    identity: tuple[str, str], image: bytes | None, source: str, licence: str, split: str = ""
) -> RegionImage:
    """An image that nothing is known of yet."""
    width, height = UNKNOWN_SIZE
    return RegionImage(identity[0], image, width, height, [], identity[1], source, licence, None, split)


def stamp(file: Path) -> str:
    """Size and time of the last change."""
    state = file.stat()
    return f"{state.st_size}:{state.st_mtime_ns}"
