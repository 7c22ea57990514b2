"""The XML of PASCAL VOC, in which other data sets state their boxes too."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml.ElementTree import fromstring  # type: ignore[import-untyped]

from granvit.corpus.importers.base import NO_BOX, Box
from granvit.corpus.importers.textlines import numbers
from granvit.corpus.quarantine import UNKNOWN_SIZE, Refused


def read_xml(file: Path) -> Element:
    """The root of an XML file that declares no document type, and so no entities to expand or files to fetch.

    Raises:
        Refused: "bad-xml".
    """
    try:
        return fromstring(file.read_bytes(), forbid_dtd=True)
    # ValueError: what defusedxml forbids; LookupError: an encoding that nobody knows.
    except (ParseError, OSError, ValueError, LookupError) as error:
        raise Refused("bad-xml", f"{file.name}: {error}") from error


def size_of(root: Element) -> tuple[int, int]:
    """(width, height) in pixels that an annotation states; unknown where it states none."""
    stated = numbers([root.findtext(f"size/{name}") or "" for name in ("width", "height")])
    return (int(stated[0]), int(stated[1])) if stated and all(map(float.is_integer, stated)) else UNKNOWN_SIZE


def box_of(element: Element) -> Box:
    """The ``bndbox`` of an object. Its pixels count from 1, the last ones included; NaNs where it is damaged."""
    written = numbers([element.findtext(f"bndbox/{name}") or "" for name in ("xmin", "ymin", "xmax", "ymax")])
    return (written[0] - 1, written[1] - 1, written[2], written[3]) if written else NO_BOX
