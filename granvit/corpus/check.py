"""What may enter a corpus, a written account of what may not, and proof that a stored corpus is what it says.

`check_record` is the one gate: importers let every record through it, and `verify` holds stored records against
it again. A bad region is set aside and its image stays; an image that cannot be trusted is set aside whole: it is
quarantined with its reason.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from granvit import geometry, images
from granvit.corpus.layout import MANIFEST, SHARDS, CorpusError, check_schema, read_manifest
from granvit.files import open_regular, sha256
from granvit.regions import SPLITS, UNWANTED, Conversation, Kind, Region, RegionImage, Turn, order_problem

MAX_TEXT = 2_000
# Descriptions of a picture have some hundred words; what is longer is a document that got into the field.
MAX_CAPTION = 100_000
# All turns together; books and logs that got into the field are longer.
MAX_CONVERSATION = 100_000
# Far above any picture of `images.MAX_PIXELS`, and below the two gigabytes that a column of the store holds at once.
MAX_IMAGE_BYTES = 1 << 30
MIN_BOX_SIDE = 1.0
UNKNOWN_SIZE = (0, 0)
_KINDS = get_args(Kind)

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = 100


@dataclass(frozen=True)
class Rejection:
    """Something that did not enter the corpus.

    Attributes:
        reason: short and machine-readable; counted by the summary.
        id: the record's id, "" where it had none yet.
        uri: where it came from, e.g. "images/3.jpg" or "annotations.jsonl:12".
        region: the region's index within its image, None when the whole image is meant, or a conversation.
        detail: for a reader.
        regions: how many regions went with a whole image.
        conversation: the conversation's index within its record, None when none is meant.
        conversations: how many conversations went with a whole record.
    """

    reason: str
    id: str = ""
    uri: str = ""
    region: int | None = None
    detail: str = ""
    regions: int = 0
    conversation: int | None = None
    conversations: int = 0

    @property
    def whole(self) -> bool:
        """Whether a whole image is meant, not a part of one that may be there."""
        return self.region is None and self.conversation is None


@dataclass(frozen=True)
class LeftOut:
    """What a data set states and a record has no place for: counted by what it is, and named.

    Attributes:
        what: of one of them, as the summary is to name it: "keypoints", "line of a split list without a picture".
        count: how many.
        detail: for a reader, such as where the first one is.
    """

    what: str
    count: int = 1
    detail: str = ""


@dataclass
class Unread(Region):
    """In place of a region that could not be read: `check_record` refuses it, and tells why."""

    reason: str = ""
    detail: str = ""


class Refused(Exception):
    """Raised where something turns out to be unusable, and turned into a `Rejection` where it is known what.

    `regions` is how many regions are known to go with it, where whoever turns it into one cannot tell.
    """

    def __init__(self, reason: str, detail: str, regions: int = 0) -> None:
        super().__init__(reason, detail, regions)
        self.reason, self.detail, self.regions = reason, detail, regions


class UnreadConversation(Conversation):
    """In place of a conversation that could not be read: `check_record` refuses it, and tells why."""

    def __init__(self, refused: Refused) -> None:
        super().__init__()
        self.refused = refused


@dataclass
class Checked:
    """What the gate made of a record.

    Attributes:
        record: the record as it may be stored, None if it was refused whole.
        rejections: what was refused: the whole record, or some of its regions and conversations.
        changes: what was kept but altered: "clipped" boxes, "cleaned" texts, "polygon-dropped",
            "alternative-dropped" and "caption-dropped" details.
    """

    record: RegionImage | None
    rejections: list[Rejection] = field(default_factory=list)
    changes: Counter[str] = field(default_factory=Counter)


def check_record(record: RegionImage, decoded: tuple[int, int] | None = None) -> Checked:
    """Decode the image once and check the record and every region against it, and the conversations; the input is not
    modified.

    `decoded` is the upright picture's (width, height) in pixels where it is decoded already.

    A record of size `UNKNOWN_SIZE` gets the decoded size; any other size must equal the decoded one, for a
    record made for another picture has wrong boxes. Partly visible boxes are clipped to the image.
    """
    checked = Checked(None)
    try:
        width, height = _checked_size(record, decoded)
    except Refused as refused:
        checked.rejections.append(whole_rejection(record, refused.reason, refused.detail))
        return checked
    usable = len(record.caption or "") <= MAX_CAPTION
    caption = _clean(record.caption or "", checked.changes) or None if usable else None
    if caption is None and (record.caption or "").strip():
        checked.changes["caption-dropped"] += 1
    regions = []
    for index, region in enumerate(record.regions):
        try:
            regions.append(_checked_region(region, width, height, checked.changes))
        except Refused as refused:
            checked.rejections.append(Rejection(refused.reason, record.id, record.uri, index, refused.detail))
    conversations = []
    for index, conversation in enumerate(record.conversations):
        try:
            conversations.append(_checked_conversation(conversation, checked.changes))
        except Refused as refused:
            rejection = Rejection(refused.reason, record.id, record.uri, detail=refused.detail, conversation=index)
            checked.rejections.append(rejection)
    checked.record = replace(
        record, width=width, height=height, caption=caption, regions=regions, conversations=conversations
    )
    if record.text_only and not conversations:  # nothing is left of it
        reasons = {rejection.reason: rejection.detail for rejection in checked.rejections}
        reason, detail = next(iter(reasons.items()), ("no-size", "neither a picture nor a conversation"))
        checked = Checked(None, [whole_rejection(record, reason, detail)])
    return checked


def whole_rejection(record: RegionImage, reason: str, detail: str) -> Rejection:
    """A record that is refused with all that is in it."""
    regions, conversations = len(record.regions), len(record.conversations)
    return Rejection(reason, record.id, record.uri, None, detail, regions, conversations=conversations)


def _checked_size(record: RegionImage, decoded: tuple[int, int] | None) -> tuple[int, int]:
    for name in ("id", "uri", "source", "licence"):
        if UNWANTED.search(getattr(record, name)):
            raise Refused("bad-name", f"{name} is {shown(getattr(record, name))}")
    if not record.id:
        raise Refused("no-id", "the record has no id")
    if record.split not in SPLITS:
        raise Refused("bad-split", f"{shown(record.split)} is none of {SPLITS}")
    if len(record.image or b"") > MAX_IMAGE_BYTES:
        raise Refused(
            "too-large", f"the image file has {len(record.image or b''):,} bytes, the most is {MAX_IMAGE_BYTES:,}"
        )
    declared = (record.width, record.height)
    if record.text_only and record.conversations:
        if record.regions or record.caption:
            raise Refused("missing-image", "regions or a caption, but no picture")
        return declared
    if record.image is None:
        if min(declared) < images.MIN_SIDE or record.width * record.height > images.MAX_PIXELS:
            raise Refused("no-size", f"no image bytes, and the declared size is {record.width}x{record.height}")
        return declared
    try:
        width, height = decoded or images.decode(record.image).size
    except images.ImageError as error:
        raise Refused(error.reason, error.detail) from error
    if declared not in (UNKNOWN_SIZE, (width, height)):
        raise Refused("size-mismatch", f"declared {record.width}x{record.height}, upright image {width}x{height}")
    return width, height


@lru_cache(maxsize=1024)
def _is_unwanted(maker: str) -> bool:
    """Whether a name that is the same in most regions, that of who made them, cannot be stored."""
    return UNWANTED.search(maker) is not None


def _checked_region(region: Region, width: int, height: int, changes: Counter[str]) -> Region:
    if isinstance(region, Unread):
        raise Refused(region.reason, region.detail)
    text = _clean(region.text, changes)
    if not text and not region.ignore:
        raise Refused("empty-text", f"box {shown(region.box)}")
    if len(text) > MAX_TEXT:
        raise Refused("long-text", f"{len(text)} characters: {text[:60]}...")
    if region.kind not in _KINDS:
        raise Refused("bad-kind", f"{shown(region.kind)} is none of {_KINDS}")
    for name, maker in (("box_by", region.box_by), ("text_by", region.text_by)):
        if _is_unwanted(maker):
            raise Refused("bad-name", f"{name} is {shown(maker)}")
    if region.score is not None and not 0 <= region.score <= 1:
        raise Refused("bad-score", f"{shown(region.score)} is not in [0, 1]")
    return replace(
        region,
        box=_checked_box(region, width, height, changes),
        text=text,
        alternatives=_checked_alternatives(region.alternatives, text, changes),
        polygon=_checked_polygon(region.polygon, changes),
    )


def _checked_conversation(conversation: Conversation, changes: Counter[str]) -> Conversation:
    if isinstance(conversation, UnreadConversation):
        raise conversation.refused
    if not conversation:
        raise Refused("empty-conversation", "it has no turns")
    if problem := order_problem([turn.role for turn in conversation]):
        raise Refused("bad-turns", f"{problem}: {', '.join(shown(turn.role) for turn in conversation[:20])}")
    turns = [Turn(turn.role, _clean(turn.text, changes)) for turn in conversation]
    for number, turn in enumerate(turns):
        if not turn.text:
            raise Refused("empty-turn", f"turn {number}, the {turn.role}'s, has no text")
    if (length := sum(len(turn.text) for turn in turns)) > MAX_CONVERSATION:
        raise Refused("long-conversation", f"{length:,} characters: {turns[0].text[:60]}...")
    return turns


def _checked_box(region: Region, width: int, height: int, changes: Counter[str]) -> tuple[float, float, float, float]:
    # In the precision of the store, so that what is judged is what is stored.
    box = _as_stored(region.box)
    if reason := _box_problem(box, width, height):
        raise Refused(reason, f"box {shown(region.box)} in {width}x{height}, text {shown(region.text)}")
    clipped = geometry.clip_box(box, width, height)
    changes["clipped"] += list(clipped) != box
    return clipped


def _box_problem(box: list[float], width: int, height: int) -> str:
    """Why a box cannot be one of a picture of (width, height) pixels; "" where it can."""
    if len(box) != 4 or not all(map(math.isfinite, box)):
        return "bad-box"
    x1, y1, x2, y2 = box
    if x2 < x1 or y2 < y1:
        return "inverted"
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        return "outside"
    left, top, right, bottom = geometry.clip_box(box, width, height)
    return "degenerate" if right - left < MIN_BOX_SIDE or bottom - top < MIN_BOX_SIDE else ""


def _checked_alternatives(texts: list[str], chosen: str, changes: Counter[str]) -> list[str]:
    """The other wordings, each once. Equal ones lose nothing and go uncounted."""
    cleaned = [_clean(text, changes) for text in texts]
    usable = [text for text in cleaned if 0 < len(text) <= MAX_TEXT]
    changes["alternative-dropped"] += len(cleaned) - len(usable)
    return [text for text in dict.fromkeys(usable) if text != chosen]


def _checked_polygon(polygon: list[float] | None, changes: Counter[str]) -> list[float] | None:
    if polygon is None:
        return None
    points = _as_stored(polygon)
    if len(points) >= 6 and len(points) % 2 == 0 and all(map(math.isfinite, points)):
        return points
    changes["polygon-dropped"] += 1
    return None


def _as_stored(values: Any) -> list[float]:
    """Numbers rounded to the float32 of the schema; one that overflows becomes infinite. What are none become a NaN."""
    with np.errstate(over="ignore"):
        try:
            return np.asarray(values, dtype=np.float64).astype(np.float32).ravel().tolist()
        except (OverflowError, TypeError, ValueError):  # a whole number may have any number of digits
            return [math.nan]


def _clean(text: str, changes: Counter[str]) -> str:
    unix = text.replace("\r\n", "\n").replace("\r", "\n")
    cleaned = UNWANTED.sub("", unix)
    changes["cleaned"] += cleaned != unix
    return cleaned.strip()


def shown(value: object) -> str:
    """A value of the data in at most some hundred characters, however long it is or deep it is nested."""
    return _REPR.repr(value)


class Quarantine:
    """The account of rejections: one JSON line each, counted by reason.

    Use as a context manager. Lines are on disk as they come: after a crash they tell how far it got.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.reasons: Counter[str] = Counter()
        self._file: TextIO | None = None

    def __enter__(self) -> Quarantine:
        # A name that is no UTF-8 is written as a JSON escape.
        self._file = self.path.open("w", encoding="utf-8", errors="backslashreplace", buffering=1)
        return self

    def add(self, rejection: Rejection) -> None:
        assert self._file is not None, "Quarantine is used as a context manager"
        row = asdict(rejection)
        absent = {"regions": 0, "conversation": None, "conversations": 0}
        row = {name: value for name, value in row.items() if name not in absent or value != absent[name]}
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.reasons[rejection.reason] += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()


