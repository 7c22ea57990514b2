"""What every annotator and every source of images is.

An annotator takes records in and gives records with regions out, and an account of what was refused. A source lists
files of so many images each, whatever they lie in, and reads any one of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from PIL import Image

from granvit.corpus.check import UNKNOWN_SIZE, LeftOut, Rejection
from granvit.corpus.importers.image_folder import LEFT_OUT, listing
from granvit.errors import GranvitError
from granvit.regions import RegionImage

# How the names of captioners begin, by which their texts are known.
CAPTIONER = "captioner:"
# The metadata of a field that names a model; see `AnnotatorConfig`.
MODEL = {"model": True}


@dataclass
class Item:
    """One image on its way through the annotators.

    Attributes:
        record: the image and the regions found so far.
        picture: the decoded, upright RGB picture, so that it is decoded once for all annotators.
        rejections: what was refused on the way: boxes, texts, answers.
        kind: "natural" or "text" once it was routed, "" before.
        changes: what is kept, but was not taken as it came, like a page that lies upside down.
    """

    record: RegionImage
    picture: Image.Image
    rejections: list[Rejection] = field(default_factory=list)
    kind: str = ""
    changes: Counter[str] = field(default_factory=Counter)

    def refuse(self, reason: str, detail: str = "", region: int | None = None) -> None:
        """Note that something of this image was refused; `region` is an index into the regions as they were."""
        self.rejections.append(Rejection(reason, self.record.id, self.record.uri, region, detail))


class Annotator(Protocol):
    """A model ready to annotate; made once per worker by its config and then called with batches.

    It returns one item per item, in order. What it cannot do it refuses with a reason, item by item; an exception is
    a bug or a broken installation, and stops the run.
    """

    def __call__(self, items: Sequence[Item]) -> list[Item]: ...


class AnnotatorConfig(Protocol):
    """The typed settings of an annotator: plain data, so that they travel to workers and into the manifest.

    A field with the metadata ``{"runtime": True}`` changes how annotation is done and not what comes out: it may differ
    when a run goes on. One with `MODEL` names a model, which may be a folder: what that holds is noted too, so that
    other weights in the same place are other settings. A config may have a property `uses_gpu`; without it, it is
    taken to use one.
    """

    @property
    def name(self) -> str:
        """Who annotates, as written into `Region.box_by` and `Region.text_by`, e.g. "rapidocr:PP-OCRv6-small"."""
        ...

    def build(self, device: str = "cpu") -> Annotator:
        """Load the model.

        Raises:
            AnnotateError: the package, the model or the endpoint is not there.
        """
        ...


class AnnotateError(GranvitError):
    """An annotator that cannot work at all; the message says what is missing and how to get it."""


_Thing = TypeVar("_Thing")
_Made = TypeVar("_Made")


def each_or_error(
    model: Callable[[Sequence[_Thing]], Sequence[_Made]], things: Sequence[_Thing], plain: _Thing
) -> list[_Made | Exception]:
    """What a model makes of each thing, or the exception that this thing alone brings about.

    Libraries have pictures that they cannot scale, cut or divide into patches, each its own; that is the picture's
    fault where a plain one passes. One such picture is to cost itself, neither its batch nor the run.

    Raises:
        Exception: `plain` fails as well, or memory is used up: a bug or the installation, as the exception says.
    """
    try:
        return list(model(things))
    except (AnnotateError, OSError):
        raise
    except Exception as error:
        if "out of memory" in str(error).lower():
            raise
        if len(things) > 1:
            return [made for thing in things for made in each_or_error(model, [thing], plain)]
        model([plain])
        return [error]


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


class ImageSource(Protocol):
    """Images to annotate; plain data, so that it travels to workers, which open the files themselves."""

    def files(self) -> Iterator[Listed]:
        """The files in order; in place of one that cannot be read, why; and what else is there and not read."""
        ...

    def identify(self, file: str, index: int) -> RegionImage:
        """What is known of one image without looking at its picture: id and URI, and what a corpus holds of it."""
        ...

    def read(self, file: str, index: int) -> RegionImage:
        """One image, its regions as they are to be before annotation.

        Raises:
            Refused: it cannot be read.
        """
        ...


def other_files(root: Path, read: tuple[str, ...]) -> Iterator[LeftOut]:
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
