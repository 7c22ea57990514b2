"""Worker processes and their driver: which task comes next, who does it, and what to do when a worker dies.

The driver is the same for local processes (`LocalWorkers`) and for Ray (`granvit.corpus.annotate.ray_workers`). A shard
over which a worker died is done again; if it kills again, its images are tried one by one to find the one that kills.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from granvit.corpus.annotate.base import AnnotateError, ImageSource
from granvit.corpus.annotate.plan import Plan
from granvit.corpus.annotate.shards import BatchBegan, Counts, Progress, Task, run_task
from granvit.corpus.layout import CorpusError

# A worker may be killed by something else, so an image must be alone with two deaths before it is blamed.
DEATHS_TO_ISOLATE = 2
DEATHS_TO_BLAME = 2
# A batch whose images do no harm one by one, but still kill their worker together.
ISOLATIONS_OF_A_BATCH = 5
# Dying with no image in work, for instance of a full disk, is nobody's fault but the installation's.
DEATHS_IN_BETWEEN = 5

CRASHED, TIMEOUT = "crashed-annotator", "timeout"


@dataclass
class _ShardTrouble:
    """What has happened to one shard."""

    excluded: dict[int, tuple[str, str]] = field(default_factory=dict)
    deaths: Counter[tuple[int, ...]] = field(default_factory=Counter)
    isolations: Counter[tuple[int, ...]] = field(default_factory=Counter)


class Schedule:
    """Hands out the shards that are to be done, each until it is done.

    Args:
        shards: their numbers, in order.
        make: the task of a shard, with nothing excluded.
    """

    def __init__(self, shards: Iterable[int], make: Callable[[int], Task]) -> None:
        self._make = make
        self._waiting: deque[tuple[int, tuple[int, ...]]] = deque((shard, ()) for shard in shards)
        self._trouble: dict[int, _ShardTrouble] = {}
        self._in_work: set[int] = set()

    @property
    def open(self) -> int:
        """How many shards are not done."""
        return len(self._waiting) + len(self._in_work)

    def next(self) -> Task | None:
        """The next task, or None where all that is left is in work."""
        if not self._waiting:
            return None
        shard, isolate = self._waiting.popleft()
        self._in_work.add(shard)
        task = self._make(shard)
        excluded = self._trouble[shard].excluded if shard in self._trouble else {}
        return Task(shard, task.inputs, task.batch, dict(excluded), isolate)

    def finished(self, task: Task) -> None:
        """The task is done; after positions were tried one by one without harm, the shard is tried again."""
        self._in_work.remove(task.shard)
        if task.isolate:
            self._waiting.appendleft((task.shard, ()))
        else:
            self._trouble.pop(task.shard, None)

    def died(self, task: Task, positions: tuple[int, ...], reason: str, detail: str) -> None:
        """A worker died over the task while it had the images at `positions` in work.

        Args:
            reason: `CRASHED`, or `TIMEOUT` where it was ended for being slow: its batch is not tried a second time.

        Raises:
            AnnotateError: it died repeatedly with no image in work.
        """
        self._in_work.remove(task.shard)
        trouble = self._trouble.setdefault(task.shard, _ShardTrouble())
        trouble.deaths[positions] += 1
        if not positions and trouble.deaths[positions] >= DEATHS_IN_BETWEEN:
            raise AnnotateError(f"shard {task.shard}: {DEATHS_IN_BETWEEN} workers died with no image in work: {detail}")
        isolate: tuple[int, ...] = ()
        if task.isolate:
            isolate = self._after_isolation(task, positions, trouble, reason, detail)
        elif positions and trouble.deaths[positions] >= (1 if reason == TIMEOUT else DEATHS_TO_ISOLATE):
            isolate = self._before_isolation(positions, trouble, reason, detail)
        self._waiting.appendleft((task.shard, isolate))

    def _before_isolation(
        self, positions: tuple[int, ...], trouble: _ShardTrouble, reason: str, detail: str
    ) -> tuple[int, ...]:
        trouble.deaths[positions] = 0
        trouble.isolations[positions] += 1
        candidates = tuple(position for position in positions if position not in trouble.excluded)
        if trouble.isolations[positions] <= ISOLATIONS_OF_A_BATCH:
            return candidates
        message = f"{_quarantine_detail(reason, detail)}, though only together with its batch"
        trouble.excluded |= {position: (reason, message) for position in candidates}
        return ()

    def _after_isolation(
        self, task: Task, positions: tuple[int, ...], trouble: _ShardTrouble, reason: str, detail: str
    ) -> tuple[int, ...]:
        if not positions:
            return task.isolate
        (position,) = positions
        rest = task.isolate[task.isolate.index(position) :]
        if trouble.deaths[positions] < DEATHS_TO_BLAME:
            return rest
        trouble.excluded[position] = (reason, _quarantine_detail(reason, detail))
        return rest[1:]


def _quarantine_detail(reason: str, detail: str) -> str:
    """For the quarantine, which is to be the same wherever the workers are: how one died differs from kind to kind."""
    return "the worker died over this image" if reason == CRASHED else detail


# So many workers in a row may die while they load their models, before it counts as a broken installation.
MAX_FAILED_STARTS = 5


@dataclass(frozen=True)
class Job:
    """What every worker needs to know."""

    plan: Plan
    source: ImageSource
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
    """An exception: a broken installation, in one line, or a bug, with its traceback."""

    message: str
    bug: bool


Message = Ready | BatchBegan | Counts | Done | Died | Failed


class Worker(Protocol):
    """One worker as its driver sees it."""

    def submit(self, task: Task) -> None:
        """Start on a task; its messages come through `WorkerPool.poll`, that it is gone too."""
        ...

    def kill(self) -> None:
        """End it at once, whatever it does."""
        ...


class WorkerPool(Protocol):
    """Where workers come from. Use as a context manager: none outlives it."""

    size: int

    def start_worker(self) -> Worker: ...

    def poll(self, workers: Iterable[Worker], seconds: float) -> list[tuple[Worker, Message]]:
        """The next message of each worker that has one, within `seconds`; a worker that died has `Died`."""
        ...

    def __enter__(self) -> WorkerPool: ...

    def __exit__(self, *error: object) -> None: ...


class AnnotatorBug(RuntimeError):
    """An exception in a worker that is no fault of the input; carries the worker's traceback."""


