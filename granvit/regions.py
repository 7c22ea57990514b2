"""The one record type: an image with its regions and conversations. Importers yield it, all else takes it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import pyarrow as pa

from granvit.errors import GranvitError

Kind = Literal["object", "text"]
Role = Literal["system", "user", "assistant"]
# Version 1 had no conversations, and no records without a picture.
SCHEMA_VERSION = 2
READ_VERSIONS = (1, 2)
SPLITS = ("", "train", "val", "test")
# Control characters but tab and newline, and lone surrogates, which no UTF-8 file can hold.
UNWANTED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_KINDS = get_args(Kind)
_ROLES = get_args(Role)
# A region that a cut-out of the image cuts is kept where at least this share of it is seen. Cut text would be a wrong
# transcription.
LEAST_VISIBLE: dict[Kind, float] = {"object": 0.5, "text": 0.97}
# What a tile's id has behind that of its image: place and side, "@x,y,side", of earlier versions "@x,y"; twice for
# tiles of tiles.
_TILE = re.compile(r"(?<=.)(?:@[0-9]+,[0-9]+,[0-9]+)+\Z")
_EARLIER_TILE = re.compile(r"(?<=.)(?:@[0-9]+,[0-9]+(?:,[0-9]+)?)+\Z")


@dataclass
class Region:
    """A box and what it holds.

    Attributes:
        box: (x1, y1, x2, y2) in float pixels of the EXIF-upright image.
        text: the caption of an object, or the transcription of a text region.
        kind: "object" or "text".
        score: the annotator's confidence in [0, 1], None for human annotations.
        box_by: who made the box, e.g. "human", "detector:dfine-l".
        text_by: who made the text.
        alternatives: other texts that are equally right for this box.
        polygon: a finer outline as x, y, x, y, ... in pixels, or None.
        ignore: neither train on it nor score it (unreadable, crowd).
    """

    box: tuple[float, float, float, float]
    text: str
    kind: Kind = "object"
    score: float | None = None
    box_by: str = "human"
    text_by: str = "human"
    alternatives: list[str] = field(default_factory=list)
    polygon: list[float] | None = None
    ignore: bool = False


@dataclass
class Turn:
    """What one side says in a conversation: plain text, whatever it spells. An `<image>` in it is seven letters."""

    role: Role
    text: str


# Turns in order: a "system" turn or none, then "user" and "assistant" by turns, an answer last. Where there is a
# picture, it is shown before the first of the user's turns.
Conversation = list[Turn]


@dataclass
class RegionImage:
    """An image, its regions and conversations about it; or conversations alone, about no image (`text_only`).

    Attributes:
        id: unique within its corpus.
        image: the encoded file (JPEG, PNG, WebP...), or None where only `uri` is known.
        width, height: pixels of the EXIF-upright image.
        uri: where the image came from, relative to the imported folder, or a URL.
        source: the data set's name.
        licence: terms as the source states them.
        caption: one paragraph about the whole image, or None.
        split: "train", "val", "test" or "".
        conversations: each about the image, and by itself.
    """

    id: str
    image: bytes | None
    width: int
    height: int
    regions: list[Region]
    uri: str = ""
    source: str = ""
    licence: str = ""
    caption: str | None = None
    split: str = ""
    conversations: list[Conversation] = field(default_factory=list)

    @property
    def text_only(self) -> bool:
        """Whether it is about no image at all: it has no size, no file and no place of one, only conversations."""
        return self.image is None and not self.uri and self.width == self.height == 0

    @property
    def text_image(self) -> bool:
        """Whether text is all that its regions mark, those to be ignored aside: a page, a receipt."""
        kinds = {region.kind for region in self.regions if not region.ignore}
        return kinds == {"text"}

    def to_row(self) -> dict[str, Any]:
        """The Parquet row, in the layout of `SCHEMA`."""
        return {
            "id": self.id,
            # Null, not an image without bytes, which the `datasets` library would try to open.
            "image": None if self.text_only else {"bytes": self.image, "path": self.uri},
            "width": self.width,
            "height": self.height,
            "source": self.source,
            "licence": self.licence,
            "caption": self.caption,
            "split": self.split,
            "regions": [{**vars(r), "box": [float(v) for v in r.box]} for r in self.regions],
            "conversations": [[vars(turn) for turn in conversation] for conversation in self.conversations],
        }

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> RegionImage:
        """The record of a Parquet row, whose values are such that every consumer may rely on them.

        Whether boxes lie inside the picture, and whether it decodes, is left to `check_record`.

        Raises:
            GranvitError: the row lacks a column of `SCHEMA`, or holds a value that no record may have: an unknown
                split or kind, a name with control characters, a size or box that is none, nothing where something
                must be.
        """
        missing = sorted(set(SCHEMA.names) - row.keys() - ADDED_COLUMNS)
        if missing:
            raise GranvitError(f"row lacks the column(s) {', '.join(missing)}")
        try:
            regions = [
                Region(**{**r, "box": tuple(r["box"]), "alternatives": list(r["alternatives"] or [])})
                for r in row["regions"] or []
            ]
        except TypeError as error:
            raise GranvitError(f"record {row['id']!r}: a region or its box is missing") from error
        try:
            conversations = [[Turn(**turn) for turn in turns] for turns in row.get("conversations") or []]
        except TypeError as error:
            raise GranvitError(f"record {row['id']!r}: a conversation or a turn of it is missing") from error
        image = row["image"] or {"bytes": None, "path": ""}
        rest = {k: row[k] for k in ("id", "width", "height", "source", "licence", "caption", "split")}
        record = cls(
            image=image["bytes"], uri=image["path"] or "", regions=regions, conversations=conversations, **rest
        )
        if problem := _problem(record):
            raise GranvitError(f"record {record.id!r}: {problem}")
        return record


def picture_id(record_id: str, earlier: bool = True) -> str:
    """The id of the picture that a record shows: its own, or if it is a tile's, that of the image that was cut.

    Tiles of a picture are held out together, and drawn again together for an interval.

    Args:
        earlier: whether "@3,4" ends a tile's id too, as in earlier versions. Images can be called so by accident, which
            does no harm to an interval, and where sides are chosen may put many on one.
    """
    return (_EARLIER_TILE if earlier else _TILE).sub("", record_id) if "@" in record_id else record_id


def _problem(record: RegionImage) -> str:
    """What of a record no consumer could cope with, or an empty string. Ten microseconds, so it's done at each read."""
    for name in ("id", "uri", "source", "licence"):
        value = getattr(record, name)
        if value is None or UNWANTED.search(value):
            return f"{name} is {value!r}"
    if not record.id:
        return "id is empty"
    if record.split not in SPLITS:
        return f"split is {record.split!r}, it should be one of {', '.join(map(repr, SPLITS))}"
    if record.text_only:
        if record.regions or record.caption or not record.conversations:
            return "it has no image, so it should have conversations and nothing else"
    elif not (record.width and record.width > 0 and record.height and record.height > 0):
        return f"its size is {record.width}x{record.height}"
    for index, region in enumerate(record.regions):
        if problem := _region_problem(region):
            return f"region {index}: {problem}"
    for index, conversation in enumerate(record.conversations):
        if problem := order_problem([turn.role for turn in conversation]):
            return f"conversation {index}: {problem}"
        if any(not turn.text for turn in conversation):
            return f"conversation {index}: a turn has no text"
    return ""


