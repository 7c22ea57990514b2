"""LLaVA's instruction data: conversations about pictures, some of which ask about a box or answer with one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from granvit.coordinates import Codec, get_codec
from granvit.corpus.check import LeftOut, Refused, Rejection, shown
from granvit.corpus.importers.base import (
    NO_BOX,
    Found,
    as_split,
    as_text,
    from_canvas,
    importer,
    read_image,
    read_json,
    size_of,
)
from granvit.corpus.importers.jsonl import json_lines
from granvit.corpus.layout import CorpusError
from granvit.geometry import Frame, View
from granvit.questions import GLOBAL
from granvit.regions import Region, RegionImage

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

    ``from`` is human and gpt by turns; ``image`` is relative to `images`, by default the folder of `src`. What is
    said of one picture in several entries becomes one record. Entries without a picture are counted; one of several
    pictures is refused as "several-images". A question
    with one box in it, answered in words, gives a region with the answer as its text. An answer that is one box gives a
    region with the phrase asked for as its text, which is what follows the question's colon. The same box and text
    give one region. The answer to this project's question for a caption becomes the caption. Other turns are no
    regions, and counted; those with boxes that belong to no one phrase are refused as "empty-text", boxes that can't be
    read as "bad-box". All regions become objects: the layout doesn't tell transcriptions from captions.

    Boxes: text, written as `coordinates` says (see `granvit.coordinates`). What they are relative to is nowhere written
    down, so `frame` must say it: "image" (0 to 1 of width and height) or "canvas" (of the picture padded to a centred
    square, as in LLaVA-1.5's own mixture). Terms: LLaVA's data is CC BY-NC 4.0 and bound to OpenAI's terms; the
    pictures have terms of their own.

    Raises:
        CorpusError: `frame` is not given, unknown coordinates, or no such file.
    """
    if frame not in get_args(Frame):
        raise CorpusError('llava: say what the boxes are relative to, with frame "image" or "canvas" (padded square)')
    try:
        codec = get_codec(coordinates)
    except ValueError as error:
        raise CorpusError(f"llava: {error}") from error
    turns_of: dict[str, list[tuple[str, str]]] = {}
    for index, entry in enumerate(_entries(src)):
        if isinstance(entry, dict) and "conversations" in entry and entry.get("image") in (None, "", []):
            yield LeftOut("entries without a picture", 1, f"{src.name}:{index}")
            continue
        try:
            name, turns = _turns(entry)
            turns_of.setdefault(name, []).extend(turns)
        except Refused as refused:
            yield Rejection(refused.reason, "", f"{src.name}:{index}", None, refused.detail)
    for name, turns in turns_of.items():
        captions = [answer for question, answer in turns if question == GLOBAL]
        without_box = sum(
            question != GLOBAL and not any(_boxes_of(question, answer, codec)) for question, answer in turns
        )
        count = len({box for question, answer in turns for box in _boxes_of(question, answer, codec)})
        yield LeftOut("turns of a conversation without a box", without_box, name)
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
                regions=_regions(turns, codec, view),
                uri=name,
                source=source,
                licence=licence,
                caption=next(iter(captions), None),
                split=as_split(split),
            )
        except Refused as refused:
            yield Rejection(refused.reason, f"{source}/{name}", name, None, refused.detail, count)


def _entries(file: Path) -> Iterator[Any]:
    if file.suffix != ".jsonl":
        data = read_json(file)
        if not isinstance(data, list):
            raise CorpusError(f"{file}: not in LLaVA's layout: a list of conversations is expected")
        yield from data
        return
    if not file.is_file():
        raise CorpusError(f"{file} is missing")
    yield from (row for _, row in json_lines(file))


def _turns(entry: Any) -> tuple[str, list[tuple[str, str]]]:
    """The picture's name and the questions with their answers."""
    if isinstance(entry, Refused):
        raise entry
    if not isinstance(entry, dict) or not isinstance(entry.get("conversations"), list):
        raise Refused("missing-field", "conversations should be a list")
    image = entry.get("image")
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    if isinstance(image, list):
        raise Refused("several-images", f"{len(image)} pictures in one entry, a record has one")
    if not isinstance(image, str):
        raise Refused("bad-field", f"image should be one path, got {shown(entry.get('image'))}")
    said = [turn if isinstance(turn, dict) else {} for turn in entry["conversations"]]
    pairs = list(zip(said[::2], said[1::2], strict=False))
    if len(said) % 2 or any((q.get("from"), a.get("from")) != ("human", "gpt") for q, a in pairs):
        raise Refused("bad-field", "conversations should be turns of human and gpt")
    values = [(as_text(question.get("value")), as_text(answer.get("value"))) for question, answer in pairs]
    return image, [(question.replace("<image>", "").strip(), answer.strip()) for question, answer in values]


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
    elif len(certain or asked) == 1 and not mentioned:
        yield (certain or asked)[0], answer
    else:
        yield from ((written, "") for written in asked + mentioned)
