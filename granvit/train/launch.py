"""The same work in several processes of one machine: what `torchrun` does, for a command that starts itself.

On a CPU two processes of one thread each train nearly twice as fast as one process of two threads: small matrices
gain little from a second thread.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp


def processes_for(batch_size: int) -> int:
    """Two where there are two cores to themselves, no GPU, and a batch to halve; otherwise one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 2 if cores >= 2 and batch_size % 2 == 0 and not torch.cuda.is_available() else 1


def launch(work: Callable[..., None], processes: int, reported: tuple[type[Exception], ...], *args: Any) -> None:
    """Call `work(*args)` in so many processes that know each other as ranks; one process is this one.

    `work` and `args` travel to spawned processes. The threads of this process are shared out among them.

    Raises:
        Exception: the first that one of them raised, if it is of the kinds `reported`.
        torch.multiprocessing.ProcessRaisedException: one of them raised another; it carries the traceback.
        SystemExit: one of them left so. KeyboardInterrupt: this process was interrupted, and all of them have ended.
    """
    if processes == 1:
        work(*args)
        return
    errors = mp.get_context("spawn").SimpleQueue()
    threads = max(1, torch.get_num_threads() // processes)
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # that it ends ranks when one has ended
    ranks = mp.spawn(_rank, (processes, _free_port(), threads, reported, errors, work, args), processes, join=False)
    interrupted = False
    try:
        while True:
            try:
                if ranks.join():
                    break
            except KeyboardInterrupt:  # the ranks stop by themselves, and save first
                interrupted = True
                for process in ranks.processes:
                    if process.is_alive():
                        os.kill(process.pid, signal.SIGINT)
        if interrupted:
            raise KeyboardInterrupt
    except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
        if not errors.empty():
            raise errors.get() from None
        if isinstance(error, mp.ProcessExitedException) and error.exit_code > 0:
            raise SystemExit(error.exit_code) from None
        if interrupted:
            raise KeyboardInterrupt from None
        raise


def _rank(
    rank: int,
    processes: int,
    port: int,
    threads: int,
    reported: tuple[type[Exception], ...],
    errors: Any,
    work: Callable[..., None],
    args: tuple[Any, ...],
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(threads),
    }
    torch.set_num_threads(threads)
    try:
        work(*args)
    except reported as error:
        errors.put(error)
        raise SystemExit(1) from error
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
