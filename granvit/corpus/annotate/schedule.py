"""Which task comes next, and what to do when a worker dies over one: redo it, then find the image that kills."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from granvit.corpus.annotate.base import AnnotateError
from granvit.corpus.annotate.shards import Task

# A worker may be killed by something else, so an image must be alone with two deaths before it is blamed.
DEATHS_TO_PROBE = 2
DEATHS_TO_BLAME = 2
# A batch whose images do no harm one by one, but still kill their worker together.
PROBES_OF_A_BATCH = 5
# Dying with no image in work, for instance of a full disk, is nobody's fault but the installation's.
DEATHS_IN_BETWEEN = 5

CRASHED, TIMEOUT = "crashed-annotator", "timeout"


@dataclass
class _Trouble:
    """What has happened to one shard."""

    excluded: dict[int, tuple[str, str]] = field(default_factory=dict)
    deaths: Counter[tuple[int, ...]] = field(default_factory=Counter)
    probes: Counter[tuple[int, ...]] = field(default_factory=Counter)


class Schedule:
    """Hands out the shards that are to be done, each until it is done.

    Args:
        shards: their numbers, in order.
        make: the task of a shard, with nothing excluded.
    """

    def __init__(self, shards: Iterable[int], make: Callable[[int], Task]) -> None:
        self._make = make
        self._waiting: deque[tuple[int, tuple[int, ...]]] = deque((shard, ()) for shard in shards)
        self._trouble: dict[int, _Trouble] = {}
        self._in_work: set[int] = set()

    @property
    def open(self) -> int:
        """How many shards are not done."""
        return len(self._waiting) + len(self._in_work)

    def next(self) -> Task | None:
        """The next task, or None where all that is left is in work."""
        if not self._waiting:
            return None
        shard, probe = self._waiting.popleft()
        self._in_work.add(shard)
        task = self._make(shard)
        excluded = self._trouble[shard].excluded if shard in self._trouble else {}
        return Task(shard, task.inputs, task.batch, dict(excluded), probe)

    def finished(self, task: Task) -> None:
        """The task is done; after a probe without harm, the shard is tried again."""
        self._in_work.remove(task.shard)
        if task.probe:
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
        trouble = self._trouble.setdefault(task.shard, _Trouble())
        trouble.deaths[positions] += 1
        if not positions and trouble.deaths[positions] >= DEATHS_IN_BETWEEN:
            raise AnnotateError(f"shard {task.shard}: {DEATHS_IN_BETWEEN} workers died with no image in work: {detail}")
        probe: tuple[int, ...] = ()
        if task.probe:
            probe = self._after_probe(task, positions, trouble, reason, detail)
        elif positions and trouble.deaths[positions] >= (1 if reason == TIMEOUT else DEATHS_TO_PROBE):
            probe = self._before_probe(positions, trouble, reason, detail)
        self._waiting.appendleft((task.shard, probe))

    def _before_probe(self, positions: tuple[int, ...], trouble: _Trouble, reason: str, detail: str) -> tuple[int, ...]:
        trouble.deaths[positions] = 0
        trouble.probes[positions] += 1
        candidates = tuple(position for position in positions if position not in trouble.excluded)
        if trouble.probes[positions] <= PROBES_OF_A_BATCH:
            return candidates
        told = f"{_told(reason, detail)}, though only together with its batch"
        trouble.excluded |= {position: (reason, told) for position in candidates}
        return ()

    def _after_probe(
        self, task: Task, positions: tuple[int, ...], trouble: _Trouble, reason: str, detail: str
    ) -> tuple[int, ...]:
        if not positions:
            return task.probe
        (position,) = positions
        rest = task.probe[task.probe.index(position) :]
        if trouble.deaths[positions] < DEATHS_TO_BLAME:
            return rest
        trouble.excluded[position] = (reason, _told(reason, detail))
        return rest[1:]


def _told(reason: str, detail: str) -> str:
    """For the quarantine, which is to be the same wherever the workers are: how one died differs from kind to kind."""
    return "the worker died over this image" if reason == CRASHED else detail
