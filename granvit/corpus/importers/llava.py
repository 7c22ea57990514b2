"""Instruction data as JSON: LLaVA's, where some turns ask about a box or answer with one, and ShareGPT's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from granvit.coordinates import Codec, get_codec
from granvit.corpus.check import LeftOut, Refused, Rejection, UnreadConversation, shown
from granvit.corpus.importers.base import NO_BOX, Found, as_split, from_canvas, importer, read_image, read_json, size_of
from granvit.corpus.importers.conversations import (
    OTHER_MEDIA,
    PICTURES,
    TURNS,
    beside,
    conversation_in,
    entry_of,
    pictured_record,
    text_record,
)
from granvit.corpus.importers.jsonl import json_lines
from granvit.corpus.layout import CorpusError
from granvit.geometry import Frame, View
from granvit.questions import GLOBAL
from granvit.regions import Conversation, Region, RegionImage, order_problem

# What the exporter says of an entry that holds a record's conversation: what looks like a box in it is not a region.
MARK, CONVERSATION = "granvit", "conversation"

# What may be meant as a box: four numbers in brackets, or location tokens. Fewer numbers are a citation, say.
_NUMBER = r"\s*[+-]?[\d.]+\s*"
_BOX = re.compile(rf"\[{_NUMBER}(?:,{_NUMBER}){{3}}\]|<loc\d+>(?:\s*<loc\d+>)*")


@importer("llava", without_regions=True)
def read(
    src: Path,
    *,
    frame: Frame | None = None,
    coordinates: str = "decimal",
    images: Path | None = None,
    source: str = "llava",
    licence: str = "",
    split: str = "train",
) -> Iterator[Found]:
    """`src` is a JSON list, or JSON lines, of ``{"id", "image", "conversations": [{"from", "value"}, ...]}``.

    ``from`` is human and gpt by turns, system first where there is one; ``image`` is a path, or a list of one, relative
    to `images`, by default the folder of `src`. What is said of one picture in several entries becomes one record with
    as many conversations; an entry without a picture becomes a record of a conversation alone. What is refused, and
    ShareGPT's other names of the fields: see the importer sharegpt.

    Boxes become regions. A question for what is in a box, answered in words, gives a region with the answer as its
    text. It is one if, beside its one box, it has nothing but words of such a request: "Please provide a short
    description for this region:", "What is in", "Read the text in", or no word at all. With any other word, as in
    "What colour is" or "How many people", or with "Is" or "Does" in front, it asks for something else. An answer that
    is one box gives a region with the phrase asked for as its text, which is what follows the question's colon. The
    same box and text give one region. The answer to this project's question for a caption becomes the caption. A
    conversation that holds nothing else is not kept beside them: training asks these questions itself. Every other
    conversation is kept whole, its boxes the text that they are; they give regions too, and those that belong to no
    one phrase are refused as "empty-text", boxes that can't be read as "bad-box". Entries that the exporter marks as
    conversations give no regions. Other fields are counted and not read. All regions become objects: the layout
    doesn't tell transcriptions from captions.

    Boxes: text, written as `coordinates` says (see `granvit.coordinates`). What they are relative to is nowhere written
    down, so where there are some, `frame` must say it: "image" (0 to 1 of width and height) or "canvas" (of the picture
    padded to a centred square, as in LLaVA-1.5's own mixture). Terms: LLaVA's data is CC BY-NC 4.0 and bound to
    OpenAI's terms; the pictures have terms of their own.

    Raises:
        CorpusError: there are boxes and `frame` is not given, unknown coordinates, or no such file.
    """
    if frame not in (None, *get_args(Frame)):
        raise CorpusError(f'llava: frame is "image" or "canvas" (padded square), not {frame!r}')
    try:
        codec = get_codec(coordinates)
    except ValueError as error:
        raise CorpusError(f"llava: {error}") from error
    said_of: dict[str, _Said] = {}
    for index, stated in enumerate(entries(src)):
        where = f"{src.name}:{index}"
        try:
            entry, name = entry_of(stated)
        except Refused as refused:
            yield Rejection(refused.reason, "", where, None, refused.detail, conversations=1)
            continue
        yield from _unread(entry, where)
        conversation = conversation_in(entry, name is not None)
        if name is None:
            yield text_record(f"{source}/{where}", conversation, source, licence, split)
        else:
            said_of.setdefault(name, _Said()).add(conversation, entry.get(MARK) == CONVERSATION, codec)
    for name, said in said_of.items():
        captions = [answer for question, answer in said.turns if question == GLOBAL]
        boxes = {spoken for question, answer in said.turns for spoken in _boxes_of(question, answer, codec)}
        count = len(boxes)
        if frame is None and any(codec.decode(written) for written, _ in boxes):
            raise CorpusError(
                f'llava: {name}: say what the boxes are relative to, with frame "image" or "canvas" (padded square)'
            )
        yield LeftOut("further captions of a picture", max(0, len(captions) - 1), name)
        try:
            data = read_image(images or src.parent, name)
            width, height = size = size_of(data)
            view = View.letterbox(size, 1) if frame == "canvas" else View.squash(size, 1)
            yield RegionImage(
                id=f"{source}/{name}",
                image=data,
                width=width,
                height=height,
                regions=_regions(said.turns, codec, view),
                uri=name,
                source=source,
                licence=licence,
                caption=next(iter(captions), None),
                split=as_split(split),
                conversations=said.kept,
            )
        except Refused as refused:
            many = len(said.kept)
            yield Rejection(refused.reason, f"{source}/{name}", name, None, refused.detail, count, conversations=many)


@dataclass
class _Said:
    """What is said of one picture: conversations to keep, and questions with answers that may hold boxes."""

    kept: list[Conversation] = field(default_factory=list)
    turns: list[tuple[str, str]] = field(default_factory=list)

    def add(self, conversation: Conversation, whole: bool, codec: Codec) -> None:
        said = [turn for turn in conversation if turn.role != "system"]
        # Where they are out of order, the gate refuses the conversation.
        ordered = not isinstance(conversation, UnreadConversation) and not order_problem([t.role for t in conversation])
        pairs = (
            [(q.text.strip(), a.text.strip()) for q, a in zip(said[::2], said[1::2], strict=False)] if ordered else []
        )
        if whole or not pairs:
            self.kept.append(conversation)
            return
        self.turns += pairs
        if len(said) < len(conversation) or not all(_is_understood(*pair, codec) for pair in pairs):
            self.kept.append(conversation)


def _is_understood(question: str, answer: str, codec: Codec) -> bool:
    """Whether a caption, or a region with its text, holds all that is said."""
    if question == GLOBAL:
        return True
    spoken = list(_boxes_of(question, answer, codec))
    return len(spoken) == 1 and bool(spoken[0][1]) and codec.decode(spoken[0][0]) is not None


def _regions(turns: list[tuple[str, str]], codec: Codec, view: View) -> list[Region]:
    regions: dict[tuple[Any, ...], Region] = {}
    for question, answer in turns:
        for written, text in _boxes_of(question, answer, codec):
            box = codec.decode(written)
            region = Region(NO_BOX, f"{text} {written}") if box is None else Region(from_canvas(box, view), text)
            regions.setdefault((written, text), region)
    return list(regions.values())


def _boxes_of(question: str, answer: str, codec: Codec) -> Iterator[tuple[str, str]]:
    """Boxes as they are written, with the text that each of them is said to hold; "" where that is not known."""
    asked, mentioned = _BOX.findall(question), _BOX.findall(answer)
    # Within a sentence a box that cannot be read is rather something else, unless nothing else is there.
    certain = [written for written in asked if codec.decode(written)]
    mentioned = [written for written in mentioned if codec.decode(written)]
    if _BOX.fullmatch(answer) and not certain:
        yield answer, question.partition(":")[2].strip()
    elif len(certain or asked) == 1 and not mentioned and _asks_for_content(question):
        yield (certain or asked)[0], answer
    else:
        yield from ((written, "") for written in (certain or asked) + mentioned)


# What a request for the content of a box names, and the words that may stand around it.
_REQUESTS = frozenset("describe description caption read transcribe transcription what".split())
_AROUND = frozenset(
    """
    a an and area are at be bounding box brief by can concise contained contains content contents coordinate coordinates
    could defined depicted detailed display displayed displays do does following for generate give given go here how i
    image in indicated inside into is it located marked me more no normalized object objects of one part phrase photo
    picture please provide provided region regions s say says section see seen sentence short show shown shows single
    specific specified tell text than that the there these this to unique us visible will with within word words would
    write written you your
    """.split()
)
_YES_OR_NO = ("is", "are", "do", "does")


def _asks_for_content(question: str) -> bool:
    """Whether a question with a box in it asks for what is in the box, as the importer's docstring has it."""
    words = re.findall(r"[^\W_]+", _BOX.sub(" ", question).casefold())
    if not words:
        return True
    others = set(words) - _REQUESTS
    # Of numbers, as in "no more than 10 words".
    plain = all(word in _AROUND or word.isdecimal() for word in others)
    return plain and len(others) < len(set(words)) and words[0] not in _YES_OR_NO


def entries(file: Path) -> Iterator[Any]:
    """The entries of a JSON list or of JSON lines; in place of a line that is none, a `Refused`.

    Raises:
        CorpusError: the file is missing, or no list.
    """
    if file.suffix != ".jsonl":
        data = read_json(file)
        if not isinstance(data, list):
            raise CorpusError(f"{file}: a list of conversations is expected")
        yield from data
        return
    if not file.is_file():
        raise CorpusError(f"{file} is missing")
    yield from (row for _, row in json_lines(file))


_KNOWN = {*TURNS, *PICTURES, *OTHER_MEDIA, "system", "id", MARK}


def _unread(entry: dict[str, Any], where: str) -> Iterator[LeftOut]:
    yield from (LeftOut(f"field {shown(key)}", 1, where) for key in entry if key not in _KNOWN)
    yield from beside(entry, TURNS, where)


@importer("sharegpt", without_regions=True)
def read_sharegpt(
    src: Path,
    *,
    images: Path | None = None,
    source: str = "sharegpt",
    licence: str = "",
    split: str = "train",
) -> Iterator[Found]:
    """`src` is a JSON list, or JSON lines, of entries with ``"messages": [{"role", "content"}, ...]``.

    Or ``"conversations": [{"from", "value"}, ...]``; roles are system, user or human, and assistant or gpt; a content
    is a text or a list of OpenAI's parts. "image" or "images" names the picture, or a list of one, relative to
    `images`, by default the folder of `src`; an entry without one is a record of a conversation alone. What is said of
    one picture in several entries becomes one record with as many conversations. An entry's "system" is its first turn;
    other fields are counted and not read.

    Refused, each with its reason: roles out of order, no answer ("bad-turns"), a turn without text ("empty-turn"), an
    `<image>` more than once, or not in the first question ("image-token"), several pictures ("several-images"), more
    than 100,000 characters ("long-conversation"), a video or recording ("other-media").

    Boxes: none are read; what looks like one is text (the importer llava makes regions of them). Terms: the set's own;
    state them with `licence`.

    Raises:
        CorpusError: no such file, or no list.
    """
    said_of: dict[str, list[Conversation]] = {}
    for index, stated in enumerate(entries(src)):
        where = f"{src.name}:{index}"
        try:
            entry, name = entry_of(stated)
        except Refused as refused:
            yield Rejection(refused.reason, "", where, None, refused.detail, conversations=1)
            continue
        yield from _unread(entry, where)
        conversation = conversation_in(entry, name is not None)
        if name is None:
            yield text_record(f"{source}/{where}", conversation, source, licence, split)
        else:
            said_of.setdefault(name, []).append(conversation)
    for name, said in said_of.items():
        yield pictured_record(images or src.parent, name, said, source, licence, split)
