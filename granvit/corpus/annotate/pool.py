"""Local worker processes, each with its models loaded once and one thread for them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterable
from multiprocessing.connection import Connection, wait
from typing import Any

from granvit.corpus.annotate.base import AnnotateError
from granvit.corpus.annotate.crew import Died, Done, Failed, Job, Note, Ready, Worker
from granvit.corpus.annotate.shards import Task, run_task
from granvit.corpus.layout import CorpusError

# Spawned, not forked: a fork would copy the locks of whatever threads the driver's libraries have running.
_CONTEXT = multiprocessing.get_context("spawn")


class LocalCrew:
    """Processes on this machine.

    Args:
        devices: where the models go; the workers take them in turns.
    """

    def __init__(self, job: Job, size: int, devices: list[str]) -> None:
        self.size = size
        self._job, self._devices = job, devices
        self._workers: list[_Process] = []
        self._hired = 0

    def __enter__(self) -> LocalCrew:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.kill()

    def hire(self) -> _Process:
        # The place of one that died comes free with its device.
        alive = [worker for worker in self._workers if worker.process.is_alive()]
        taken = [worker.device for worker in alive]
        device = min(self._devices, key=taken.count)
        worker = _Process(self._job, device)
        self._workers = [*alive, worker]
        return worker

    def listen(self, workers: Iterable[Worker], seconds: float) -> list[tuple[Worker, Note]]:
        by_end = {worker.notes: worker for worker in workers if isinstance(worker, _Process)}
        return [(by_end[end], by_end[end].hear()) for end in wait(list(by_end), seconds) if isinstance(end, Connection)]


class _Process:
    """One process; `notes` is the driver's end of its pipe."""

    def __init__(self, job: Job, device: str) -> None:
        self.device = device
        self.notes, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_work, args=(theirs, job, device), daemon=True)
        self.process.start()
        # With this end held here too, the pipe would not break when the worker dies.
        theirs.close()

    def give(self, task: Task) -> None:
        try:
            self.notes.send(task)
        except OSError:
            pass  # it is gone, and `hear` will say so

    def hear(self) -> Note:
        try:
            return self.notes.recv()
        except (EOFError, OSError):
            self.process.join()
            return Died(f"the worker's exit status was {self.process.exitcode}")

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.notes.close()


class _DriverGone(Exception):
    """The pipe to the driver is broken."""


def _work(notes: Connection, job: Job, device: str) -> None:
    """A worker's life."""

    def tell(note: Note) -> None:
        try:
            notes.send(note)
        except OSError as error:
            raise _DriverGone from error

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the driver decides
    _die_with_parent()
    try:
        stages = one_thread_each(job, device)
        tell(Ready())
        while task := _hear(notes):
            for note in run_task(task, job.source, stages, job.out):
                tell(note)
            tell(Done())
    except _DriverGone:
        return
    except Exception as error:
        notes.send(failure(error))


def _hear(notes: Connection) -> Task | None:
    """The next task, or None when the driver is gone."""
    try:
        return notes.recv()
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