def read_quarantine(path: str | Path) -> list[Rejection]:
    """The rejections that a `Quarantine` wrote to `path`; see `each_rejection`."""
    return list(each_rejection(path))


def each_rejection(path: str | Path) -> Iterator[Rejection]:
    """The rejections that a `Quarantine` wrote to `path`, one at a time.

    Raises:
        CorpusError: a line is no rejection. GranvitError: `path` is no regular file.
    """
    with open_regular(Path(path)) as file:
        for number, line in enumerate(file, start=1):
            try:
                yield _rejection(json.loads(line))
            except (ValueError, TypeError, RecursionError) as error:
                raise CorpusError(f"{path}:{number}: damaged: {error}") from error


def _rejection(row: Any) -> Rejection:
    rejection = Rejection(**row)
    texts = (rejection.reason, rejection.id, rejection.uri, rejection.detail)
    places = [0 if place is None else place for place in (rejection.region, rejection.conversation)]
    numbers = (rejection.regions, rejection.conversations, *places)
    if not all(isinstance(text, str) for text in texts) or any(type(number) is not int for number in numbers):
        raise TypeError("a field is of another type than it should be")
    return rejection


def verify(path: str | Path) -> list[str]:
    """Every problem of the corpus at `path`, one line each; an empty list means there is none.

    Reads everything: checksums, columns and counts of every shard, and for every record whether its image
    decodes to the stated size, its boxes lie inside, its texts are clean, and its id is its own.
    """
    path = Path(path)
    try:
        manifest = read_manifest(path)
    except CorpusError as error:
        return [str(error)]
    problems: list[str] = []
    found: Counter[tuple[str, str]] = Counter()
    ids: set[str] = set()
    for shard in manifest["shards"]:
        problems += _shard_problems(path / shard["name"], shard, found, ids)
    known = {shard["name"] for shard in manifest["shards"]}
    problems += [f"{file}: not in {MANIFEST}" for file in sorted(path.glob(SHARDS)) if file.name not in known]
    problems += _count_problems(path / MANIFEST, manifest, found)
    return problems


