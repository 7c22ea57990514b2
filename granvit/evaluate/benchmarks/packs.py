"""Questions in this project's own exchange format: fields of receipts, and photos with an evidence box."""

from __future__ import annotations

from pathlib import Path

from granvit.corpus.importers.base import picture_root
from granvit.corpus.importers.jsonl import ANNOTATIONS
from granvit.evaluate.benchmarks.base import (
    LeftOut,
    benchmark,
    check_some,
    eval_set_of,
    file_loader,
    find,
    json_lines,
    texts,
    value,
)
from granvit.evaluate.items import EvalSet, Item, Task
from granvit.predict import LONGEST_DESCRIPTION
from granvit.questions import ask_short


@benchmark("sroie")
def sroie(src: Path, images: Path | None) -> EvalSet:
    """SRC is a folder with annotations.jsonl whose rows have "qa": [{"question", "answer"}], fields of receipts.

    Of several splits only those held out ("val", "test") are asked, where there are such. Scored by ANLS, as key
    information extraction is.
    """
    return _pack("sroie", src, images, Task("sroie", "anls", "ocr", LONGEST_DESCRIPTION), short=True)


@benchmark("f30k_vqa")
def f30k_vqa(src: Path, images: Path | None) -> EvalSet:
    """SRC is a folder with annotations.jsonl whose rows have "qa": [{"question", "answer"}], answered in sentences.

    Of several splits only those held out ("val", "test") are asked, where there are such. Scored by ROUGE-L.
    """
    return _pack("f30k_vqa", src, images, Task("f30k_vqa", "captions", "vqa", LONGEST_DESCRIPTION), short=False)


def _pack(name: str, src: Path, images: Path | None, task: Task, short: bool) -> EvalSet:
    [file, *_] = find(src, ANNOTATIONS)
    items: dict[str, list[Item]] = {}
    left_out = LeftOut()
    for where, row in json_lines(file, left_out):
        with left_out.row():
            picture = value(row, "image", str, where)
            asked_here = value({"qa": [], **row}, "qa", list, where)
            for index, qa in enumerate(asked_here):
                with left_out.row():
                    question = value(qa, "question", str, where)
                    item = Item(picture, task.name, (0, 0), texts(qa, "answer", where), key=f"{picture}#{index}")
                    item.asked = ask_short(question) if short else question
                    items.setdefault(str(row.get("split") or ""), []).append(item)
    held_out = [item for split in ("val", "test") for item in items.get(split, [])]
    asked = held_out or [item for some in items.values() for item in some]
    check_some(asked, left_out, f'{file}: no row has questions ("qa")')
    root = picture_root(images, file.parent, ("",), (item.id for item in asked))
    eval_set = eval_set_of(name, [task], asked, left_out, lambda image: file_loader(root, image))
    if not held_out:
        eval_set.notes.append(f"{name}: no split is held out, all {len(asked)} questions are asked")
    return eval_set