def order_problem(roles: Sequence[str]) -> str:
    """What is wrong with the order of a conversation's turns, see `Conversation`; an empty string if nothing is."""
    for role in roles:
        if role not in _ROLES:
            return f"a turn's role is {role!r}, it should be one of {', '.join(map(repr, _ROLES))}"
    said = roles[1:] if roles[:1] == ["system"] else roles
    if "assistant" not in said:
        return "no turn is the assistant's"
    if said != [("user", "assistant")[i % 2] for i in range(len(said))]:
        return "user and assistant do not take turns, the user first"
    return "" if said[-1] == "assistant" else "the last turn has no answer"


def without_system(conversation: Conversation) -> Conversation:
    """The same with a system turn's text before the first question, in the user's turn."""
    if conversation[0].role != "system":
        return conversation
    system, first, *rest = conversation
    return [Turn("user", f"{system.text}\n\n{first.text}"), *rest]


def first_round(conversation: Conversation) -> tuple[str, str]:
    """The first question, with a system turn before it, and its answer."""
    question, answer = without_system(conversation)[:2]
    return question.text, answer.text


def _region_problem(region: Region) -> str:
    if not all(v is not None and math.isfinite(v) for v in region.box):
        return f"box is {region.box}"
    if region.kind not in _KINDS:
        return f"kind is {region.kind!r}, it should be one of {', '.join(map(repr, _KINDS))}"
    for name in ("text", "box_by", "text_by", "ignore"):
        if getattr(region, name) is None:
            return f"{name} is missing"
    if region.score is not None and not 0 <= region.score <= 1:
        return f"score is {region.score}"
    if None in region.alternatives:
        return "an alternative text is missing"
    if region.polygon is not None and not all(v is not None and math.isfinite(v) for v in region.polygon):
        return "a coordinate of the polygon is no number"
    return ""


_REGION = pa.struct(
    [
        ("box", pa.list_(pa.float32(), 4)),
        ("text", pa.string()),
        ("kind", pa.string()),
        ("score", pa.float32()),
        ("box_by", pa.string()),
        ("text_by", pa.string()),
        ("alternatives", pa.list_(pa.string())),
        ("polygon", pa.list_(pa.float32())),
        ("ignore", pa.bool_()),
    ]
)

_TURN = pa.struct([("role", pa.string()), ("text", pa.string())])

# The "huggingface" entry makes `datasets` and its viewers show the image column as pictures.
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("source", pa.string()),
        ("licence", pa.string()),
        ("caption", pa.string()),
        ("split", pa.string()),
        ("regions", pa.list_(_REGION)),
        ("conversations", pa.list_(pa.list_(_TURN))),
    ],
    metadata={"granvit_schema": str(SCHEMA_VERSION)},
)
# The columns that version 1 did not have.
ADDED_COLUMNS = frozenset({"conversations"})


def schema_with_viewer_features() -> pa.Schema:
    """`SCHEMA` with the metadata by which the `datasets` library knows the image column."""
    plain = {"dtype": "string", "_type": "Value"}

    def value(dtype: str) -> dict[str, str]:
        return {**plain, "dtype": dtype}

    def listed(feature: dict[str, Any], length: int = -1) -> dict[str, Any]:
        return {"feature": feature, "length": length, "_type": "List"}

    region = {
        "box": listed(value("float32"), 4),
        "text": plain,
        "kind": plain,
        "score": value("float32"),
        "box_by": plain,
        "text_by": plain,
        "alternatives": listed(plain),
        "polygon": listed(value("float32")),
        "ignore": value("bool"),
    }
    features = {
        "id": plain,
        "image": {"_type": "Image"},
        "width": value("int32"),
        "height": value("int32"),
        "source": plain,
        "licence": plain,
        "caption": plain,
        "split": plain,
        "regions": listed(region),
        "conversations": listed(listed({"role": plain, "text": plain})),
    }
    info = json.dumps({"info": {"features": features}})
    return SCHEMA.with_metadata({**SCHEMA.metadata, b"huggingface": info.encode()})
