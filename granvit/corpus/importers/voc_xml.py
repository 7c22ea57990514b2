"""The XML of PASCAL VOC, in which other data sets state their boxes too."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml.ElementTree import fromstring  # type: ignore[import-untyped]

from granvit.corpus.check import UNKNOWN_SIZE, Refused
from granvit.corpus.importers.base import MAX_FILE_BYTES, Box, is_text_encoding
from granvit.errors import GranvitError
from granvit.files import read_regular

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
        told = str(error) if isinstance(error, GranvitError) else f"{file.name}: {error}"
        raise Refused("bad-xml", told) from error


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
