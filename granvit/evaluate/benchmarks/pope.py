"""POPE: is there such an object in the picture?"""

from __future__ import annotations

from pathlib import Path

from granvit.evaluate.benchmarks.base import (
    BadRow,
    LeftOut,
    benchmark,
    check_some,
    file_loader,
    find,
    json_lines,
    picture_root,
    source_of,
    value,
)
from granvit.evaluate.items import Item, Source, Task
from granvit.questions import ask_short


@benchmark("pope")
def pope(src: Path, images: Path | None) -> Source:
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
    return source_of("pope", tasks, items, left_out, lambda image: file_loader(root, image))
