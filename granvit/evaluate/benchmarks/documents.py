"""Questions about documents, charts and scene text: DocVQA, InfographicVQA, TextVQA, ChartQA, OCRBench."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from granvit.corpus.importers.base import picture_root
from granvit.evaluate.benchmarks.base import (
    LeftOut,
    benchmark,
    check_some,
    eval_set_of,
    file_loader,
    find,
    rows_of,
    texts,
    value,
)
from granvit.evaluate.items import EvalSet, Item, Task
from granvit.questions import ask_short


@benchmark("docvqa")
def docvqa(src: Path, images: Path | None) -> EvalSet:
    """SRC is val_v1.0*.json or its folder: {"data": [{"questionId", "question", "image", "answers"}]}.

    "image" is relative to the file or `images` ("documents/xyz.png"). Scored by ANLS.
    """
    return _anls("docvqa", src, images, ("val_v1*.json", "*val*.json"), "image", 5_349)


@benchmark("infovqa")
def infovqa(src: Path, images: Path | None) -> EvalSet:
    """SRC is infographicsVQA_val_v1.0*.json or its folder: as DocVQA, with "image_local_name" for "image".

    The pictures are in `images`, or a folder infographicsvqa_images/ or images/ beside the file. Scored by ANLS.
    """
    return _anls("infovqa", src, images, ("infographic*val*.json", "*val*.json"), "image_local_name", 2_801)


def _anls(name: str, src: Path, images: Path | None, patterns: tuple[str, ...], picture: str, expected: int) -> EvalSet:
    [file, *_] = find(src, *patterns)
    items, left_out = [], LeftOut()
    for number, row in enumerate(rows_of(file, "data")):
        with left_out.row():
            where = f"{file}: question {number}"
            image, answers = value(row, picture, str, where), texts(row, "answers", where)
            key = value(row, "questionId", (int, str), where)
            items.append(_item(name, image, key, row, "question", answers, where))
    return _source(items, left_out, [Task(name, "anls", "ocr", expected=expected)], images, file.parent, _FOLDERS)


@benchmark("textvqa")
def textvqa(src: Path, images: Path | None) -> EvalSet:
    """SRC is TextVQA_0.5.1_val.json or its folder: {"data": [{"question_id", "image_id", "question", "answers"}]}.

    Ten answers each; the pictures are IMAGE_ID.jpg in `images` or train_images/. Scored by VQA accuracy.
    """
    [file, *_] = find(src, "TextVQA*val*.json", "*val*.json")
    items, left_out = [], LeftOut()
    for number, row in enumerate(rows_of(file, "data")):
        with left_out.row():
            where = f"{file}: question {number}"
            image, answers = value(row, "image_id", str, where) + ".jpg", texts(row, "answers", where)
            key = value(row, "question_id", (int, str), where)
            items.append(_item("textvqa", image, key, row, "question", answers, where))
    return _source(items, left_out, [Task("textvqa", "vqa", "ocr", expected=5_000)], images, file.parent, _FOLDERS)


@benchmark("chartqa")
def chartqa(src: Path, images: Path | None) -> EvalSet:
    """SRC is ChartQA's test/ folder: test_human.json, test_augmented.json ([{"imgname", "query", "label"}]) and png/.

    Scored by relaxed accuracy, questions by people and made ones each by themselves.
    """
    files = find(src, "test_*.json")
    items: list[Item] = []
    tasks, left_out = [], LeftOut()
    for file in files:
        kind = file.stem.removeprefix("test_")
        task = f"chartqa-{kind}"
        tasks.append(Task(task, "relaxed", "ocr", expected=1_250))
        before = len(items)
        for number, row in enumerate(rows_of(file)):
            with left_out.row():
                where = f"{file}: question {number}"
                image, answers = value(row, "imgname", str, where), texts(row, "label", where)
                items.append(_item(task, image, number, row, "query", answers, where))
        check_some(items[before:], left_out, f"{file} holds no question")
    return _source(items, left_out, tasks, images, files[0].parent, ("png", "images", ""))


@benchmark("ocrbench")
def ocrbench(src: Path, images: Path | None) -> EvalSet:
    """SRC is OCRBench.json or its folder: [{"dataset_name", "image_path", "question", "answers", "type", "id"}].

    The pictures are in `images` or OCRBench_Images/. Scored by whether the answer contains a right one. The question is
    asked as it stands.
    """
    [file, *_] = find(src, "OCRBench.json", "*.json")
    items, left_out = [], LeftOut()
    for number, row in enumerate(rows_of(file)):
        with left_out.row():
            where = f"{file}: question {number}"
            image, answers = value(row, "image_path", str, where), texts(row, "answers", where)
            item = _item("ocrbench", image, number, row, "question", answers, where)
            item.asked, item.kind = value(row, "question", str, where), value(row, "dataset_name", str, where)
            items.append(item)
    task = Task("ocrbench", "contains", "ocr", longest=128, expected=1_000)
    return _source(items, left_out, [task], images, file.parent, ("OCRBench_Images", "images", ""))


_FOLDERS = ("", "images", "train_images", "train_val_images/train_images", "infographicsvqa_images")


def _item(task: str, image: str, key: Any, row: Any, question: str, answers: list[str], where: str) -> Item:
    asked = ask_short(value(row, question, str, where))
    return Item(image, task, (0, 0), answers, key=str(key), asked=asked)


def _source(
    items: list[Item],
    left_out: LeftOut,
    tasks: list[Task],
    images: Path | None,
    base: Path,
    folders: tuple[str, ...],
) -> EvalSet:
    check_some(items, left_out, f"{base} holds no question")
    root = picture_root(images, base, folders, (item.id for item in items))
    return eval_set_of(tasks[0].name.partition("-")[0], tasks, items, left_out, lambda image: file_loader(root, image))
