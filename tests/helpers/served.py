"""Server processes for tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Process:
    """A server process on loopback that can be killed and started again on its port.

    Args:
        command: the command line, given the port.
        ready: the path to ask until it answers, whatever it answers.
        out: file for what the process prints.
    """

    def __init__(self, command: Callable[[int], list[str]], ready: str, out: Path, env: dict[str, str] | None = None):
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self._command, self._ready, self._out = command(self.port), ready, out
        self._env = {**os.environ, **(env or {})}
        self._process: subprocess.Popen | None = None

    def start(self, patience_s: float = 20) -> None:
        with self._out.open("ab") as out:
            self._process = subprocess.Popen(self._command, stdout=out, stderr=out, env=self._env)
        end = time.monotonic() + patience_s
        while time.monotonic() < end and self._process.poll() is None:
            try:
                urllib.request.urlopen(self.address + self._ready, timeout=5).close()
                return
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.02)
        raise AssertionError(f"the server did not start:\n{self._out.read_text()[-2000:]}")

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
