"""What importers share: the registry, and careful readers for files and values that strangers wrote."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Protocol, TypeVar

import numpy as np

from granvit import images
from granvit.corpus.layout import CorpusError
from granvit.corpus.quarantine import Refused, Rejection
from granvit.geometry import View
from granvit.regions import RegionImage

Box = tuple[float, float, float, float]


class Importer(Protocol):
    """A function that reads one public layout.

    Its docstring states the layout, how boxes are written there, and the terms of the data. It takes the place
    and, by keyword, what the layout leaves open; every importer takes `source` (the data set's name, also the
    first part of every id) and `licence`. It yields records with the regions as they are written, and a
    `Rejection` for what cannot even be made into a record: the checks themselves are `check_record`'s.
    """

    def __call__(self, src: Path, **options: Any) -> Iterator[RegionImage | Rejection]: ...


IMPORTERS: dict[str, Importer] = {}

_Reader = TypeVar("_Reader", bound=Callable[..., Iterator[RegionImage | Rejection]])


def importer(name: str) -> Callable[[_Reader], _Reader]:
    """Enter the decorated function into `IMPORTERS`."""

    def register(reader: _Reader) -> _Reader:
        IMPORTERS[name] = reader
        return reader

    return register


def get_importer(name: str, options: dict[str, Any]) -> Importer:
    """The importer of that name, which must know every one of `options`.

    Raises:
        CorpusError: there is none, or it has no such option.
    """
    if name not in IMPORTERS:
        raise CorpusError(f"unknown importer {name!r}: use one of {', '.join(sorted(IMPORTERS))}")
    known = inspect.signature(IMPORTERS[name]).parameters.keys() - {"src"}
    if unknown := options.keys() - known:
        raise CorpusError(f"the importer {name!r} has no option {min(unknown)!r}; it has {', '.join(sorted(known))}")
    return IMPORTERS[name]


def read_image(root: Path, relative: str) -> bytes:
    """The file `relative` of the folder `root`. The name comes from the data, so it must not lead out of it.

    Raises:
        Refused: "path-outside" or "missing-image".
    """
    path = PurePosixPath(relative)
    if path.is_absolute() or PureWindowsPath(relative).drive or ".." in path.parts or "\\" in relative:
        raise Refused("path-outside", f"{relative!r} is not a path below {root.name}")
    try:
        file = root / path
        # Anything else, such as a named pipe, could block for ever.
        if not file.is_file():
            raise Refused("missing-image", f"no file {relative!r} in {root.name}")
        return file.read_bytes()
    except (OSError, ValueError) as error:
        raise Refused("missing-image", f"{relative!r}: {error}") from error


def read_json(file: Path) -> Any:
    """What a JSON file holds.

    Raises:
        CorpusError: it is missing, cut off, or no JSON.
    """
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:  # ValueError: also bytes that are no UTF-8
        raise CorpusError(f"{file}: {error}") from error


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object that `data` holds.

    Raises:
        Refused: "not-json".
    """
    try:
        row = json.loads(data)
    except (ValueError, RecursionError) as error:  # ValueError: also bytes that are no UTF-8
        raise Refused("not-json", str(error)) from error
    if not isinstance(row, dict):
        raise Refused("not-json", f"an object is expected, got {type(row).__name__}")
    return row


def size_of(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels of an upright picture: for layouts whose boxes are shares of it.

    Raises:
        Refused: the header cannot be read.
    """
    try:
        return images.probe(data)
    except images.ImageError as error:
        raise Refused(error.reason, error.detail) from error


def from_canvas(box: Box, view: View) -> Box:
    """A box on the canvas of `view` in pixels of the image, not clipped: what lies outside is for the gate to judge."""
    x1, y1, x2, y2 = view.to_image(box)[0].tolist()
    return x1, y1, x2, y2


def as_number(value: Any) -> float:
    """A number as float; anything else gives NaN, which `check_record` refuses."""
    try:
        return math.nan if value is None or isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def as_box(value: Any) -> Box:
    """Four numbers; anything else gives NaNs, which `check_record` refuses."""
    values = value if isinstance(value, list | tuple) and len(value) == 4 else [None] * 4
    x1, y1, x2, y2 = map(as_number, values)
    return x1, y1, x2, y2


def as_sides(value: Any) -> Box:
    """x, y, width and height as the box that they span; anything else gives NaNs, as with `as_box`."""
    x, y, width, height = as_box(value)
    return x, y, x + width, y + height


def as_id(value: Any) -> int | float | str | None:
    """A number or a string, by which tables refer to each other; anything else, such as a list, gives None."""
    return value if isinstance(value, int | float | str) else None


def as_polygon(value: Any) -> list[float] | None:
    """x, y, x, y, ... of flat or paired numbers; what is neither becomes a polygon that `check_record` drops."""
    if not value:
        return None
    try:
        return np.asarray(value, dtype=np.float64).ravel().tolist()
    except (TypeError, ValueError):
        return [math.nan]


def as_text(value: Any) -> str:
    """A string, or a number as one; anything else gives "", which `check_record` refuses."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def as_split(value: Any) -> str:
    """The split's name in this project's spelling; one that has none passes unchanged, and is then refused."""
    name = as_text(value).lower()
    spellings = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"}
    return spellings.get(name, name)
