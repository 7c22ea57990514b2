"""Images with regions as JSON lines, this project's plain exchange format, and tables row by row.

Tables are what data sets are published as: Parquet, JSON lines and JSON lists.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from granvit.corpus.check import LeftOut, Refused, Rejection, shown
from granvit.corpus.importers import parquet
from granvit.corpus.importers.base import (
    MAX_FILE_BYTES,
    MAX_TABLE_BYTES,
    Found,
    as_box,
    as_caption,
    as_flag,
    as_number,
    as_polygon,
    as_size,
    as_split,
    as_text,
    decode_text,
    importer,
    parse_object,
    read_image,
    read_regions,
)
from granvit.corpus.importers.conversations import CONVERSATION_FIELDS, conversations_of
from granvit.corpus.layout import CorpusError
from granvit.errors import GranvitError
from granvit.files import open_regular, read_regular
from granvit.links import LinkOutsideError
from granvit.questions import ask_short
from granvit.regions import Conversation, Region, RegionImage

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".json")

# A picture's annotations have some kB; a table's row may hold the picture itself, in Parquet.
MAX_LINE_BYTES = MAX_FILE_BYTES
_SPACE = re.compile(r"[ \t\r\n]*")


def read_rows(file: Path) -> Iterator[Any]:
    """The rows of a table by its suffix, one of `SUFFIXES`, as parsed; what each should hold is the caller's to check.

    In place of a row stands a `Refused`, see `json_lines` and `parquet.read_rows`.

    Raises:
        CorpusError: a JSON file that is no list or is cut off.
    """
    name = file.name.lower()
    if name.endswith(".parquet"):
        return parquet.read_rows(file)
    return _array(file) if name.endswith(".json") else (row for _, row in json_lines(file))


def json_lines(file: Path, encoding: str = "") -> Iterator[tuple[int, dict[str, Any] | Refused]]:
    """The objects of a file of JSON lines, compressed by gzip or not, each with its line's number from 1.

    In place of an object stands a `Refused`: "not-json" for a line that is none or has a key twice, "too-large" for one
    beyond `MAX_LINE_BYTES`, "bad-encoding", and, as the last one, "damaged-file" or "link-outside" where the file
    cannot be read on.
    """
    try:
        with open_regular(file) as raw:
            lines: IO[bytes] = gzip.GzipFile(fileobj=raw) if file.name.lower().endswith(".gz") else raw  # type: ignore[assignment]
            number = 0
            while line := lines.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    yield number, Refused("too-large", f"a line of more than {MAX_LINE_BYTES} bytes")
                    while line and not line.endswith(b"\n"):
                        line = lines.readline(MAX_LINE_BYTES)
                elif line.strip():
                    yield number, _object(line, encoding)
    except LinkOutsideError as error:
        yield 0, Refused("link-outside", str(error))
    except (GranvitError, OSError, EOFError, zlib.error) as error:
        yield 0, Refused("damaged-file", f"{file.name}: {error}")


def _object(line: bytes, encoding: str) -> dict[str, Any] | Refused:
    try:
        # As text: of bytes, JSON's parser would read those lines as UTF-16 that happen to be cut at whole characters.
        return parse_object(decode_text(line, encoding))
    except Refused as refused:
        return refused
    except UnicodeError as error:
        return Refused("bad-encoding" if encoding else "not-json", f"not {encoding or 'UTF-8'}: {error!s:.100}")


def _array(file: Path) -> Iterator[Any]:
    """The entries of a list, each parsed when it is asked for: as objects, a whole file takes many times its size."""
    decoder = json.JSONDecoder()
    try:
        text = decode_text(read_regular(file, MAX_TABLE_BYTES))
        at = _skip(text, _behind(text, "[", 0))
        if text[at] == "]":
            return
        while text[at - 1] != "]":
            row, at = decoder.raw_decode(text, _skip(text, at))
            yield row
            at = _behind(text, ",]", at)
    except LinkOutsideError as error:
        raise CorpusError(str(error)) from error
    except (OSError, ValueError, RecursionError, IndexError) as error:
        raise CorpusError(f"{file}: a list in JSON is expected: {error}") from error


def _behind(text: str, marks: str, at: int) -> int:
    """The position behind one of `marks`, which must come next after `at`."""
    at = _skip(text, at)
    if text[at] not in marks:
        raise ValueError(f"none of {marks!r} at character {at}")
    return at + 1


def _skip(text: str, at: int) -> int:
    blank = _SPACE.match(text, at)
    assert blank, "it matches the empty string too"
    return blank.end()


ANNOTATIONS = "annotations.jsonl"
# docs/corpus.md says of each field what it is; tests hold the two together.
REQUIRED = ("image", "regions")
LINE_FIELDS = CONVERSATION_FIELDS | {*REQUIRED, "width", "height", "id", "source", "split", "licence", "caption"}
REGION_FIELDS = frozenset(
    ("bbox", "text", "caption", "kind", "score", "box_by", "text_by", "captions", "polygon", "ignore")
)


@importer("jsonl", without_regions=True)
def read(
    src: Path, *, short_answers: bool = False, source: str = "", licence: str = "", encoding: str = ""
) -> Iterator[Found]:
    """`src` is a folder with annotations.jsonl, or such a file; image paths are relative to it.

    One JSON object per line: ``{"image", "regions": [...]}``, optional "width", "height", "source", "split", "licence",
    "caption", "conversations", "qa". A conversation is a list of ``{"role", "content"}``, of user and assistant by
    turns; "qa" is a list of ``{"question", "answer"}``, each a conversation of its own, asked for a short answer where
    `short_answers` is on. A line without a picture is a record of its conversations. A region: ``{"bbox": [x1, y1, x2,
    y2], "caption" or "text"}``, optional "kind" ("object" or "text"; by default "text" where there is a "text"),
    "captions" (all that are right, kept as alternatives), "polygon", "ignore", "score", "box_by", "text_by". Other keys
    are counted as left out, and so is a "caption" beside a "text". Where a size is absent, null, 0 or -1 the picture's
    own counts. A value of another type than its field's costs its region, or its picture, as "bad-field". Lines that
    are not UTF-8 are in `encoding`.

    Boxes: absolute pixels of the upright image, right and bottom edges exclusive. Terms: the pack's own; state
    them with `licence`.

    Raises:
        CorpusError: there is no such file.
    """
    file = src / ANNOTATIONS if src.is_dir() else src
    if not file.is_file():
        raise CorpusError(f"{file} is missing")
    for number, row in json_lines(file, encoding):
        count, said = 0, list[Conversation]()
        try:
            if isinstance(row, Refused):
                count = row.regions
                raise row
            count = len(row["regions"]) if isinstance(row.get("regions"), list) else 0
            if row.keys() & CONVERSATION_FIELDS:
                said = conversations_of(row, ask_short if short_answers else None)
            yield _record(row, said, f"{file.name}:{number}", file.parent, source, licence)
            yield from left_out_of(row, f"{file.name}:{number}")
        except Refused as refused:
            where, many = f"{file.name}:{number}", len(said)
            detail = f"line {number}: {refused.detail}"
            yield Rejection(refused.reason, "", where, None, detail, count, conversations=many)


def _record(
    row: dict[str, Any], said: list[Conversation], where: str, root: Path, source: str, licence: str
) -> RegionImage:
    if said and row.get("image") is None:
        return text_only(row, said, where, source or _name(row, "source") or root.resolve().name, licence)
    if missing := [name for name in REQUIRED if name not in row]:
        raise Refused("missing-field", ", ".join(missing))
    for name, kind in {"image": str, "regions": list}.items():
        if not isinstance(row[name], kind):
            raise Refused("bad-field", f"{name} should be {kind.__name__}, got {shown(row[name])}")
    width, height = as_size(row.get("width"), row.get("height"))
    source = source or _name(row, "source") or root.resolve().name
    return RegionImage(
        id=f"{source}/{row['image']}",
        image=read_image(root, row["image"]),
        width=width,
        height=height,
        regions=read_regions(row["regions"], region_of),
        uri=row["image"],
        source=source,
        licence=licence or _name(row, "licence"),
        caption=as_caption(row.get("caption")),
        split=as_split(row.get("split")),
        conversations=said,
    )


def text_only(row: dict[str, Any], said: list[Conversation], where: str, source: str, licence: str) -> RegionImage:
    """The record of a row without a picture.

    Raises:
        Refused: "missing-image" where it states what only a picture has.
    """
    if row.get("regions") or row.get("caption"):
        raise Refused("missing-image", "regions or a caption, but no picture")
    return RegionImage(
        id=as_text(row.get("id")) or f"{source}/{where}",
        image=None,
        width=0,
        height=0,
        regions=[],
        source=source,
        licence=licence or _name(row, "licence"),
        split=as_split(row.get("split")),
        conversations=said,
    )


def region_of(row: Any) -> Region:
    """The region of an entry of "regions"; where a number or text is missing or odd, one that `check_record` refuses.

    Raises:
        Refused: "bad-field" for another field of another type than it should be.
    """
    row = row if isinstance(row, dict) else {}
    captions = row.get("captions")
    if captions is not None and not isinstance(captions, list):
        raise Refused("bad-field", f"captions should be a list, got {shown(captions)}")
    return Region(
        box=as_box(row.get("bbox")),
        text=as_text(row.get("text")) or as_text(row.get("caption")),
        kind=row.get("kind", "text" if "text" in row else "object"),
        score=None if row.get("score") is None else as_number(row["score"]),
        box_by=_name(row, "box_by") or "human",
        text_by=_name(row, "text_by") or "human",
        alternatives=[as_text(c) for c in captions or []],
        polygon=as_polygon(row.get("polygon")),
        ignore=as_flag("ignore", row.get("ignore")),
    )


def left_out_of(row: dict[str, Any], where: str) -> Iterator[LeftOut]:
    """What a line states, and its regions, that is not read; `row` has passed as a record."""
    found = Counter(f"field {shown(name)}" for name in row.keys() - LINE_FIELDS)
    for region in row.get("regions") or ():
        if isinstance(region, dict):
            found.update(f"field {shown(name)} of a region" for name in region.keys() - REGION_FIELDS)
            found["caption beside the text of a region"] += bool(region.get("text") and region.get("caption"))
    yield from (LeftOut(what, count, where) for what, count in found.items() if count)


def _name(row: dict[str, Any], field: str) -> str:
    value = row.get(field)
    if value is not None and not isinstance(value, str):
        raise Refused("bad-field", f"{field} should be a string, got {shown(value)}")
    return value or ""
