"""LLaVA's instruction format: the paper's three questions (section 3.2) as conversations, and those there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

from granvit.coordinates import Codec, get_codec
from granvit.corpus.exporters.base import ExportSummary, JsonRows, exporter, part_of, save_picture
from granvit.corpus.importers.conversations import PLACE
from granvit.corpus.importers.llava import CONVERSATION, MARK
from granvit.corpus.layout import CorpusError
from granvit.geometry import Frame, View
from granvit.questions import Exchange, box_exchange, caption_exchange, global_exchange
from granvit.regions import Conversation, Region, RegionImage, Role

_PICTURES = "images"
_SPEAKERS: dict[Role, str] = {"system": "system", "user": "human", "assistant": "gpt"}


@exporter("llava", text_only=True, keeps=())
def write(
    records: Iterable[RegionImage],
    out: Path,
    *,
    coordinates: str = "decimal",
    frame: Frame = "image",
    questions_per_conversation: int = 10,
) -> ExportSummary:
    """``train.json`` and the like, lists of ``{"id", "image", "conversations"}``, and ``images/00000001.jpg``.

    One list per split, "all" for images without one; the image paths are relative to `out`. An image gives a
    conversation with the question for its caption, and others of at most `questions_per_conversation` questions for
    captions of regions (Bbox2Caption) or for boxes (Caption2Bbox): never both in one, where the earlier answer would
    give the later one away. A phrase that several regions of an image share is not asked for: it has no one box.
    Ignored regions are left out, and those that are too small for the coordinates to tell their edges apart. The
    conversations of a record follow, each an entry of its own, marked ``"granvit": "conversation"``, by which the
    importer tells them from regions; where there is no picture, the entry has no "image". Trainers show the picture
    wherever ``<image>`` stands, so what says it is left out.

    Boxes: text as `coordinates` says, see `granvit.coordinates`; relative to the image, or, where `frame` is
    "canvas", to the image padded to a centred square. The paper's are decimal, of the image.

    Raises:
        CorpusError: unknown `coordinates` or `frame`, or `questions_per_conversation` below 1.
    """
    try:
        codec = get_codec(coordinates)
    except ValueError as error:
        raise CorpusError(str(error)) from error
    if frame not in get_args(Frame):
        raise CorpusError(f"frame should be image or canvas, got {frame!r}")
    if questions_per_conversation < 1:
        raise CorpusError(f"questions_per_conversation should be at least 1, got {questions_per_conversation}")
    summary = ExportSummary()
    with ExitStack() as open_files:
        parts: dict[str, JsonRows] = {}
        for record in records:
            described, found = _region_exchanges(record, codec, frame, summary.skipped)
            whole = [global_exchange(record.caption)] if record.caption else []
            if record.caption and PLACE in record.caption:
                summary.skipped[f"captions that say {PLACE}"] += 1
                whole = []
            said = [c for c in record.conversations if not any(PLACE in turn.text for turn in c)]
            if len(said) < len(record.conversations):
                summary.skipped[f"conversations that say {PLACE}"] += len(record.conversations) - len(said)
            if not (described or whole or said):
                summary.skipped["images with nothing to ask"] += 1
                continue
            summary.images += 1
            summary.regions += len(described)
            summary.conversations += len(said)
            summary.without_picture += record.text_only
            entry: dict[str, Any] = {"id": record.id}
            if not record.text_only:
                entry["image"] = f"{_PICTURES}/{save_picture(record, out / _PICTURES, summary.images)}"
            name = part_of(record)
            if name not in parts:
                parts[name] = open_files.enter_context(JsonRows(out))
            for exchanges in (whole, described, found):
                for start in range(0, len(exchanges), questions_per_conversation):
                    turns = list(_turns(exchanges[start : start + questions_per_conversation]))
                    parts[name].add({**entry, "conversations": turns})
            for conversation in said:
                parts[name].add({**entry, MARK: CONVERSATION, "conversations": list(_said(conversation, record))})
        for name, rows in parts.items():
            with (out / f"{name}.json").open("w", encoding="utf-8") as file:
                rows.write_to(file)
    return summary


def _region_exchanges(
    record: RegionImage, codec: Codec, frame: Frame, skipped: Counter[str]
) -> tuple[list[Exchange], list[Exchange]]:
    """The questions about boxes, and those for boxes."""
    described: list[Exchange] = []
    found: list[Exchange] = []
    if not record.regions:
        return described, found
    view = View.letterbox((record.width, record.height), 1)
    # As in training: ignored regions count too.
    times = Counter(region.text.casefold() for region in record.regions)
    for region in record.regions:
        box = view.to_relative(region.box, frame)[0]
        if reason := _unusable(region, codec.decode(codec.encode(box)) is None):
            skipped[reason] += 1
            continue
        described.append(caption_exchange(box, region.text, codec))
        if times[region.text.casefold()] == 1:
            found.append(box_exchange(box, region.text, codec))
        else:
            skipped["questions for a box whose phrase is not unique"] += 1
    return described, found


def _unusable(region: Region, empty: bool) -> str:
    if region.ignore:
        return "ignored regions"
    if empty:
        return "regions too small for the coordinates"
    return f"regions whose text says {PLACE}" if PLACE in region.text else ""


def _turns(exchanges: Iterable[Exchange]) -> Iterator[dict[str, Any]]:
    for index, exchange in enumerate(exchanges):
        yield {"from": "human", "value": exchange.question if index else f"{PLACE}\n{exchange.question}"}
        yield {"from": "gpt", "value": exchange.answer}


def _said(conversation: Conversation, record: RegionImage) -> Iterator[dict[str, Any]]:
    """A conversation's turns; the picture, where there is one, is shown in the first of the user's."""
    place = "" if record.text_only else f"{PLACE}\n"
    for turn in conversation:
        text = turn.text
        if turn.role == "user":
            text, place = place + text, ""
        yield {"from": _SPEAKERS[turn.role], "value": text}
