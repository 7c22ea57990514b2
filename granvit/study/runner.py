"""A study's jobs run one after the other in a few processes, with the time left; what fails is told at the end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TextIO

from granvit.errors import GranvitError
from granvit.study.definition import Study
from granvit.study.jobs import Job, remaining_work
from granvit.study.results import find_result
from granvit.study.worker import LOG, Place, serve

# Seconds between two looks at jobs that others are at.
_LOOK_AGAIN = 20.0


@dataclass
class Outcome:
    """What came of a study: jobs by what became of them; `failed` with the reason of each."""

    done: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass
class _Worker:
    process: Any
    connection: Connection
    job: Job | None = None
    since: float = 0.0


def run_jobs(study: Study, jobs: Sequence[Job], place: Place, processes: int, to: TextIO = sys.stdout) -> Outcome:
    """Do the jobs that have no result yet, so many at a time.

    Jobs that another machine is at are left to it and looked at again; those that have come to a result meanwhile are
    not done twice.

    Raises:
        GranvitError: a result in the folder is of other settings. SystemExit, KeyboardInterrupt: the study was stopped;
            runs are saved, and the same command goes on.
    """
    return _Runner(study, place, to).run(jobs, processes)


class _Runner:
    def __init__(self, study: Study, place: Place, to: TextIO):
        self.study, self.place, self.to = study, place, to
        self.context = multiprocessing.get_context("spawn")
        self.outcome = Outcome()
        self.workers: list[_Worker] = []
        self.began = time.monotonic()
        self.worked = 0.0

    def run(self, jobs: Sequence[Job], processes: int) -> Outcome:
        open_jobs = [job for job in jobs if find_result(self.place.out, job) is None]
        self.outcome.done = [job.name for job in jobs if job not in open_jobs]
        self.total, self.left = len(jobs), list(open_jobs)
        self.expected = dict(zip((j.name for j in open_jobs), remaining_work(self.study, open_jobs), strict=True))
        self._say(f"{len(self.outcome.done)} of {self.total} jobs are done, {len(open_jobs)} are to be run")
        before = signal.signal(signal.SIGTERM, _interrupted)
        try:
            self.workers = [self._start() for _ in range(min(processes, len(open_jobs)))]
            self._all_jobs()
        except BaseException:
            self._stop()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
            for worker in self.workers:
                worker.connection.close()
            for worker in self.workers:
                worker.process.join()
        return self.outcome

    def _all_jobs(self) -> None:
        busy: list[Job] = []
        while True:
            for worker in self.workers:
                if worker.job is None and self.left:
                    self._give(worker)
            running = [worker for worker in self.workers if worker.job is not None]
            if not running:
                busy = [job for job in busy if not self._came_to_a_result(job)]
                self.outcome.elsewhere = [job.name for job in busy]
                return
            for connection in wait([worker.connection for worker in running], timeout=_LOOK_AGAIN):
                worker = next(w for w in running if w.connection is connection)
                self._take(worker, busy)

    def _came_to_a_result(self, job: Job) -> bool:
        if find_result(self.place.out, job) is None:
            return False
        self.outcome.done.append(job.name)
        return True

    def _give(self, worker: _Worker) -> None:
        """The next job without a result; one that waits for stages now in training only where nothing else is left."""
        being_trained = {w.job.shared_folder for w in self.workers if w.job is not None and w.job.shared_folder}
        while self.left:
            free = [job for job in self.left if job.shared_folder not in being_trained]
            job = (free or self.left)[0]
            self.left.remove(job)
            if not self._came_to_a_result(job):
                worker.job, worker.since = job, time.monotonic()
                worker.connection.send(job)
                return

    def _take(self, worker: _Worker, busy: list[Job]) -> None:
        job = worker.job
        assert job is not None
        try:
            answer, reason = worker.connection.recv()
        except EOFError:
            worker.process.join()
            answer, reason = "failed", f"its process ended with status {worker.process.exitcode}"
            self.workers[self.workers.index(worker)] = self._start()
        worker.job = None
        if answer == "stopped":
            raise SystemExit(int(reason))
        if answer == "busy":
            busy.append(job)
            self._say(f"{job.name}: {reason}")
            return
        if answer == "failed":
            self.outcome.failed[job.name] = reason
            log = self.place.out / "jobs" / job.arm.name / f"seed{job.seed}" / LOG
            self._say(f"{job.name}: failed: {reason} (see {log})")
        else:
            self.outcome.done.append(job.name)
        self.worked += self.expected[job.name]
        seconds = time.monotonic() - worker.since
        finished = len(self.outcome.done) + len(self.outcome.failed)
        self._say(f"[{finished}/{self.total}] {job.name}: {duration(seconds)}{self._time_left()}")

    def _time_left(self) -> str:
        waiting = [*self.left, *(w.job for w in self.workers if w.job is not None)]
        if not waiting or not self.worked:
            return ""
        pace = (time.monotonic() - self.began) / self.worked
        return f"; {len(waiting)} left, about {duration(pace * sum(self.expected[job.name] for job in waiting))}"

    def _start(self) -> _Worker:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=serve, args=(theirs, self.study, self.place))
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _stop(self) -> None:
        """Ends the workers' runs, each after a step, with what they have saved."""
        for worker in self.workers:
            if worker.process.is_alive() and worker.process.pid:
                os.kill(worker.process.pid, signal.SIGTERM)

    def _say(self, text: str) -> None:
        print(text, file=self.to, flush=True)


def _interrupted(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


def duration(seconds: float) -> str:
    """Seconds as people say them: "1 h 05 min", "3 min 20 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def plan_lines(study: Study, jobs: Sequence[Job], out: Path, processes: int) -> list[str]:
    """What would be run, job by job, and how long it may take; what has a result is said to be done."""
    open_jobs = [job for job in jobs if find_result(out, job) is None]
    expected = dict(zip((job.name for job in open_jobs), remaining_work(study, open_jobs), strict=True))
    lines = []
    trained: dict[str, str] = {}
    for job in jobs:
        stages = " + ".join(
            f"{stage.kind} {stage.loop.steps:,} x {stage.loop.batch_size * stage.loop.accumulate}"
            for stage in job.recipe.stages
        )
        note = "done" if job.name not in expected else ""
        folder = job.shared_folder
        if not note and folder is not None:
            kinds = " + ".join(stage.kind for stage in job.recipe.stages[: job.shared])
            note = f"{kinds} as {trained[folder]}" if folder in trained else ""
            trained.setdefault(folder, job.name)
        if job.arm.flops_of is not None:
            note = "; ".join(filter(None, [note, f"steps as many as take the arithmetic of {job.arm.flops_of}"]))
        if job.name in expected and study.seconds:
            note = "; ".join(filter(None, [note, f"about {duration(expected[job.name])}"]))
        lines.append(f"{job.name:34s} {stages or 'nothing to train':44s} {note}".rstrip())
    steps = sum(stage.loop.steps for job in open_jobs for stage in job.recipe.stages)
    total = f"{len(jobs)} jobs, {len(jobs) - len(open_jobs)} done; {steps:,} steps in {len(open_jobs)} jobs to be run"
    if study.seconds and open_jobs:
        total += f", about {duration(sum(expected.values()) / processes)} on {processes} core(s)"
    return [*lines, total]


def check_processes(processes: int) -> None:
    if processes < 1:
        raise GranvitError(f"--processes {processes}: must be at least 1")
