"""A process that does jobs one after the other, each with a log of its own; a job that fails costs itself alone."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

from granvit.errors import BusyError, GranvitError
from granvit.files import locked
from granvit.study.definition import Study
from granvit.study.jobs import Job

LOG = "log.txt"


@dataclass(frozen=True)
class Place:
    """Where and how jobs are done: the study's folder, its corpora, the device, whether trained models stay."""

    out: Path
    corpora: tuple[str, ...]
    device: Literal["auto", "cpu"]
    keep: bool


def serve(connection: Connection, study: Study, place: Place) -> None:
    """Do each job that comes, and answer with what came of it: "done", "busy", "failed" and a reason, or "stopped"."""
    _leave_with_parent()
    # Heavy, and wanted once a job comes.
    from transformers.utils.logging import disable_progress_bar

    from granvit.study.work import do_job, job_folder, open_images

    disable_progress_bar()
    images = None
    while (job := _next(connection)) is not None:
        answer: tuple[str, str] = "done", ""
        with logged(job_folder(place.out, job) / LOG):
            try:
                images = images or open_images(study, place.out, place.corpora)
                do_job(study, job, place.out, images, place.device, place.keep)
            except BusyError as error:
                answer = "busy", str(error)
            except KeyboardInterrupt:
                answer = "stopped", "130"
            except SystemExit as stop:  # a signal; the run is saved
                answer = "stopped", str(stop.code)
            except Exception as error:
                traceback.print_exc()
                answer = "failed", _in_one_line(error)
        with suppress(OSError):  # the study was stopped meanwhile: nobody asks any more
            connection.send(answer)


def _next(connection: Connection) -> Job | None:
    try:
        job: Job | None = connection.recv()
    except EOFError:
        return None
    return job


def _in_one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, GranvitError) and text else f"{type(error).__name__}: {text}"


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Within, everything that this process prints goes to the end of a file, whoever prints it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    before = [os.dup(number) for number in (1, 2)]
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        for number in (1, 2):
            os.dup2(file, number)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, kept in zip((1, 2), before, strict=True):
            os.dup2(kept, number)
            os.close(kept)
        os.close(file)


def _leave_with_parent() -> None:
    """Ends this process when the study's own is killed."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def do_together(study: Study, jobs: Sequence[Job], place: Place) -> int:
    """Do jobs in this process and all others of its `torchrun`, which train each job together.

    Jobs that another machine is at are left to it. One that fails ends the whole: ranks that wait for each other cannot
    tell whose fault it was.
    """
    from accelerate import PartialState
    from transformers.utils.logging import disable_progress_bar

    from granvit.study.work import agreed, do_job, job_folder, open_images
    from granvit.train.config import on_cpu

    disable_progress_bar()
    state = PartialState(cpu=on_cpu(place.device))
    images = open_images(study, place.out, place.corpora)
    for job in jobs:
        with ExitStack() as held:
            said = _claim(job, place, job_folder(place.out, job), held) if state.is_main_process else ""
            if not agreed(said, state):
                do_job(study, job, place.out, images, place.device, place.keep)
                said = "done"
            if state.is_main_process:
                print(f"{job.name}: {said}", flush=True)
    return 0


def _claim(job: Job, place: Place, folder: Path, held: ExitStack) -> str:
    """Take a job for this machine, as long as `held` lasts; else why it is not to be done here."""
    from granvit.study.results import find_result

    try:
        held.enter_context(locked(folder))
    except BusyError as error:
        return str(error)
    return "" if find_result(place.out, job) is None else "was done before"