def _shard_problems(file: Path, shard: dict[str, Any], found: Counter[tuple[str, str]], ids: set[str]) -> Iterator[str]:
    if not file.exists():
        yield f"{file}: missing"
        return
    if file.stat().st_size != shard["bytes"]:
        yield f"{file}: {file.stat().st_size} bytes, {MANIFEST} says {shard['bytes']}"
    elif sha256(file) != shard["sha256"]:
        yield f"{file}: the checksum differs from {MANIFEST}: the file was altered"
    rows = regions = 0
    try:
        for record in _records(file):
            where = f"{file}: row {rows} ({record.id})"
            yield from (f"{where}: {problem}" for problem in _record_problems(record, ids))
            rows += 1
            regions += len(record.regions)
            _count(record, found)
    except (CorpusError, OSError, pa.ArrowException, ValueError) as error:
        yield f"{file}: unreadable after {rows} rows: {error}"
        return
    if (rows, regions) != (shard["rows"], shard["regions"]):
        yield (f"{file}: {rows} images and {regions} regions, {MANIFEST} says {shard['rows']} and {shard['regions']}")


def _records(file: Path) -> Iterator[RegionImage]:
    with pq.ParquetFile(file) as parquet:
        check_schema(file, parquet.schema_arrow)
        for group in range(parquet.num_row_groups):
            yield from map(RegionImage.from_row, parquet.read_row_group(group, use_threads=False).to_pylist())


