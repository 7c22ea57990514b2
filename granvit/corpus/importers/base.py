"""What importers share: the registry, and careful readers for untrusted files and values."""

from __future__ import annotations

import codecs
import inspect
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Set
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from granvit import image_limits, images
from granvit.corpus.check import UNKNOWN_SIZE, LeftOut, Refused, Rejection, Unread, shown
from granvit.corpus.layout import CorpusError
from granvit.errors import GranvitError, flag
from granvit.files import is_inside, read_regular
from granvit.geometry import View
from granvit.links import LinkOutsideError
from granvit.regions import Region, RegionImage

Box = tuple[float, float, float, float]
NO_BOX: Box = (math.nan, math.nan, math.nan, math.nan)

# What an importer comes across.
Found = RegionImage | Rejection | LeftOut

# A table is held in memory as a whole; Objects365's, the largest that is published, has several GB. The annotations of
# one picture are a few kB.
MAX_TABLE_BYTES = 8 << 30
MAX_FILE_BYTES = 16 << 20
# So many names of one category or object are kept. Each of its regions holds them all, so that a list without end would
# be worth its square; LVIS has about a dozen.
MAX_NAMES = 100

# So many pictures are looked for in a folder, since some may be absent.
_PROBED = 100

_WHOLE = re.compile(r"(-?(?:0|[1-9][0-9]{0,30}))(?:\.0*)?")
_NO_TEXT = ("idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined")
_FLAGS = {"": False, "0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}


class Importer(Protocol):
    """A function that reads one public layout.

    Its docstring states the layout, how boxes are written there, and the terms of the data. It takes the place
    and, by keyword, what the layout leaves open; every importer takes `source` (the data set's name, also the
    first part of every id) and `licence`; `encoding`, where it reads text files, names theirs, "" being UTF-8. It
    yields records with the regions as they are written, a `Rejection` for what cannot even be made into a record, and
    a `LeftOut` for what the layout holds and a record does not: the checks themselves are `check_record`'s.
    """

    def __call__(self, src: Path, **options: Any) -> Iterator[Found]: ...


IMPORTERS: dict[str, Importer] = {}

_Reader = TypeVar("_Reader", bound=Callable[..., Iterator[Found]])
_Entry = TypeVar("_Entry")


# Layouts that also serve pictures without a region. In the others, a data set without one has not been understood.
WITHOUT_REGIONS: set[str] = set()


def importer(name: str, *, without_regions: bool = False) -> Callable[[_Reader], _Reader]:
    """Enter the decorated function into `IMPORTERS`, and into `WITHOUT_REGIONS` if that is said."""

    def register(reader: _Reader) -> _Reader:
        IMPORTERS[name] = reader
        if without_regions:
            WITHOUT_REGIONS.add(name)
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
        takes = ", ".join(flag(option) for option in sorted(known))
        raise CorpusError(f"the layout {name!r} does not take {flag(min(unknown))}; it takes {takes}")
    return IMPORTERS[name]


def read_image(root: Path, relative: str) -> bytes:
    """The file `relative` of the folder `root`. The name comes from the data, so it must not lead out of it.

    Raises:
        Refused: "path-outside", "link-outside", "missing-image" or "too-costly".
    """
    if relative and "\0" not in relative and not is_inside(relative):
        raise Refused("path-outside", f"{relative!r} is not a path below {root.name}")
    file = root / relative
    try:
        return read_regular(file, image_limits.MAX_BYTES)
    except LinkOutsideError as error:
        raise Refused("link-outside", str(error)) from error
    except GranvitError as error:
        raise Refused("too-costly" if file.is_file() else "missing-image", f"{relative!r}: {error}") from error
    except (OSError, ValueError) as error:
        raise Refused("missing-image", f"{relative!r}: {getattr(error, 'strerror', None) or error}") from error


def picture_root(images: Path | None, base: Path, folders: Iterable[str], names: Iterable[str]) -> Path:
    """The folder of the pictures: `images`, or the first of `folders` below `base` that has any of the first ones.

    Raises:
        GranvitError: none has one.
    """
    some = list(islice(dict.fromkeys(names), _PROBED))
    places = [images] if images else [base / folder for folder in folders]
    for place in places:
        if any((place / name).is_file() for name in some):
            return place
    searched = ", ".join(str(place) for place in places)
    raise GranvitError(f"no picture {some[0]!r} in {searched}; name the pictures' folder with --images")


def read_json(
    file: Path,
    encoding: str = "",
    limit: int = MAX_TABLE_BYTES,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """What a JSON file of at most `limit` bytes holds; it is UTF-8, -16 or -32, or in a named encoding.

    `pairs` makes something else of an object's names and values than a dict.

    Raises:
        CorpusError: it is missing, no regular file, too large, cut off, or no JSON.
    """
    try:
        data = read_regular(file, limit)
        return parse_json(decode_text(data, encoding) if encoding else data, pairs)
    except OSError as error:
        raise CorpusError(f"{file}: {error.strerror}") from error
    except GranvitError as error:  # it names the file already
        raise CorpusError(str(error)) from error
    except UnicodeError as error:
        raise CorpusError(f"{file} is not {encoding or 'UTF-8'}: name its encoding ({error!s:.100})") from error
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{file}: {error}") from error


def parse_json(data: bytes | str, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """`json.loads` that takes numbers of any length: as floats where they are longer than Python reads integers.

    Raises:
        ValueError: no JSON, or bytes that are no UTF-8. RecursionError: nested too deep.
    """
    try:
        return json.loads(data, object_pairs_hook=pairs)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError:
        # Python reads integers of up to 4,300 digits.
        return json.loads(
            data,
            object_pairs_hook=pairs,
            parse_int=lambda digits: int(digits) if len(digits) < 1000 else float(digits),
        )


def parse_object(data: bytes | str) -> dict[str, Any]:
    """The JSON object that `data` holds, in which no key is there twice: which of the two is meant is unknown.

    Raises:
        Refused: "not-json".
    """
    repeated: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(stated := dict(pairs)) < len(pairs):
            repeated.append(Counter(key for key, _ in pairs).most_common(1)[0][0])
        return stated

    try:
        row = parse_json(data, once)
    except (ValueError, RecursionError) as error:  # ValueError: also bytes that are no UTF-8
        raise Refused("not-json", str(error)) from error
    if not isinstance(row, dict):
        raise Refused("not-json", f"an object is expected, got {type(row).__name__}")
    if repeated:
        regions = row.get("regions")
        count = len(regions) if isinstance(regions, list) else 0
        raise Refused("not-json", f"the key {shown(repeated[0])} is there twice", count)
    return row


def decode_text(data: bytes, encoding: str = "") -> str:
    """The text of a file: UTF-8 where it begins with UTF-8's mark or no encoding is named, else in the named one.

    Nothing is guessed: in a wrong encoding most bytes are some text too, and would become it in the corpus.

    Raises:
        UnicodeError: the bytes are no such text.
    """
    return data.decode("utf-8-sig" if not encoding or data.startswith(b"\xef\xbb\xbf") else encoding)


def read_text(file: Path, encoding: str = "", limit: int = MAX_FILE_BYTES) -> str:
    """The text of a file of at most `limit` bytes, see `decode_text`.

    Raises:
        Refused: "bad-encoding", "link-outside", or "unreadable-file": missing, no regular file, or too large.
    """
    try:
        return decode_text(read_regular(file, limit), encoding)
    except UnicodeError as error:
        hint = "name another one" if encoding else "name its encoding"
        raise Refused("bad-encoding", f"{file.name} is not {encoding or 'UTF-8'}: {hint} ({error!s:.100})") from error
    except LinkOutsideError as error:
        raise Refused("link-outside", str(error)) from error
    except (GranvitError, OSError) as error:
        raise Refused("unreadable-file", f"{file.name}: {getattr(error, 'strerror', None) or error}") from error


def check_encoding(name: str) -> None:
    """Whether a text encoding of this name is known.

    Raises:
        CorpusError: it is not.
    """
    if not is_text_encoding(name):
        raise CorpusError(f"encoding {name!r} is not known; it is one such as gb18030, cp1251, shift_jis or latin-1")


def is_text_encoding(name: str) -> bool:
    """Whether a name is that of an encoding that text files are written in: not of what codes bytes or host names."""
    try:
        return codecs.lookup(name).name not in _NO_TEXT and b"text".decode(name, "replace") != ""
    except (LookupError, ValueError):  # ValueError: a name with a null character
        return False


@contextmanager
def refusal_is_fatal(file: Path) -> Iterator[None]:
    """What is read here concerns all pictures: what would refuse one of them ends the import.

    Raises:
        CorpusError: in place of `Refused`, with the file's whole path.
    """
    try:
        yield
    except Refused as refused:
        raise CorpusError(f"{file}: {refused.reason}: {refused.detail}") from refused


def read_regions(entries: Iterable[_Entry], read: Callable[[_Entry], Region]) -> list[Region]:
    """The region that `read` makes of each entry; where it raises `Refused`, one that the gate refuses with that."""
    regions: list[Region] = []
    for entry in entries:
        try:
            regions.append(read(entry))
        except Refused as refused:
            regions.append(Unread(NO_BOX, "", reason=refused.reason, detail=refused.detail))
    return regions


def require_own_id(entry: dict[str, Any], name: str, ambiguous: Set[Hashable], done: set[Hashable]) -> None:
    """Enter the id of an entry, its field `name`, into those that are done.

    Raises:
        Refused: "ambiguous-id" for one of those, "duplicate-id" where the same entry was done before.
    """
    key = as_id(entry.get(name))
    if key in ambiguous:
        raise Refused("ambiguous-id", f"several have the {name} {shown(entry[name])}")
    if key is not None and key in done:
        raise Refused("duplicate-id", f"the {name} {shown(entry[name])} is there again")
    done.add(key)


def size_of(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels of an upright picture: for layouts whose boxes are shares of it.

    Raises:
        Refused: the header cannot be read.
    """
    try:
        return images.upright_size(data)
    except images.ImageError as error:
        raise Refused(error.reason, error.detail) from error


def from_canvas(box: Box, view: View) -> Box:
    """A box on the canvas of `view` in pixels of the image, not clipped: what lies outside is for the gate to judge."""
    x1, y1, x2, y2 = view.to_image(box)[0].tolist()
    return x1, y1, x2, y2


def as_number(value: Any) -> float:
    """A number as float; anything else, such as a string or true, gives NaN, which `check_record` refuses."""
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
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


def stated_sides(value: Any) -> Box:
    """x, y, width and height as the box that they span.

    Raises:
        Refused: "bad-box" for anything else than four numbers, and says what.
    """
    box = as_sides(value)
    if any(map(math.isnan, box)):
        raise Refused("bad-box", f"four numbers are expected, got {shown(value)}")
    return box


def as_id(value: Any) -> int | str | None:
    """What tables refer to each other by, compared by value: 7, 7.0, "7" and "7.0" are one id. "007" is another one.

    None for what is no number or string, and for NaN.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return (int(value) if value.is_integer() else str(value)) if math.isfinite(value) else None
    whole = _WHOLE.fullmatch(value.strip())
    return int(whole[1]) if whole else value.strip()


def ambiguous_ids(entries: Iterable[tuple[Hashable, Any]]) -> set[Hashable]:
    """The ids, of pairs of id and entry, that several entries have; one that is merely repeated as it is has it alone.

    What refers to such an id could mean any of them. None is no id.
    """
    first: dict[Hashable, Any] = {}
    return {key for key, entry in entries if key is not None and _differ(first.setdefault(key, entry), entry)}


def _differ(one: Any, other: Any) -> bool:
    try:
        return one != other
    except RecursionError:  # nested nearly as deep as what JSON is read of at all
        return True


def as_size(width: Any, height: Any) -> tuple[int, int]:
    """A stated size in pixels: whole numbers, also as 640.0 or "640".

    `UNKNOWN_SIZE` where one of the two is absent, null, NaN, 0 or negative: the picture's own size then counts.

    Raises:
        Refused: "bad-field" for what is no whole number.
    """
    sides = _side("width", width), _side("height", height)
    return sides if min(sides) > 0 else UNKNOWN_SIZE


def _side(name: str, value: Any) -> int:
    if _absent(value):
        return 0
    number = as_id(value)
    if not isinstance(number, int):
        raise Refused("bad-field", f"{name} should be a whole number of pixels, got {shown(value)}")
    return number


def as_flag(name: str, value: Any) -> bool:
    """Yes or no: true, false, 1, 0, or one of these or yes or no in a string; an absent one is no.

    Raises:
        Refused: "bad-field" for anything else: which of the two is meant is unknown.
    """
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    spelled = value.strip().lower() if isinstance(value, str) else None
    if spelled not in _FLAGS:
        raise Refused("bad-field", f"{name} should be true or false, got {shown(value)}")
    return _FLAGS[spelled]


def as_polygon(value: Any) -> list[float] | None:
    """x, y, x, y, ... of flat or paired numbers; what is neither becomes a polygon that `check_record` drops."""
    if not value:
        return None
    try:
        return np.asarray(value, dtype=np.float64).ravel().tolist()
    except (TypeError, ValueError, OverflowError):
        return [math.nan]


def as_text(value: Any) -> str:
    """A string, or a number as one; anything else, NaN among it, gives "", which `check_record` refuses."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    return str(value) if math.isfinite(as_number(value)) else ""


def as_caption(value: Any) -> str | None:
    """A picture's caption, None where there is none; what is no text becomes one that `check_record` drops."""
    return None if _absent(value) else as_text(value) or "\0"


def as_split(value: Any) -> str:
    """The split's name in this project's spelling, "" where none is stated; any other passes and is then refused."""
    if _absent(value):
        return ""
    if not isinstance(value, str):
        return shown(value)
    name = value.strip().lower()
    spellings = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"}
    return spellings.get(name, name)


def _absent(value: Any) -> bool:
    """Whether a field states nothing. Tables that pandas wrote have NaN there."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))
