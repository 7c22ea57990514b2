"""How far the annotation is: images and regions per second, the time left, what was refused."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import Any

from tqdm import tqdm

from granvit.corpus.annotate.shards import Counts, Task

_SHOWN_REASONS = 4
# Seconds between two lines of a log.
_LINE_EVERY = 60.0
_LINE = "{n_fmt}/{total_fmt} images [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class _Lines:
    """A file for tqdm that makes a log of its bar: what would be written over is written below."""

    def write(self, text: str) -> None:
        if line := text.strip():
            print(line, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


class Progress:
    """A progress bar over all images; a line each minute where standard error is no terminal.

    What a dead worker had done of a shard is taken back when the shard is redone.

    Args:
        total: images in the input.
        before: counts of the shards that an earlier run finished.
        shown: whether there is anything to be seen.
    """

    def __init__(self, total: int, before: Counts, shown: bool) -> None:
        log: dict[str, Any] = {}
        if not sys.stderr.isatty():
            log = {"file": _Lines(), "bar_format": _LINE, "mininterval": _LINE_EVERY, "maxinterval": _LINE_EVERY}
        seen = before.images_seen
        self._bar = tqdm(total=total, initial=seen, unit=" images", disable=not shown, smoothing=0.05, **log)
        self._reasons = Counter(before.reasons)
        self._regions = 0
        self._in_work: dict[int, Counts] = {}
        self._start = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def restart(self, task: Task) -> None:
        """A worker begins the task anew."""
        lost = self._in_work.pop(task.shard, Counts())
        self._regions -= lost.regions_written
        self._reasons -= lost.reasons
        self._bar.update(-lost.images_seen)

    def add(self, task: Task, counts: Counts) -> None:
        """A worker has done a batch."""
        self._in_work.setdefault(task.shard, Counts()).add(counts)
        self._regions += counts.regions_written
        self._reasons += counts.reasons
        notes = [f"{self._regions / max(time.monotonic() - self._start, 1e-3):.1f} regions/s"]
        if self._reasons:
            most = [f"{reason} {count}" for reason, count in self._reasons.most_common(_SHOWN_REASONS)]
            notes.append(f"refused: {', '.join(most)}")
        self._bar.set_postfix_str(", ".join(notes), refresh=False)
        self._bar.update(counts.images_seen)

    def finished(self, task: Task) -> None:
        """The task is done for good."""
        self._in_work.pop(task.shard, None)
