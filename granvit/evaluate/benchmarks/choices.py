"""Multiple choice: MMBench, SEED-Bench, ScienceQA, MMMU."""

from __future__ import annotations

import ast
import base64
import csv
import io
from collections.abc import Callable
from pathlib import Path
from string import ascii_uppercase as LETTERS
from typing import Any

from granvit.corpus.check import Refused
from granvit.corpus.importers.base import picture_root, read_json
from granvit.corpus.importers.jsonl import read_rows
from granvit.errors import GranvitError
from granvit.evaluate.benchmarks.base import (
    BadRow,
    LeftOut,
    benchmark,
    check_some,
    eval_set_of,
    file_loader,
    find,
    json_lines,
    rows_of,
    value,
)
from granvit.evaluate.items import EvalSet, Item, Task
from granvit.files import open_regular
from granvit.questions import ask_choice, ask_short

_LONGEST_FIELD = 1 << 28
# MMBench's files mark a copy of question 7 with its options moved on by one place as question 1,000,007.
_COPY = 1_000_000


def _choice_item(
    task: str, image: str, key: Any, question: str, options: list[str], right: str, hint: str = ""
) -> Item:
    asked = ask_choice(question, options, hint)
    return Item(image, task, (0, 0), [right], key=str(key), asked=asked, options=options)


@benchmark("mmbench")
def mmbench(src: Path, images: Path | None) -> EvalSet:
    """SRC is a table mmbench_dev_*.tsv: index, question, hint, A to D, answer, image (the file in base64).

    CircularEval: a question is asked once for every place that its first option can have, the others following in
    order, and is right only if all are; "accuracy" is that over single questions. Copies already in the file are left
    to this. A picture may be given by the index of another question that has the same.
    """
    [file, *_] = find(src, "*mmbench*dev*.tsv", "*MMBench*.tsv", "*.tsv")
    csv.field_size_limit(_LONGEST_FIELD)
    pictures: dict[str, str] = {}
    items: list[Item] = []
    left_out = LeftOut()
    try:
        with open_regular(file) as binary, io.TextIOWrapper(binary, encoding="utf-8", newline="") as lines:
            for number, row in enumerate(csv.DictReader(lines, delimiter="\t"), start=1):
                with left_out.row():
                    items += _mmbench_items(row, pictures, f"{file}: question {number}")
    except (csv.Error, UnicodeDecodeError) as error:
        raise GranvitError(f"{file}: {error}") from error
    check_some(items, left_out, f"{file} holds no question")
    task = Task("mmbench", "circular", "vqa")
    return eval_set_of("mmbench", [task], items, left_out, lambda index: _from_base64(file, pictures, index))


def _mmbench_items(row: dict[Any, Any], pictures: dict[str, str], where: str) -> list[Item]:
    """A question once for every place that its first option can have; its picture goes to `pictures`."""
    if None in row or any(not row.get(name) for name in ("index", "question", "A", "B", "answer", "image")):
        raise BadRow(f"{where}: one of index, question, A, B, answer, image is missing")
    index = row["index"].strip()
    pictures[index] = row["image"]
    options = [row[letter] for letter in "ABCD" if _is_filled(row.get(letter))]
    if row["answer"] not in LETTERS[: len(options)]:
        raise BadRow(f"{where}: the answer {row['answer']!r} is none of its {len(options)} options")
    if index.isdecimal() and int(index) >= _COPY:
        return []
    hint = row["hint"] if _is_filled(row.get("hint")) else ""
    right = LETTERS.index(row["answer"])
    items = []
    for turn in range(len(options)):
        turned = options[turn:] + options[:turn]
        letter = LETTERS[(right - turn) % len(options)]
        items.append(_choice_item("mmbench", index, f"{index}/{turn}", row["question"], turned, letter, hint))
    return items


def _is_filled(text: str | None) -> bool:
    """Whether a field of a table is filled; pandas writes an empty one as "nan"."""
    return bool(text) and text != "nan"


def _from_base64(file: Path, pictures: dict[str, str], index: str) -> Callable[[], bytes]:
    def load() -> bytes:
        data = pictures.get(pictures[index], pictures[index])
        try:
            return base64.b64decode(data, validate=True)
        except ValueError as error:  # binascii.Error, and what is no ASCII
            raise GranvitError(f"{file}: the image of question {index}: {error}") from error

    return load


@benchmark("seed")
def seed(src: Path, images: Path | None) -> EvalSet:
    """SRC is SEED-Bench.json or its folder, an object with a list of "questions".

    Each has "question_id", "question", "choice_a" to "choice_d", "answer" (a letter), "data_type" and "data_id". Only
    those about a single image ("image") are asked; the pictures are in `images` or SEED-Bench-image/.
    """
    [file, *_] = find(src, "SEED*Bench*.json", "*.json")
    items, left_out = [], LeftOut()
    for number, row in enumerate(rows_of(file, "questions")):
        with left_out.row():
            where = f"{file}: question {number}"
            if value(row, "data_type", str, where) != "image":
                continue
            options = [str(value(row, f"choice_{letter}", (str, int, float), where)) for letter in "abcd"]
            key, image = value(row, "question_id", (int, str), where), value(row, "data_id", str, where)
            question, right = value(row, "question", str, where), value(row, "answer", str, where)
            if right not in LETTERS[: len(options)]:
                raise BadRow(f"{where}: the answer {right!r} is none of its {len(options)} options")
            items.append(_choice_item("seed", image, key, question, options, right))
    check_some(items, left_out, f"{file} holds no question about an image")
    root = picture_root(images, file.parent, ("SEED-Bench-image", "images", ""), (item.id for item in items))
    task = Task("seed", "choice", "vqa", expected=14_233)
    return eval_set_of("seed", [task], items, left_out, lambda image: file_loader(root, image))


