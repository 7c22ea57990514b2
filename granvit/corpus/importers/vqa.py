"""Tables of questions about documents, charts and scene text: DocVQA, InfographicVQA, TextVQA, ChartQA.

The files of their training parts, which are laid out as those that `granvit eval --bench` reads. Each question is a
conversation of its own, asked in the words of the evaluation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from granvit.corpus.check import LeftOut, Refused, Rejection, UnreadConversation, shown
from granvit.corpus.importers.base import (
    Found,
    as_split,
    as_text,
    importer,
    picture_root,
    read_json,
)
from granvit.corpus.importers.conversations import pictured_record
from granvit.corpus.layout import CorpusError
from granvit.questions import ask_short
from granvit.regions import Conversation, Turn


@dataclass(frozen=True)
class _Table:
    """How a data set writes its questions.

    Attributes:
        name: of the data set.
        files: patterns of its files in the folder.
        rows: the key of the list of rows, "" where the file is that list.
        picture, ending: the field that names the picture, and what the name lacks.
        question, answers: the fields of the question and of its right answers.
        split: the field of a row that states its split, where there is one.
        folders: where the pictures lie, relative to the file.
    """

    name: str
    files: tuple[str, ...]
    rows: str
    picture: str
    question: str
    answers: str
    folders: tuple[str, ...]
    ending: str = ""
    split: str = ""


_ORDER = {"test": 0, "val": 1}

_DOCVQA = _Table("docvqa", ("*_v1*.json",), "data", "image", "question", "answers", ("", "images"), split="data_split")
_INFOVQA = _Table(
    "infovqa",
    ("infographic*_v1*.json",),
    "data",
    "image_local_name",
    "question",
    "answers",
    ("infographicsvqa_images", "images", ""),
    split="data_split",
)
_TEXTVQA = _Table(
    "textvqa",
    ("TextVQA*.json",),
    "data",
    "image_id",
    "question",
    "answers",
    ("train_images", "train_val_images/train_images", "images", ""),
    ending=".jpg",
    split="set_name",
)
_CHARTQA = _Table(
    "chartqa", ("*_human.json", "*_augmented.json"), "", "imgname", "query", "label", ("png", "images", "")
)


@importer("docvqa")
def docvqa(
    src: Path, *, images: Path | None = None, source: str = "docvqa", licence: str = "", split: str = ""
) -> Iterator[Found]:
    """`src` is train_v1.0*.json, or a folder with such files: ``{"data": [{"question", "image", "answers"}]}``.

    "image" is relative to `images`, by default the folder of the file or its images/. All questions of a page make one
    record, each a conversation that asks for a short answer; of several right answers the first is learned, the others
    are counted. The split is a row's "data_split", or stated by the file's or its folder's name, unless `split` names
    one; a page of several splits belongs to test before val before train. A folder without such files may hold several
    that have some, such as train/ and val/, each with its pictures: all are read. A row that cannot be read is refused,
    with its picture where that is not known: "bad-field", "no-answer".

    Boxes: none. Terms: DocVQA's, see docvqa.org; state them with `licence`.

    Raises:
        CorpusError: there is no such file, or no picture beside it.
    """
    return _read(_DOCVQA, src, images, source, licence, split)


@importer("infovqa")
def infovqa(
    src: Path, *, images: Path | None = None, source: str = "infovqa", licence: str = "", split: str = ""
) -> Iterator[Found]:
    """`src` is infographicsVQA_train_v1.0.json, or a folder with such files: as docvqa, with "image_local_name".

    Pictures are in `images`, or infographicsvqa_images/ or images/ beside the file. Boxes: none. Terms: as DocVQA.

    Raises:
        CorpusError: as docvqa.
    """
    return _read(_INFOVQA, src, images, source, licence, split)


@importer("textvqa")
def textvqa(
    src: Path, *, images: Path | None = None, source: str = "textvqa", licence: str = "", split: str = ""
) -> Iterator[Found]:
    """`src` is TextVQA_0.5.1_train.json, or a folder: ``{"data": [{"image_id", "question", "answers", "set_name"}]}``.

    Pictures are IMAGE_ID.jpg in `images`, or train_images/ beside the file. Of the ten answers the most frequent is
    learned. Otherwise as docvqa. Boxes: none. Terms: CC BY 4.0, pictures of Open Images.

    Raises:
        CorpusError: as docvqa.
    """
    return _read(_TEXTVQA, src, images, source, licence, split)


@importer("chartqa")
def chartqa(
    src: Path, *, images: Path | None = None, source: str = "chartqa", licence: str = "", split: str = ""
) -> Iterator[Found]:
    """`src` is a folder with train_human.json and train_augmented.json, ``[{"imgname", "query", "label"}]``.

    Or the data set's root, whose train/, val/ and test/ are such folders. Pictures are in `images`, or png/ beside the
    files. The split is the first word of the file's name. Otherwise as docvqa. Boxes: none. Terms: GPL-3.0 as its
    repository states, charts of four websites.

    Raises:
        CorpusError: as docvqa.
    """
    return _read(_CHARTQA, src, images, source, licence, split)


def _read(table: _Table, src: Path, images: Path | None, source: str, licence: str, split: str) -> Iterator[Found]:
    said_of: dict[tuple[Path, str, str], list[Conversation]] = {}
    for file in [src] if src.is_file() else _files(table, src):
        for number, row in enumerate(_rows(table, file)):
            where = f"{file.name}:{number}"
            try:
                name = _text(row, table.picture) + table.ending
                part = as_split(split) or as_split(row.get(table.split)) or _split(file)
            except Refused as refused:
                yield Rejection(refused.reason, "", where, None, refused.detail, conversations=1)
                continue
            said = said_of.setdefault((file.parent, part, name), [])
            try:
                answer, others = _answer(row, table)
                said.append([Turn("user", ask_short(_text(row, table.question))), Turn("assistant", answer)])
                yield LeftOut("further right answers of a question", others, where)
            except Refused as refused:
                said.append(UnreadConversation(refused))
    roots = {
        folder: picture_root(images, folder, table.folders, (name for at, _, name in said_of if at == folder))
        for folder in dict.fromkeys(folder for folder, _, _ in said_of)
    }
    # Of a picture in two splits the first one counts: it stays held out.
    for folder, part, name in sorted(said_of, key=lambda key: _ORDER.get(key[1], len(_ORDER))):
        yield pictured_record(roots[folder], name, said_of[folder, part, name], source, licence, part)


def _files(table: _Table, folder: Path) -> list[Path]:
    """The files of a folder, or, where it holds none, those right below it: ChartQA has a folder for each split."""
    for places in ([folder], sorted(path for path in folder.iterdir() if path.is_dir())):
        if files := sorted({file for at in places for pattern in table.files for file in at.glob(pattern)}):
            return files
    raise CorpusError(f"{folder} holds none of {', '.join(table.files)}")


def _rows(table: _Table, file: Path) -> list[Any]:
    content = read_json(file)
    rows = content.get(table.rows) if table.rows and isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise CorpusError(f"{file}: a list of questions is expected" + (f' under "{table.rows}"' if table.rows else ""))
    return rows


def _text(row: Any, field: str) -> str:
    stated = row.get(field) if isinstance(row, dict) else row
    text = as_text(stated).strip() if isinstance(row, dict) else ""
    if not text:
        raise Refused("bad-field", f"{field} should be a text, got {shown(stated)}")
    return text


def _answer(row: dict[str, Any], table: _Table) -> tuple[str, int]:
    """The answer to learn, the most frequent and then the first, and how many others there are."""
    stated = row.get(table.answers)
    counted = Counter(text for text in map(as_text, stated if isinstance(stated, list) else [stated]) if text.strip())
    if not counted:
        raise Refused("no-answer", f"{table.answers} is {shown(stated)}")
    [(answer, _)] = counted.most_common(1)
    return answer, len(counted) - 1


def _split(file: Path) -> str:
    """The split that a file's name states, the first of its words that is one, or else its folder's name."""
    words = [*file.stem.replace(".", "_").split("_"), file.parent.name]
    return next((split for split in map(as_split, words) if split in ("train", "val", "test")), "")
