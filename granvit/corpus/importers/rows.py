"""Tables that data sets are published as, row by row: Parquet, JSON lines and JSON lists."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from granvit.corpus.check import Refused
from granvit.corpus.importers import parquet_rows
from granvit.corpus.importers.base import MAX_FILE_BYTES, MAX_TABLE_BYTES, decode_text, parse_object
from granvit.corpus.layout import CorpusError
from granvit.errors import GranvitError
from granvit.files import open_regular, read_regular
from granvit.links import LinkOutsideError

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".json")

# A picture's annotations have some kB; a table's row may hold the picture itself, in Parquet.
MAX_LINE_BYTES = MAX_FILE_BYTES
_SPACE = re.compile(r"[ \t\r\n]*")


def read_rows(file: Path) -> Iterator[Any]:
    """The rows of a table by its suffix, one of `SUFFIXES`, as parsed; what each should hold is the caller's to check.

    In place of a row stands a `Refused`, see `json_lines` and `parquet_rows.read_rows`.

    Raises:
        CorpusError: a JSON file that is no list or is cut off.
    """
    name = file.name.lower()
    if name.endswith(".parquet"):
        return parquet_rows.read_rows(file)
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
