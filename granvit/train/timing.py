"""Where the time of a training step goes: sections that the loop and the stages name, and the shares of each.

    with section("encode"):
        ...

Outside a run that measures, `section` does nothing. Within one, every boundary between sections is a mark on the
device's own time line (CUDA events, without waiting for the device), so kernels count where they run and not where
they are launched.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch

# What lies in no section.
OTHER = "other"
# The sections of a step, in the order in which they are told.
SECTIONS = ("data", "encode", "teacher", "language", "head", "backward", "optimizer", OTHER)


class Clock(Protocol):
    """A time line on which moments are marked, and their distance told later."""

    def mark(self) -> Any: ...

    def seconds(self, start: Any, end: Any) -> float: ...

    def wait(self, mark: Any) -> None:
        """Returns when the moment has passed, so that distances to it can be told."""


class HostClock:
    """The processor's own."""

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def wait(self, mark: float) -> None:
        pass


class CudaClock:
    """The current CUDA stream's. A device that waits for data stands still in the section that waits."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return start.elapsed_time(end) / 1000

    def wait(self, mark: torch.cuda.Event) -> None:
        mark.synchronize()


class Timing:
    """Measures the sections of everything that runs within `with timing.running():`, in one thread.

    A section inside another is taken out of it, so the sections' seconds add up to the whole.
    """

    def __init__(self, clock: Clock):
        self.clock = clock
        self._names = [OTHER]
        self._marks: list[tuple[Any, str]] = []  # each with the section that begins there

    @classmethod
    def on(cls, device: torch.device) -> Timing:
        """With the clock that is exact for a device."""
        return cls(CudaClock() if device.type == "cuda" else HostClock())

    @contextmanager
    def running(self) -> Iterator[None]:
        global _current
        before, _current = _current, self
        self._marks = [(self.clock.mark(), OTHER)]
        try:
            yield
        finally:
            _current = before

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        self._names.append(name)
        self._marks.append((self.clock.mark(), name))
        try:
            yield
        finally:
            self._names.pop()
            self._marks.append((self.clock.mark(), self._names[-1]))

    def read(self) -> dict[str, float]:
        """Seconds per section since the last reading. Waits for the device."""
        end = self.clock.mark()
        self.clock.wait(end)
        seconds: dict[str, float] = defaultdict(float)
        ends = [mark for mark, _ in self._marks[1:]] + [end]
        for (start, name), after in zip(self._marks, ends, strict=True):
            seconds[name] += self.clock.seconds(start, after)
        self._marks = [(end, self._names[-1])]
        return dict(seconds)


_current: Timing | None = None
_nothing = nullcontext()


def section(name: str) -> AbstractContextManager[None]:
    """What runs in this context counts as `name`, if a run measures."""
    return _nothing if _current is None else _current.section(name)
