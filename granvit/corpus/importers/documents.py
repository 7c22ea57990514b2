"""Documents. DocBank: pages of arXiv papers with every word's place, read from the PDF. FUNSD: scanned forms with their
entries and words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterator
from itertools import groupby
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
    from_canvas,
    importer,
    read_image,
    read_json,
    require_own_id,
    size_of,
)
from granvit.corpus.importers.image_folder import chosen, listing
from granvit.corpus.importers.text_lines import Word, joined, numbers, read_lines, unreadable
from granvit.corpus.importers.voc import splits_of
from granvit.corpus.layout import CorpusError
from granvit.geometry import View
from granvit.regions import Region, RegionImage

_TEXTS, _PICTURES = "DocBank_500K_txt", "DocBank_500K_ori_img"
_INDEX = {"train": "500K_train.txt", "val": "500K_dev.txt", "test": "500K_test.txt"}
_PICTURE = "_ori.jpg"
_CANVAS = 1000
_FIELDS = 10
_LABELS = (
    "abstract", "author", "caption", "date", "equation", "figure", "footer", "list", "paragraph", "reference",
    "section", "table", "title",
)  # fmt: skip

# Characters without a Unicode meaning, and accents beside the letter that they belong over: not what is printed.
_BROKEN = re.compile(r"\(cid:\d+\)|[´¨ˆ˜ˇ˘˙˚¸]")
_LIGATURES = str.maketrans({"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl"})


@importer("docbank")
def read_docbank(
    src: Path, *, source: str = "docbank", licence: str = "Apache-2.0", split: str = "", encoding: str = ""
) -> Iterator[Found]:
    """`src` holds ``DocBank_500K_txt/*.txt`` and ``DocBank_500K_ori_img/*_ori.jpg``, or both kinds of file directly.

    Each line of a text file is a word: ``token x0 y0 x1 y1 R G B font label``, separated by tabs, in reading order.
    Words of one label that follow each other on a line become one region. ``##LTFigure##`` becomes an object
    "figure"; the other shapes (``##LTLine##`` ...) are ruling lines and no regions. Ligatures are written out. Lines
    whose text is not what is printed are kept as ignore: equations, lone symbols, characters that the PDF does not
    name, ``(cid:32)``, and accents beside their letter. Splits: of ``indexed_files/500K_train.txt`` (dev, test) in
    `src` where that is there, else `split`; lines of these lists that name no page are counted. Files that are not
    UTF-8 are in `encoding`.

    Boxes: x0, y0, x1, y1 on a canvas of 1000 x 1000 over the page. Terms: Apache-2.0, "please do not re-distribute";
    the papers have licences of their own.

    Raises:
        CorpusError: `src` holds no such files, or a list that is damaged.
    """
    texts, pictures = (src / _TEXTS, src / _PICTURES) if (src / _TEXTS).is_dir() else (src, src)
    files, others = chosen(texts, (".txt",)) if texts.is_dir() and pictures.is_dir() else ([], [])
    if not files:
        raise CorpusError(f"{src} holds neither {_TEXTS}/ and {_PICTURES}/ nor *.txt with *_ori.jpg")
    lists = {name: [src / "indexed_files" / file] for name, file in _INDEX.items()}
    present = {name: found for name, [file] in lists.items() if (found := [file] if file.is_file() else [])}
    split_of, unused = splits_of(present, [file.name for file in files], encoding, as_split(split))
    yield from (*others, *unused)
    pages = {name for name, kind in listing(pictures) if kind == "picture" and name.endswith(_PICTURE)}
    for file in files:
        name, count = f"{file.stem}{_PICTURE}", 0
        pages.discard(name)
        try:
            lines = read_lines(file, encoding)
            count = len(_docbank_regions(lines, View.squash((_CANVAS, _CANVAS), _CANVAS)))
            data = read_image(pictures, name)
            width, height = size_of(data)
            yield RegionImage(
                id=f"{source}/{name}",
                image=data,
                width=width,
                height=height,
                regions=_docbank_regions(lines, View.squash((width, height), _CANVAS)),
                uri=name,
                source=source,
                licence=licence,
                split=split_of.get(file.stem, as_split(split)),
            )
        except Refused as refused:
            yield Rejection(refused.reason, f"{source}/{name}", name, None, refused.detail, count)
    for name in sorted(pages):
        yield Rejection("missing-annotation", f"{source}/{name}", name, None, f"no {name.removesuffix(_PICTURE)}.txt")


def _docbank_regions(lines: list[str], view: View) -> list[Region]:
    regions = []
    for label, rows in groupby((_row(line, view) for line in lines), key=lambda row: row[0]):
        if label not in _LABELS:
            regions += [unreadable(word.text) for _, word in rows]
            continue
        words = [word for _, word in rows]
        shapes = [word for word in words if word.text.startswith("##LT")]
        regions += [Region(word.box, "figure", box_by="pdf", text_by="pdf") for word in shapes if "Figure" in word.text]
        for line in joined(word for word in words if not word.text.startswith("##LT")):
            text = line.text.translate(_LIGATURES)
            regions.append(
                Region(line.box, text, "text", box_by="pdf", text_by="pdf", ignore=not _readable(text, label))
            )
    return regions


def _row(line: str, view: View) -> tuple[str, Word]:
    """A line's label and word; of a line that is not in the format, no label and the line as it is."""
    fields = line.rstrip("\r").split("\t")
    box = numbers(fields[1:5])
    if len(fields) != _FIELDS or len(box) != 4 or fields[-1] not in _LABELS:
        return "", Word((0, 0, 0, 0), line)
    return fields[-1], Word(from_canvas((box[0], box[1], box[2], box[3]), view), fields[0])


def _readable(text: str, label: str) -> bool:
    return label != "equation" and not _BROKEN.search(text) and any(char.isalnum() for char in text)


Level = Literal["entry", "line", "word"]

_PARTS = {"training_data": "train", "testing_data": "test"}


@importer("funsd")
def read_funsd(
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
                        regions += _funsd_regions(entry, level)
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


def _funsd_regions(entry: dict[str, Any], level: Level) -> list[Region]:
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
