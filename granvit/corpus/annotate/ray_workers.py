"""Ray actors as workers: the same stages as in a local process, on every node of a cluster."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

from granvit.corpus.annotate.base import AnnotateError
from granvit.corpus.annotate.shards import BatchBegan, Counts, Task, run_task
from granvit.corpus.annotate.workers import Died, Done, Failed, Job, Message, Ready, Worker, failure, one_thread_each


class RayWorkers:
    """Actors with a core each, and a GPU each where the models go to GPUs.

    Args:
        size: how many; None for as many as the cluster has GPUs, or cores.
        address: "local" starts Ray on this machine, for the time of the run.

    Raises:
        AnnotateError: Ray is not installed or not reached, or there is no GPU where one is asked for.
    """

    def __init__(self, job: Job, size: int | None, address: str, device: str) -> None:
        try:
            import ray
        except ImportError as error:
            raise AnnotateError(f"a cluster needs Ray: pip install ray ({error})") from error
        self._ray = ray
        try:
            _check_reachable(address)
            ray.init(address=address, log_to_driver=False, logging_level="error", include_dashboard=False)
        except Exception as error:  # Ray raises bare ones too
            raise AnnotateError(f"Ray at {address!r} cannot be reached or started: {error}") from error
        resources = ray.cluster_resources()
        gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        if device == "cuda" and not gpus:
            raise AnnotateError("--device cuda: the cluster has no GPU")
        on_gpu = gpus > 0 and (device == "cuda" or (device == "auto" and job.plan.uses_gpu))
        self.size = size or (gpus if on_gpu else cores)
        self._job, self._device = job, "cuda" if on_gpu else "cpu"
        self._actor = ray.remote(num_cpus=1, num_gpus=int(on_gpu), max_restarts=0)(RayWorker)

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(self, *error: object) -> None:
        self._ray.shutdown()

    def start_worker(self) -> _Actor:
        return _Actor(self._ray, self._actor.remote(self._job, self._device))

    def poll(self, workers: Iterable[Worker], seconds: float) -> list[tuple[Worker, Message]]:
        waiting = [worker for worker in workers if isinstance(worker, _Actor) and worker.pending is not None]
        ready, _ = self._ray.wait([worker.pending for worker in waiting], timeout=seconds, fetch_local=False)
        return [(worker, worker.receive()) for worker in waiting if any(worker.pending is one for one in ready)]


def _check_reachable(address: str) -> None:
    """Ray itself tries for ten minutes to reach a machine that is not there.

    Raises:
        OSError: nobody listens at `address`.
    """
    place = urlsplit(address if "://" in address else f"//{address}")
    if place.port:
        socket.create_connection((place.hostname or "", place.port), timeout=10).close()


class RayWorker:
    """What runs in an actor."""

    def __init__(self, job: Job, device: str) -> None:
        self._job = job
        self._stages: Any = None
        self._device = device

    def prepare(self) -> Message:
        """Load the models."""
        try:
            self._stages = one_thread_each(self._job, self._device)
            return Ready()
        except Exception as error:
            return failure(error)

    def work(self, task: Task) -> Iterator[BatchBegan | Counts | Failed]:
        """Do a task; the messages are streamed to the driver."""
        try:
            yield from run_task(task, self._job.source, self._stages, self._job.out)
        except Exception as error:
            yield failure(error)


class _Actor:
    """One actor; `pending` is the message, or the stream of messages, that it owes."""

    def __init__(self, ray: Any, handle: Any) -> None:
        self._ray, self._handle = ray, handle
        self.pending: Any = handle.prepare.remote()
        self._streams = False

    def submit(self, task: Task) -> None:
        self._streams = True
        self.pending = self._handle.work.options(num_returns="streaming").remote(task)

    def receive(self) -> Message:
        try:
            if not self._streams:
                message, self.pending = self._ray.get(self.pending), None
                return message
            return self._ray.get(next(self.pending))
        except StopIteration:
            self.pending = None
            return Done()
        except self._ray.exceptions.RayActorError as error:
            self.pending = None
            return Died(str(error).splitlines()[0])

    def kill(self) -> None:
        self._ray.kill(self._handle)
