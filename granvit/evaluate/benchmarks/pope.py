"""POPE: is there such an object in the picture?"""

from __future__ import annotations

from pathlib import Path

from granvit.errors import GranvitError
from granvit.evaluate.benchmarks.base import benchmark, file_loader, find, json_lines, picture_root, source_of, value
from granvit.evaluate.items import Item, Source, Task
from granvit.questions import ask_short


@benchmark("pope")
def pope(src: Path, images: Path | None) -> Source:
    """SRC is coco_pope_*.json or a folder of such: a JSON object a line, {"question_id", "image", "text", "label"}.

    Labels are "yes" or "no"; random, popular and adversarial are scored each by itself. The pictures are COCO's
    val2014, in `images` or val2014/. An answer counts by its first word.
    """
    files = find(src, "coco_pope_*.json*", "*pope*.json*")
    items, tasks = [], []
    for file in files:
        task = f"pope-{file.name.partition('.')[0].rpartition('_')[2]}"
        tasks.append(Task(task, "yes_no", "vqa"))
        for where, row in json_lines(file):
            image, label = value(row, "image", str, where), value(row, "label", str, where).lower()
            if label not in ("yes", "no"):
                raise GranvitError(f"{where}: the label is {label!r}, not yes or no")
            key = str(value(row, "question_id", (int, str), where))
            asked = ask_short(value(row, "text", str, where))
            items.append(Item(image, task, (0, 0), [label], key=key, asked=asked))
    if not items:
        raise GranvitError(f"{files[0]} holds no question")
    root = picture_root(images, files[0].parent, ("", "val2014", "images", "images/val2014"), items[0].id)
    return source_of("pope", tasks, items, lambda image: file_loader(root, image))
