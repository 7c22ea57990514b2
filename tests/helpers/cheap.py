"""An annotator that costs nothing, in a module of its own, so that spawned workers and Ray actors can import it.

As a program it is a driver to be killed: ``python -m helpers.cheap SRC OUT WORKERS [RAY]``.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from granvit.corpus.annotate.base import AnnotateError
from granvit.corpus.annotate.plan import Plan
from granvit.corpus.annotate.shards import run_task
from granvit.corpus.annotate.workers import Done, Ready
from granvit.regions import Region


@dataclass(frozen=True)
class CheapConfig:
    """Boxes made of an image's mean colour. Images whose id contains "kill", "hang" or "bug" do as they say."""

    kind: str = "object"
    share: float = 0.5
    seconds: float = field(default=0.0, metadata={"runtime": True})
    absent: bool = False

    @property
    def name(self) -> str:
        return f"cheap:{self.kind}"

    def build(self, device="cpu"):
        if self.absent:
            raise AnnotateError("the cheap model is not installed")
        return Cheap(self)


class Cheap:
    def __init__(self, config):
        self.config = config

    def __call__(self, items):
        for item in items:
            time.sleep(self.config.seconds)
            if "kill" in item.record.id:
                os.kill(os.getpid(), signal.SIGKILL)
            if "hang" in item.record.id:
                time.sleep(1000)
            if "bug" in item.record.id:
                raise ZeroDivisionError("a bug")
            red, green, blue = np.asarray(item.picture).mean((0, 1)).round().astype(int).tolist()
            width, height = item.picture.size
            # The position in the batch shows in the text: a batch put together otherwise would be noticed.
            text = f"{red}/{green}/{blue} {items.index(item)} of {len(items)}"
            box = (0, 0, width, max(height * self.config.share, 1))
            name = self.config.name
            item.record.regions.append(Region(box, text, self.config.kind, 0.5, name, name))
            if green % 2:
                item.refuse("odd-green", str(green), 1)
        return list(items)


def plan(**settings) -> Plan:
    cheap = {name: settings.pop(name) for name in ("share", "seconds", "absent") if name in settings}
    settings = {"how": "detect", "batch": 3, "shard_images": 8, **settings}
    roles = {"ocr": ("ocr", "auto"), "detect": ("detect", "auto")}
    for role, hows in roles.items():
        if settings["how"] in hows:
            settings.setdefault(role, CheapConfig("text" if role == "ocr" else "object", **cheap))
    return Plan(**settings)


class InlineWorkers:
    """One worker that is this very process: for tests of what is done rather than of who does it."""

    size = 1

    def __init__(self, job, *_):
        self._stages = job.plan.build("cpu")
        self._job = job
        self._messages = iter([Ready()])

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def start_worker(self):
        return self

    def submit(self, task):
        messages = run_task(task, self._job.source, self._stages, self._job.out)
        self._messages = itertools.chain(messages, [Done()])

    def poll(self, workers, seconds):
        return [(self, next(self._messages))]


def png(number: int, size=(40, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (number, 2 * (number % 100) + (number % 5 == 0), 7)).save(buffer, "PNG")
    return buffer.getvalue()


def contents(corpus: Path) -> dict[str, str]:
    """The checksum of every file, hidden ones too."""
    files = (path for path in corpus.rglob("*") if path.is_file())
    return {path.relative_to(corpus).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


if __name__ == "__main__":
    from granvit.corpus.annotate.pipeline import annotate

    src, out, workers = sys.argv[1:4]
    # Under another name than __main__, so that workers find the class.
    from helpers.cheap import plan as make

    annotate(Path(src), Path(out), make(seconds=0.03), workers=int(workers), ray="".join(sys.argv[4:]), device="cpu")
