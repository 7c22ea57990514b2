"""FUNSD: scanned forms with their entries and words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from math import isnan
from pathlib import Path
from typing import Any, Literal

from granvit.corpus.check import UNKNOWN_SIZE, LeftOut, Refused, Rejection, Unread
from granvit.corpus.importers.base import (
    MAX_FILE_BYTES,
    NO_BOX,
    Found,
    ambiguous_ids,
    as_box,
    as_id,
    as_split,
    as_text,
    importer,
    read_image,
    read_json,
    require_own_id,
)
from granvit.corpus.importers.textlines import Word, joined
from granvit.corpus.layout import CorpusError
from granvit.regions import Region, RegionImage

Level = Literal["entry", "line", "word"]

_PARTS = {"training_data": "train", "testing_data": "test"}


@importer("funsd")
def read(
    src: Path,
    *,
    level: Level = "line",
    encoding: str = "",
    source: str = "funsd",
    licence: str = "",
    split: str = "",
) -> Iterator[Found]:
    """`src` is the unpacked ``dataset/`` with ``training_data/`` and ``testing_data/``, or one such folder.

    In each: ``annotations/0000971160.json`` for ``images/0000971160.png``. The file: ``{"form": [{"id", "box", "text",
    "label", "words": [{"box", "text"}], "linking"}]}``; the label is question, answer, header or other, and is left
    out, as are the links between entries. Entries of one id are "ambiguous-id". An entry may run over several lines:
    `level` says whether its words are joined line by line ("line", as in the other corpora of text), or the regions are
    the entries or the words. Entries without text are fields that nobody filled in; at the level of entries they are
    refused as "empty-text".

    Boxes: x1, y1, x2, y2 in pixels. Terms: non-commercial, research and education.

    Raises:
        CorpusError: `src` is not in the layout, or `level` is none of the three.
    """
    if level not in ("entry", "line", "word"):
        raise CorpusError(f"level should be entry, line or word, got {level!r}")
    parts = {name: part for name, part in _PARTS.items() if (src / name).is_dir()}
    if not parts and not (src / "annotations").is_dir():
        raise CorpusError(f"{src} holds neither training_data/ and testing_data/ nor annotations/ and images/")
    left_out = Counter[str]()
    for name, part in (parts or {"": _PARTS.get(src.resolve().name, "")}).items():
        files = sorted((src / name / "annotations").glob("*.json"))
        for file in files:
            uri = (Path(name) / "images" / f"{file.stem}.png").as_posix()
            regions: list[Region] = []
            try:
                entries = _form(file, encoding)
                unclear = ambiguous_ids((as_id(entry.get("id")), entry) for entry in entries)
                done: set[Hashable] = set()
                for entry in entries:
                    try:
                        require_own_id(entry, "id", unclear, done)
                        regions += _regions(entry, level)
                    except Refused as refused:
                        regions.append(Unread(NO_BOX, "", "text", reason=refused.reason, detail=refused.detail))
                    left_out["label of an entry"] += bool(entry.get("label"))
                    linked = entry.get("linking")
                    left_out["link of an entry"] += len(linked) if isinstance(linked, list) else 0
                yield RegionImage(
                    id=f"{source}/{uri}",
                    image=read_image(src, uri),
                    width=UNKNOWN_SIZE[0],
                    height=UNKNOWN_SIZE[1],
                    regions=regions,
                    uri=uri,
                    source=source,
                    licence=licence,
                    split=as_split(split) or part,
                )
            except Refused as refused:
                yield Rejection(refused.reason, f"{source}/{uri}", uri, None, refused.detail, len(regions))
        annotated = {file.stem for file in files}
        for picture in sorted((src / name / "images").glob("*.png")):
            if picture.stem not in annotated:
                uri = picture.relative_to(src).as_posix()
                detail = f"no file annotations/{picture.stem}.json"
                yield Rejection("missing-annotation", f"{source}/{uri}", uri, None, detail)
    for what, count in left_out.items():
        yield LeftOut(what, count)


def _form(file: Path, encoding: str) -> list[dict[str, Any]]:
    """The entries of a file; one damaged file costs its own picture only."""
    try:
        data = read_json(file, encoding, MAX_FILE_BYTES)
    except CorpusError as error:
        raise Refused("not-json", str(error)) from error
    entries = data.get("form") if isinstance(data, dict) else None
    if not isinstance(entries, list):
        raise Refused("bad-field", f"{file.name}: form should be a list of entries")
    return [entry if isinstance(entry, dict) else {} for entry in entries]


def _regions(entry: dict[str, Any], level: Level) -> list[Region]:
    if level == "entry":
        return [Region(as_box(entry.get("box")), as_text(entry.get("text")), "text")]
    listed = entry.get("words")
    words = [_word(word) for word in (listed if isinstance(listed, list) else [{}])]
    # An empty word is how the annotation tool left a field that nobody filled in; one without a box is damage.
    words = [word for word in words if word.text.strip() or isnan(word.box[0])]
    return [Region(word.box, word.text, "text") for word in (words if level == "word" else joined(words))]


def _word(value: Any) -> Word:
    row = value if isinstance(value, dict) else {}
    return Word(as_box(row.get("box")), as_text(row.get("text")))