@benchmark("scienceqa")
def scienceqa(src: Path, images: Path | None) -> EvalSet:
    """SRC is problems.json or its folder: {id: {"question", "choices", "answer", "hint", "image", "split"}}.

    The test questions that have a picture (ScienceQA-IMG), ID/image.png in `images` or test/. The hint is given.
    """
    [file, *_] = find(src, "problems.json")
    problems = read_json(file)
    if not isinstance(problems, dict):
        raise GranvitError(f"{file}: an object of problems by id is expected")
    items, left_out = [], LeftOut()
    for key, row in problems.items():
        with left_out.row():
            where = f"{file}: problem {key}"
            if value(row, "split", str, where) != "test" or not row.get("image"):
                continue
            options = [str(option) for option in value(row, "choices", list, where)]
            answer = value(row, "answer", int, where)
            if not 0 <= answer < min(len(options), len(LETTERS)):
                raise BadRow(f"{where}: the answer {answer} is none of its {len(options)} choices")
            image, hint = f"{key}/{value(row, 'image', str, where)}", str(row.get("hint") or "")
            question = value(row, "question", str, where)
            items.append(_choice_item("scienceqa", image, key, question, options, LETTERS[answer], hint))
    check_some(items, left_out, f"{file} holds no test question with a picture")
    folders = ("test", "images/test", "images", "")
    root = picture_root(images, file.parent, folders, (item.id for item in items))
    task = Task("scienceqa", "choice", "reasoning", expected=2_017)
    return eval_set_of("scienceqa", [task], items, left_out, lambda image: file_loader(root, image))


@benchmark("mmmu")
def mmmu(src: Path, images: Path | None) -> EvalSet:
    """SRC is a folder with Parquet files validation-*, one for each subject or all in one; the pictures are in them.

    Only questions about one picture are asked: a model that takes one can't be asked others. "<image 1>" is
    left out, since the picture stands before the text. Multiple choice is scored by the letter, an open question by
    whether the text is equal.
    """
    items: list[Item] = []
    pictures: dict[str, bytes] = {}
    several, left_out = 0, LeftOut()
    for file in find(src, "validation-*.parquet", "*.parquet"):
        for number, row in enumerate(read_rows(file)):
            with left_out.row():
                where = f"{file}: question {number}"
                if isinstance(row, Refused):
                    raise BadRow(f"{file}: {row.detail}")
                if row.get("image_2") is not None:
                    several += 1
                    continue
                key = value(row, "id", str, where)
                picture = value(value(row, "image_1", dict, where), "bytes", bytes, where)
                items.append(_mmmu_item(row, key, where))
                pictures.setdefault(key, picture)
    check_some(items, left_out, f"{src} holds no question about one picture")
    eval_set = eval_set_of(
        "mmmu", [Task("mmmu", "choice", "reasoning")], items, left_out, lambda key: lambda: pictures[key]
    )
    if several:
        eval_set.notes.append(f"mmmu: {several} questions about several pictures are left out")
    return eval_set


def _mmmu_item(row: dict[str, Any], key: str, where: str) -> Item:
    question = " ".join(value(row, "question", str, where).replace("<image 1>", " ").split())
    right = _listed(value(row, "answer", str, where), where)
    if value(row, "question_type", str, where) != "multiple-choice":
        return Item(key, "mmmu", (0, 0), right, key=key, asked=ask_short(question))
    options = _listed(value(row, "options", str, where), where)
    if right[0] not in LETTERS[: len(options)]:
        raise BadRow(f"{where}: the answer {right[0]!r} is none of its {len(options)} options")
    return _choice_item("mmmu", key, key, question, options, right[0])


def _listed(text: str, where: str) -> list[str]:
    """A text, or the texts of a list that is written as Python writes lists."""
    if not text.startswith("["):
        return [text]
    try:
        entries = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise BadRow(f"{where}: {text!r:.80} is no list") from error
    if not entries:
        raise BadRow(f"{where}: {text!r:.80} is empty")
    return [str(entry) for entry in entries]


@benchmark("pope")
def pope(src: Path, images: Path | None) -> EvalSet:
    """SRC is coco_pope_*.json or a folder of such: a JSON object a line, {"question_id", "image", "text", "label"}.

    Labels are "yes" or "no"; random, popular and adversarial are scored each by itself. The pictures are COCO's
    val2014, in `images` or val2014/. An answer counts by its first word.
    """
    files = find(src, "coco_pope_*.json*", "*pope*.json*")
    items: list[Item] = []
    tasks, left_out = [], LeftOut()
    for file in files:
        task = f"pope-{file.name.partition('.')[0].rpartition('_')[2]}"
        tasks.append(Task(task, "yes_no", "vqa"))
        before = len(items)
        for where, row in json_lines(file, left_out):
            with left_out.row():
                image, label = value(row, "image", str, where), value(row, "label", str, where).lower()
                if label not in ("yes", "no"):
                    raise BadRow(f"{where}: the label is {label!r}, not yes or no")
                key = str(value(row, "question_id", (int, str), where))
                asked = ask_short(value(row, "text", str, where))
                items.append(Item(image, task, (0, 0), [label], key=key, asked=asked))
        check_some(items[before:], left_out, f"{file} holds no question")
    folders = ("", "val2014", "images", "images/val2014")
    root = picture_root(images, files[0].parent, folders, (item.id for item in items))
    return eval_set_of("pope", tasks, items, left_out, lambda image: file_loader(root, image))
