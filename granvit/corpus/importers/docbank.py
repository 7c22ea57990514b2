"""DocBank: pages of arXiv papers with every word's place, read from the PDF."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from granvit.corpus.check import Refused, Rejection
from granvit.corpus.importers.base import Found, as_split, from_canvas, importer, read_image, size_of
from granvit.corpus.importers.pictures import chosen, listing
from granvit.corpus.importers.split_lists import splits_of
from granvit.corpus.importers.textlines import Word, joined, numbers, read_lines, unreadable
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
def read(
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
            count = len(_regions(lines, View.squash((_CANVAS, _CANVAS), _CANVAS)))
            data = read_image(pictures, name)
            width, height = size_of(data)
            yield RegionImage(
                id=f"{source}/{name}",
                image=data,
                width=width,
                height=height,
                regions=_regions(lines, View.squash((width, height), _CANVAS)),
                uri=name,
                source=source,
                licence=licence,
                split=split_of.get(file.stem, as_split(split)),
            )
        except Refused as refused:
            yield Rejection(refused.reason, f"{source}/{name}", name, None, refused.detail, count)
    for name in sorted(pages):
        yield Rejection("missing-annotation", f"{source}/{name}", name, None, f"no {name.removesuffix(_PICTURE)}.txt")


def _regions(lines: list[str], view: View) -> list[Region]:
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
