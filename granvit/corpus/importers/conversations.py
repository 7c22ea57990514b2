"""Conversations as instruction sets write them: what the importers of several layouts share.

Roles go by several names, a turn's text stands under "value" or "content", and a picture is a file named beside the
turns and an `<image>` in one of them, or a part of a turn. Here all become turns of plain text; where the picture was
shown is checked, and not kept: a record's picture is shown before the first question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from granvit.corpus.check import UNKNOWN_SIZE, LeftOut, Refused, Rejection, UnreadConversation, shown
from granvit.corpus.importers.base import Found, as_split, as_text, read_image
from granvit.regions import Conversation, RegionImage, Role, Turn

PLACE = "<image>"
_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
}
# What one entry says stands under the first of these that it has.
TURNS = ("conversations", "messages")
PICTURES = ("image", "images")
OTHER_MEDIA = ("video", "videos", "audio", "audios")


def picture_in(entry: dict[str, Any]) -> Any:
    """What an entry has as its one picture, None where it has none.

    Raises:
        Refused: "several-images", or "other-media" for a video or a recording.
    """
    if media := next((name for name in OTHER_MEDIA if entry.get(name)), None):
        raise Refused("other-media", f"{media}: {shown(entry[media])}")
    found = [entry[name] for name in PICTURES if entry.get(name) not in (None, "", [])]
    pictures = [picture for value in found for picture in (value if isinstance(value, list) else [value])]
    if len(pictures) > 1:
        raise Refused("several-images", f"{len(pictures)} pictures in one entry, a record has one")
    return pictures[0] if pictures else None


def conversation_in(entry: dict[str, Any], pictured: bool) -> Conversation:
    """The conversation of an entry, of a list of turns under one of `TURNS`; in its place one that the gate refuses.

    An entry's "system" becomes the first turn.
    """
    try:
        stated = [entry[name] for name in TURNS if entry.get(name) is not None]
        turns = next((turns for turns in stated if turns != []), stated[0] if stated else None)
        if not isinstance(turns, list):
            raise Refused("missing-field", f"{' or '.join(TURNS)} should be a list, got {shown(turns)}")
        system = entry.get("system")
        first = [Turn("system", as_text(system))] if system not in (None, "") else []
        return first + read_turns(turns, pictured)
    except Refused as refused:
        return UnreadConversation(refused)


def beside(entry: dict[str, Any], names: Sequence[str], where: str) -> Iterator[LeftOut]:
    """The fields of these `names` that go unread since an earlier one says something already."""
    stated = [name for name in names if entry.get(name) not in (None, "", [])]
    yield from (LeftOut(f"field {name!r} beside {stated[0]!r}", 1, where) for name in stated[1:])


def read_turns(turns: list[Any], pictured: bool) -> Conversation:
    """Turns of {"from", "value"} or {"role", "content"}; a content is a text or a list of parts, as OpenAI's are.

    Raises:
        Refused: "bad-turns" for a role that there is not, "bad-field" for a text that is none, "image-token" where
            the picture is shown more than once, after the first question, or is not there.
    """
    said: Conversation = []
    shown_in: list[int] = []
    for number, turn in enumerate(turns):
        turn = turn if isinstance(turn, dict) else {}
        name, value = (next((turn[k] for k in keys if turn.get(k) is not None), None) for keys in _FIELDS)
        role = _ROLES.get(name.strip().lower()) if isinstance(name, str) else None
        if role is None:
            raise Refused("bad-turns", f"turn {number}: the role is {shown(name)}")
        text, pictures = _content(value, number)
        shown_in += [number] * pictures
        said.append(Turn(role, text))
    asked = next((number for number, turn in enumerate(said) if turn.role == "user"), None)
    if len(shown_in) > pictured or any(number != asked for number in shown_in):
        where = ", ".join(str(number) for number in shown_in[:20])
        there = "one picture" if pictured else "no picture"
        raise Refused("image-token", f"{there} in the entry, and the turns that show one are {where}")
    return said


_FIELDS = (("from", "role"), ("value", "content"))


def _content(value: Any, number: int) -> tuple[str, int]:
    """A turn's text without marks of pictures, and how many there were."""
    if isinstance(value, str):
        return _without_marks(value)
    if not isinstance(value, list):
        raise Refused("bad-field", f"turn {number}: the text is {shown(value)}")
    texts, pictures = [], 0
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])  # here an `<image>` is a text
        elif kind in ("image", "image_url"):
            pictures += 1
        else:
            raise Refused("bad-field", f"turn {number}: a part of it is {shown(part)}")
    return "".join(texts).strip(), pictures