def _record_problems(record: RegionImage, ids: set[str]) -> Iterator[str]:
    if record.id in ids:
        yield "duplicate-id"
    ids.add(record.id)
    checked = check_record(record)
    for rejection in checked.rejections:
        part = "" if rejection.region is None else f"region {rejection.region}: "
        part = part if rejection.conversation is None else f"conversation {rejection.conversation}: "
        yield f"{part}{rejection.reason}: {rejection.detail}"
    # A stored record has been through the gate, which leaves what it let through as it is.
    for change, times in (+checked.changes).items():
        yield f"{times} {change} on reading: the record was never checked"


def _count(record: RegionImage, found: Counter[tuple[str, str]]) -> None:
    found["images", ""] += 1
    found["regions", ""] += len(record.regions)
    found["conversations", ""] += len(record.conversations)
    found["images_by_source", record.source] += 1
    found["images_by_split", record.split] += 1
    found.update(("regions_by_kind", region.kind) for region in record.regions)


def _count_problems(file: Path, manifest: dict[str, Any], found: Counter[tuple[str, str]]) -> Iterator[str]:
    stated = {(name, ""): manifest.get(name, 0) for name in ("images", "regions", "conversations")}
    for name in ("images_by_source", "images_by_split", "regions_by_kind"):
        stated.update({(name, key): count for key, count in manifest.get(name, {}).items()})
    for name, key in sorted(stated.keys() | found.keys()):
        if stated.get((name, key), 0) != found[name, key]:
            label = f"{name} of {key!r}" if key else name
            yield f"{file}: {label} is {stated.get((name, key), 0)}, the shards hold {found[name, key]}"