@dataclass
class _WorkerState:
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


def drive(pool: WorkerPool, schedule: Schedule, plan: Plan, progress: Progress) -> None:
    """Have everything on the schedule done.

    Raises:
        AnnotateError: the annotators cannot work at all.
        AnnotatorBug: an exception in a worker.
    """
    _Driver(pool, schedule, plan, progress).run()


class _Driver:
    def __init__(self, pool: WorkerPool, schedule: Schedule, plan: Plan, progress: Progress) -> None:
        self._pool, self._schedule, self._plan, self._progress = pool, schedule, plan, progress
        self._workers: list[_WorkerState] = []
        self._failed_starts = 0

    def run(self) -> None:
        while self._schedule.open:
            while len(self._workers) < min(self._pool.size, self._schedule.open):
                self._workers.append(_WorkerState(self._pool.start_worker()))
            for state in self._workers:
                if state.ready and state.task is None and (task := self._schedule.next()):
                    self._progress.restart(task)
                    state.task = task
                    state.worker.submit(task)
            by_worker = {id(state.worker): state for state in self._workers}
            for worker, message in self._pool.poll([state.worker for state in self._workers], 1.0):
                self._handle(by_worker[id(worker)], message)
            for state in [state for state in self._workers if time.monotonic() > state.deadline]:
                state.worker.kill()
                self._reap(state, TIMEOUT, f"longer than {self._plan.seconds_for(1):g} seconds")

    def _handle(self, state: _WorkerState, message: Message) -> None:
        match message:
            case Ready():
                state.ready, self._failed_starts = True, 0
            case BatchBegan(positions):
                state.positions = positions
                state.deadline = time.monotonic() + self._plan.seconds_for(len(positions))
            case Counts():
                state.positions, state.deadline = (), float("inf")
                assert state.task is not None
                self._progress.add(state.task, message)
            case Done():
                assert state.task is not None
                self._schedule.finished(state.task)
                self._progress.finished(state.task)
                state.task, state.positions, state.deadline = None, (), float("inf")
            case Died(detail):
                self._reap(state, CRASHED, detail)
            case Failed(text, bug):
                raise AnnotatorBug(self._where(state) + text) if bug else AnnotateError(text)

    def _reap(self, state: _WorkerState, reason: str, detail: str) -> None:
        """Take a dead worker off; its place is filled on the next round."""
        self._workers.remove(state)
        if state.task is not None:
            self._schedule.died(state.task, state.positions, reason, detail)
        elif not state.ready:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS:
                raise AnnotateError(f"workers die while they load their models: {detail}")

    @staticmethod
    def _where(state: _WorkerState) -> str:
        if state.task is None or not state.positions:
            return ""
        names = [f"{file}:{index}" for file, index in (state.task.inputs[position] for position in state.positions)]
        return f"while annotating {', '.join(names)}:\n"