def _without_marks(text: str) -> tuple[str, int]:
    """A text without its `<image>`, of which one stands alone or with a line of its own."""
    count = text.count(PLACE)
    if count == 1:
        before, after = text.split(PLACE)
        text = "\n".join(part for part in (before.strip(), after.strip()) if part)
    return text.strip(), count


def cauldron_turns(texts: Any, pictured: bool) -> Conversation:
    """Turns of a list of {"user", "assistant"}, which the_cauldron has under "texts"."""
    try:
        if not isinstance(texts, list) or not all(isinstance(pair, dict) for pair in texts):
            raise Refused("bad-field", f"texts should be a list of user and assistant, got {shown(texts)}")
        turns = [{"role": role, "content": pair.get(role)} for pair in texts for role in ("user", "assistant")]
        return read_turns(turns, pictured)
    except Refused as refused:
        return UnreadConversation(refused)


CONVERSATION_FIELDS = frozenset({"conversations", "qa"})


def conversations_of(row: dict[str, Any], ask: Callable[[str], str] | None = None) -> list[Conversation]:
    """The conversations of a row of this project's exchange format: "conversations", and the questions of "qa".

    "conversations" is a list of lists of {"role", "content"}; "qa" one of {"question", "answer"}, each a conversation
    of its own, whose question goes through `ask`. One that cannot be read is one that the gate refuses.
    """
    found: list[Conversation] = []
    for name in ("conversations", "qa"):
        if not isinstance(row.get(name), list | None):
            found.append(UnreadConversation(Refused("bad-field", f"{name} should be a list, got {shown(row[name])}")))
    stated = row.get("conversations")
    for turns in stated if isinstance(stated, list) else []:
        found.append(_plain_turns(turns))
    asked = row.get("qa")
    for pair in asked if isinstance(asked, list) else []:
        found.append(_pair(pair, ask))
    return found


def _plain_turns(turns: Any) -> Conversation:
    said: Conversation = []
    for number, turn in enumerate(turns if isinstance(turns, list) else [turns]):
        content = turn.get("content") if isinstance(turn, dict) else None
        if not isinstance(content, str):
            return UnreadConversation(Refused("bad-field", f"turn {number}: the text is {shown(content)}"))
        said.append(Turn(turn.get("role"), content))
    return said


def _pair(pair: Any, ask: Callable[[str], str] | None) -> Conversation:
    question, answer = (as_text(pair.get(k)) if isinstance(pair, dict) else "" for k in ("question", "answer"))
    if not question.strip() or not answer.strip():
        return UnreadConversation(Refused("empty-turn", f"a question and its answer are {shown(pair)}"))
    return [Turn("user", ask(question) if ask else question), Turn("assistant", answer)]


def entry_of(entry: Any) -> tuple[dict[str, Any], str | None]:
    """An entry of a JSON file with the path of its one picture, None where it has none.

    Raises:
        Refused: it is none, or as `picture_in`, or "bad-field" for a picture that is no path.
    """
    if isinstance(entry, Refused):
        raise entry
    if not isinstance(entry, dict):
        raise Refused("missing-field", f"an entry is {shown(entry)}")
    name = picture_in(entry)
    if name is not None and not isinstance(name, str):
        raise Refused("bad-field", f"image should be one path, got {shown(name)}")
    return entry, name


def pictured_record(
    root: Path, name: str, conversations: list[Conversation], source: str, licence: str, split: str
) -> Found:
    """A record of conversations about the picture `name` in the folder `root`, or why its picture cannot be read."""
    try:
        data = read_image(root, name)
    except Refused as refused:
        many = len(conversations)
        return Rejection(refused.reason, f"{source}/{name}", name, None, refused.detail, conversations=many)
    return RegionImage(
        id=f"{source}/{name}",
        image=data,
        width=UNKNOWN_SIZE[0],
        height=UNKNOWN_SIZE[1],
        regions=[],
        uri=name,
        source=source,
        licence=licence,
        split=as_split(split),
        conversations=conversations,
    )


def text_record(id: str, conversation: Conversation, source: str, licence: str, split: str) -> RegionImage:
    """A record of one conversation about no picture."""
    return RegionImage(
        id=id,
        image=None,
        width=0,
        height=0,
        regions=[],
        source=source,
        licence=licence,
        split=as_split(split),
        conversations=[conversation],
    )
