"""RefCOCO, RefCOCO+ and RefCOCOg: find the object that an expression refers to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from granvit.corpus.check import Rejection
from granvit.corpus.importers.refcoco import photo_folder, references
from granvit.errors import GranvitError
from granvit.evaluate.benchmarks.base import LeftOut, benchmark, eval_set_of, file_loader
from granvit.evaluate.items import EvalSet, Item, Task
from granvit.predict import LONGEST_BOX

# Expressions in the published splits ("unc" for RefCOCO and RefCOCO+, "umd" for RefCOCOg).
EXPRESSIONS = {
    "refcoco-val": 10_834,
    "refcoco-testA": 5_657,
    "refcoco-testB": 5_095,
    "refcoco+-val": 10_758,
    "refcoco+-testA": 5_726,
    "refcoco+-testB": 4_889,
    "refcocog-val": 4_896,
    "refcocog-test": 9_602,
}


@benchmark("refcoco")
def refcoco(src: Path, images: Path | None) -> EvalSet:
    """SRC is a table of expressions or a folder of such, as `granvit corpus import refcoco` reads them.

    Every expression is a question of its own. The splits testA, testB and test are scored each by itself; "val" is not:
    several mirrors merge other splits into it. An expression for a box that was also said in other words stays the
    question that it is. The photos are COCO's train2014.
    """
    found, left_out = [], LeftOut()
    for row in references(src):
        if isinstance(row, Rejection):
            left_out.reasons.append(f"{src}: {row.uri}: row {row.region}: {row.reason}: {row.detail}")
        elif row.split.startswith("test"):
            found.append(row)
    if not found:
        raise GranvitError((left_out.reasons or [f"{src} holds no split testA, testB or test"])[0])
    root = images or photo_folder(src, [row.photo for row in found if row.data is None])
    counts = Counter(f"{row.data_set}-{row.split}" for row in found for _ in row.texts)
    tasks = [
        Task(name, "boxes", "fine-grained", LONGEST_BOX, expected=EXPRESSIONS.get(name)) for name in sorted(counts)
    ]

    data = {row.photo: row.data for row in found}
    items = [
        Item(row.photo, f"{row.data_set}-{row.split}", row.size, [text], row.box, how="phrase", asked=text)
        for row in found
        for text in row.texts
    ]
    numbers: Counter[str] = Counter()
    for item in items:
        item.key = str(numbers[item.task])
        numbers[item.task] += 1

    def loader(photo: str) -> Callable[[], bytes]:
        stored = data[photo]
        return file_loader(root, photo) if stored is None else lambda: stored

    return eval_set_of("refcoco", tasks, items, left_out, loader)