# Spawned, not forked: a fork would copy the locks of whatever threads the driver's libraries have running.
_CONTEXT = multiprocessing.get_context("spawn")


class LocalWorkers:
    """Processes on this machine.

    Args:
        devices: where the models go; the workers take them in turns.
    """

    def __init__(self, job: Job, size: int, devices: list[str]) -> None:
        self.size = size
        self._job, self._devices = job, devices
        self._workers: list[_Process] = []

    def __enter__(self) -> LocalWorkers:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.kill()

    def start_worker(self) -> _Process:
        # The place of one that died comes free with its device.
        alive = [worker for worker in self._workers if worker.process.is_alive()]
        taken = [worker.device for worker in alive]
        device = min(self._devices, key=taken.count)
        worker = _Process(self._job, device)
        self._workers = [*alive, worker]
        return worker

    def poll(self, workers: Iterable[Worker], seconds: float) -> list[tuple[Worker, Message]]:
        by_end = {worker.messages: worker for worker in workers if isinstance(worker, _Process)}
        return [
            (by_end[end], by_end[end].receive()) for end in wait(list(by_end), seconds) if isinstance(end, Connection)
        ]


class _Process:
    """One process; `messages` is the driver's end of its pipe."""

    def __init__(self, job: Job, device: str) -> None:
        self.device = device
        self.messages, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_work, args=(theirs, job, device), daemon=True)
        self.process.start()
        # With this end held here too, the pipe would not break when the worker dies.
        theirs.close()

    def submit(self, task: Task) -> None:
        try:
            self.messages.send(task)
        except OSError:
            pass  # it is gone, and `receive` will say so

    def receive(self) -> Message:
        try:
            return self.messages.recv()
        except (EOFError, OSError):
            self.process.join()
            return Died(f"the worker's exit status was {self.process.exitcode}")

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.messages.close()


class _DriverGone(Exception):
    """The pipe to the driver is broken."""


def _work(messages: Connection, job: Job, device: str) -> None:
    """What a worker process does until its driver is gone."""

    def send(message: Message) -> None:
        try:
            messages.send(message)
        except OSError as error:
            raise _DriverGone from error

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the driver decides
    _die_with_parent()
    try:
        stages = one_thread_each(job, device)
        send(Ready())
        while task := _receive(messages):
            for message in run_task(task, job.source, stages, job.out):
                send(message)
            send(Done())
    except _DriverGone:
        return
    except Exception as error:
        messages.send(failure(error))


def _receive(messages: Connection) -> Task | None:
    """The next task, or None when the driver is gone."""
    try:
        return messages.recv()
    except (EOFError, OSError):
        return None


def failure(error: Exception) -> Failed:
    """What to tell the driver of an exception: the input and the machine have one line, a bug has its traceback."""
    if isinstance(error, AnnotateError | CorpusError):
        return Failed(str(error), bug=False)
    if isinstance(error, OSError):
        return Failed(f"{type(error).__name__}: {error}", bug=False)
    return Failed("".join(traceback.format_exception(error)), bug=True)


def one_thread_each(job: Job, device: str) -> Any:
    """The plan's stages, loaded such that each library computes in one thread: the workers are the parallelism."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # there is one bar, the driver's
    stages = job.plan.build(device)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    if cv2 := sys.modules.get("cv2"):
        cv2.setNumThreads(1)
    return stages


def _die_with_parent() -> None:
    """A killed driver leaves no worker behind that goes on writing."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
