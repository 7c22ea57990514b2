"""What every annotator is: records in, records with regions out, and an account of what was refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from PIL import Image

from granvit.corpus.check import Rejection
from granvit.errors import GranvitError
from granvit.regions import RegionImage

# How the names of captioners begin, by which their texts are known.
CAPTIONER = "captioner:"


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
    when a run goes on. A config may have a property `uses_gpu`; without it, it is taken to use one.
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


def each_or_why(
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
            return [made for thing in things for made in each_or_why(model, [thing], plain)]
        model([plain])
        return [error]
