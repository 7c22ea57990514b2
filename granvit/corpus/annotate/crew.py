"""Workers of whatever kind, and keeping them at work: the driver's loop, the same for local processes and for Ray."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from granvit.corpus.annotate.base import AnnotateError
from granvit.corpus.annotate.plan import Plan
from granvit.corpus.annotate.progress import Progress
from granvit.corpus.annotate.schedule import CRASHED, TIMEOUT, Schedule
from granvit.corpus.annotate.shards import Began, Counts, Task
from granvit.corpus.annotate.source_files import Source

# So many workers in a row may die while they load their models, before it counts as a broken installation.
STILLBORN = 5


@dataclass(frozen=True)
class Job:
    """What every worker needs to know."""

    plan: Plan
    source: Source
    out: Path


@dataclass(frozen=True)
class Ready:
    """The models are loaded."""


@dataclass(frozen=True)
class Done:
    """The task is done."""


@dataclass(frozen=True)
class Died:
    """The worker is gone."""

    detail: str


@dataclass(frozen=True)
class Failed:
    """An exception: a broken installation, told in one line, or a bug, with its traceback."""

    message: str
    bug: bool


Note = Ready | Began | Counts | Done | Died | Failed


class Worker(Protocol):
    """One worker as its driver sees it."""

    def give(self, task: Task) -> None:
        """Start on a task; its notes come through `Crew.listen`. A worker that is gone tells so there too."""
        ...

    def kill(self) -> None:
        """End it at once, whatever it does."""
        ...


class Crew(Protocol):
    """Where workers come from. Use as a context manager: none outlives it."""

    size: int

    def hire(self) -> Worker: ...

    def listen(self, workers: Iterable[Worker], seconds: float) -> list[tuple[Worker, Note]]:
        """The next note of each worker that has one, within `seconds`; a worker that died has `Died`."""
        ...

    def __enter__(self) -> Crew: ...

    def __exit__(self, *error: object) -> None: ...


class AnnotatorBug(RuntimeError):
    """An exception in a worker that is no fault of the input; carries the worker's traceback."""


@dataclass
class _Hand:
    """A worker and what it does.

    Attributes:
        positions: the images in work.
        deadline: when they must be done, in seconds of `time.monotonic`.
    """

    worker: Worker
    ready: bool = False
    task: Task | None = None
    positions: tuple[int, ...] = ()
    deadline: float = float("inf")


def drive(crew: Crew, schedule: Schedule, plan: Plan, progress: Progress) -> None:
    """Have everything on the schedule done.

    Raises:
        AnnotateError: the annotators cannot work at all.
        AnnotatorBug: an exception in a worker.
    """
    _Drive(crew, schedule, plan, progress).run()


class _Drive:
    def __init__(self, crew: Crew, schedule: Schedule, plan: Plan, progress: Progress) -> None:
        self._crew, self._schedule, self._plan, self._progress = crew, schedule, plan, progress
        self._hands: list[_Hand] = []
        self._stillborn = 0

    def run(self) -> None:
        while self._schedule.open:
            while len(self._hands) < min(self._crew.size, self._schedule.open):
                self._hands.append(_Hand(self._crew.hire()))
            for hand in self._hands:
                if hand.ready and hand.task is None and (task := self._schedule.next()):
                    self._progress.restart(task)
                    hand.task = task
                    hand.worker.give(task)
            by_worker = {id(hand.worker): hand for hand in self._hands}
            for worker, note in self._crew.listen([hand.worker for hand in self._hands], 1.0):
                self._heed(by_worker[id(worker)], note)
            for hand in [hand for hand in self._hands if time.monotonic() > hand.deadline]:
                hand.worker.kill()
                self._bury(hand, TIMEOUT, f"longer than {self._plan.seconds_for(1):g} seconds")

    def _heed(self, hand: _Hand, note: Note) -> None:
        match note:
            case Ready():
                hand.ready, self._stillborn = True, 0
            case Began(positions):
                hand.positions = positions
                hand.deadline = time.monotonic() + self._plan.seconds_for(len(positions))
            case Counts():
                hand.positions, hand.deadline = (), float("inf")
                assert hand.task is not None
                self._progress.add(hand.task, note)
            case Done():
                assert hand.task is not None
                self._schedule.finished(hand.task)
                self._progress.finished(hand.task)
                hand.task, hand.positions, hand.deadline = None, (), float("inf")
            case Died(detail):
                self._bury(hand, CRASHED, detail)
            case Failed(message, bug):
                raise AnnotatorBug(self._where(hand) + message) if bug else AnnotateError(message)

    def _bury(self, hand: _Hand, reason: str, detail: str) -> None:
        """Take a dead worker off; its place is filled on the next round."""
        self._hands.remove(hand)
        if hand.task is not None:
            self._schedule.died(hand.task, hand.positions, reason, detail)
        elif not hand.ready:
            self._stillborn += 1
            if self._stillborn >= STILLBORN:
                raise AnnotateError(f"workers die while they load their models: {detail}")

    @staticmethod
    def _where(hand: _Hand) -> str:
        if hand.task is None or not hand.positions:
            return ""
        names = [f"{file}:{index}" for file, index in (hand.task.inputs[position] for position in hand.positions)]
        return f"while annotating {', '.join(names)}:\n"
