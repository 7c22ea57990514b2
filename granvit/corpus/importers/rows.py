"""Tables that data sets are published as, row by row: Parquet, JSON lines and JSON lists."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from granvit.corpus.importers import parquet_rows
from granvit.corpus.layout import CorpusError
from granvit.corpus.quarantine import Refused

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".json")

_SPACE = re.compile(r"[ \t\r\n]*")


def read_rows(file: Path) -> Iterator[Any]:
    """The rows of a table by its suffix, one of `SUFFIXES`, as parsed; what each should hold is the caller's to check.

    In place of a row stands a `Refused`: "not-json" for a line that is none, and, as the last one, "damaged-file"
    where a Parquet or compressed file cannot be read on.

    Raises:
        CorpusError: a JSON file that is no list or is cut off.
    """
    name = file.name.lower()
    if name.endswith(".parquet"):
        return parquet_rows.read_rows(file)
    return _array(file) if name.endswith(".json") else _lines(file)


def _lines(file: Path) -> Iterator[Any]:
    try:
        with gzip.open(file) if file.name.lower().endswith(".gz") else file.open("rb") as lines:
            for line in filter(bytes.strip, lines):
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:  # ValueError: also bytes that are no UTF-8
                    row = Refused("not-json", str(error))
                yield row
    except (OSError, EOFError, zlib.error) as error:
        yield Refused("damaged-file", f"{file.name}: {error}")


def _array(file: Path) -> Iterator[Any]:
    """The entries of a list, each parsed when it is asked for: as objects, a whole file takes many times its size."""
    decoder = json.JSONDecoder()
    try:
        text = file.read_bytes().decode("utf-8-sig")
        at = _skip(text, _behind(text, "[", 0))
        if text[at] == "]":
            return
        while text[at - 1] != "]":
            row, at = decoder.raw_decode(text, _skip(text, at))
            yield row
            at = _behind(text, ",]", at)
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
