"""Corpora -> an endless, exactly repeatable stream of packed batches (on Grain).

What a batch holds depends on the seed and its position in the stream alone: never on threads, worker processes or
prefetching. The position in the stream is that of the last batch handed out, so a run resumes at the exact sample.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pyarrow.lib import ArrowException

from granvit.errors import GranvitError

# Grain warns at import that jax is absent, which nothing here needs.
logging.getLogger("absl").addFilter(lambda record: "jax profiler" not in record.getMessage())

import grain  # noqa: E402

from granvit.model.packing import Batch, Sample  # noqa: E402
from granvit.questions import CONVERSATION  # noqa: E402
from granvit.regions import RegionImage  # noqa: E402

# So many refusals in a row mean that the corpus and the stage do not fit, not that a few records are bad.
MAX_REJECTED_IN_A_ROW = 10_000


class Reject(Exception):
    """Raised by `prepare` for a record it cannot use; the message is the reason, counted and listed as it is."""


class FeedError(RuntimeError):
    """A record that could not be read or prepared, named in the message; its cause is a bug."""


class DataError(FeedError, GranvitError):
    """A `FeedError` whose cause lies in the data; the message says it all."""


# What reading raises for bytes that are not what was written.
_DAMAGE = (GranvitError, OSError, ArrowException)


class Records(Protocol):
    """A corpus: random access to records. Worker processes need it to be picklable."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> RegionImage: ...


PrepareSample = Callable[[RegionImage, np.random.Generator], Sample]
Collate = Callable[[list[Sample]], Batch]


LEFT_OUT = "questions left out: longer than a row (sample.max_tokens) or than sample.max_conversation"
# Of what is asked the ends that are not learned.
CUT_ANSWER = "ends of answers: longer than sample.max_answer tokens"
CUT_CONVERSATION = "ends of conversations: longer than sample.max_conversation tokens"


def lost(sample: Sample) -> dict[str, int]:
    """What of a record its sample lacks, by reason: questions, and ends of answers and of conversations."""
    cut = Counter(CUT_CONVERSATION if b.task == CONVERSATION else CUT_ANSWER for b in sample.branches if b.cut)
    return {**({LEFT_OUT: sample.left_out} if sample.left_out else {}), **cut}


# 2^64 over the golden ratio: multiples of it scatter evenly (Fibonacci hashing).
_GOLDEN = 0x9E3779B97F4A7C15


def _index_of(index: int, rank: int, world_size: int) -> int:
    """Where in the stream a rank's sample number `index` stands: of every `world_size` neighbours each rank gets one.

    In changing order, because a mixture is periodic: were it always the same neighbour, one rank could take all the
    documents and another all the photographs.
    """
    turn = (index * _GOLDEN % 2**64) >> 40
    return index * world_size + (rank + turn) % world_size


@dataclass(frozen=True)
class Remainder:
    """What is still to come of a stream after the number of ranks changed: stragglers, then all from `start` on.

    A rank that met more rejected records than the others is further on; stragglers are what the others had before them.
    """

    stragglers: tuple[int, ...] = ()
    start: int = 0

    def __getitem__(self, index: int) -> int:
        late = len(self.stragglers)
        return self.stragglers[index] if index < late else self.start + index - late

    def after(self, positions: Sequence[int]) -> Remainder:
        """What remains when rank r of `len(positions)` has taken the first `positions[r]` of its samples."""
        world, furthest = len(positions), max(positions)
        left = [_index_of(i, rank, world) for rank, taken in enumerate(positions) for i in range(taken, furthest)]
        end = furthest * world
        late = [self[index] for index in (*sorted(left), *range(end, len(self.stragglers)))]
        return Remainder(tuple(late), self[max(end, len(self.stragglers))])


class RankShard(grain.transforms.DatasetSelectionMap):
    """The samples of one rank among those that remain of the stream."""

    def __init__(self, rank: int, world_size: int, remainder: Remainder):
        self.rank, self.world_size, self.remainder = rank, world_size, remainder

    def __len__(self) -> int:
        return sys.maxsize // self.world_size - 1 - self.remainder.start

    def __getitem__(self, index: int) -> tuple[int, int]:
        return 0, self.remainder[_index_of(index, self.rank, self.world_size)]


@dataclass
class _Rejected:
    """A record that is not used, or so many of its questions or of their ends."""

    id: str
    reason: str
    count: int = 1


class _Make:
    """(source, record index) -> Sample, or why not."""

    def __init__(self, sources: Sequence[Records], prepare: PrepareSample):
        self.sources = sources
        self.prepare = prepare

    def __call__(self, where: tuple[int, int], rng: np.random.Generator) -> Sample | _Rejected:
        source, index = where
        try:
            record = self.sources[source][index]
        except Exception as error:
            message = f"record {index} of source {source}: {type(error).__name__}: {error}"
            if isinstance(error, _DAMAGE):
                raise DataError(f"{message}; `granvit corpus verify` finds what else is damaged") from error
            raise FeedError(message) from error
        try:
            return self.prepare(record, rng)
        except Reject as rejection:
            return _Rejected(record.id, str(rejection))
        except Exception as error:
            kind = DataError if isinstance(error, _DAMAGE) else FeedError
            raise kind(f"sample {record.id!r}: {type(error).__name__}: {error}") from error


class Feed:
    """An endless iterator of `Batch`.

    Every source is shuffled anew in each of its epochs; sources are mixed by weight. Over all ranks every record
    of a source comes up exactly once per epoch. Rejected records are skipped and the batch filled with the next.

    Attributes:
        rejected: how many samples were rejected, by reason; besides how much of the others is missing (`lost`).
        quarantine: a JSON-lines file that lists each of these records once (id, reason), or None.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Records, float]],
        prepare: PrepareSample,
        collate: Collate,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        threads: int = 2,
        prefetch: int = 2,
        quarantine: Path | None = None,
    ):
        """`batch_size` is images per batch of this rank. `prefetch` is the number of batches made ahead, by
        `threads` background threads (Pillow releases the interpreter while it decodes) or by `workers` processes;
        0 makes every batch when it is asked for.

        Raises:
            ValueError: no sources, an empty one, a weight that is not positive, or a rank outside the world.
        """
        if not sources or any(not len(records) for records, _ in sources):
            raise GranvitError("a feed needs at least one source, and no empty one")
        if any(not weight > 0 for _, weight in sources):
            raise GranvitError(f"weights must be positive, got {[weight for _, weight in sources]}")
        if not 0 <= rank < world_size or batch_size < 1:
            raise GranvitError(f"rank {rank} of {world_size} with batches of {batch_size} is impossible")
        self.rank, self.world_size, self.batch_size, self.seed = rank, world_size, batch_size, seed
        self.rejected: Counter[str] = Counter()
        self.quarantine = quarantine
        self._collate = collate
        self._workers, self._threads, self._prefetch = workers, threads, prefetch
        self._sizes = [len(records) for records, _ in sources]
        self._weights = [float(weight) for _, weight in sources]
        self._all_samples = self._stream(_Make([records for records, _ in sources], prepare))
        self._go_to(Remainder(), 0)
        self._listed: set[tuple[str, str]] | None = None
        self._items: Any = None
        self._collator: ThreadPoolExecutor | None = None
        self._next: Future[tuple[Batch, int, list[_Rejected]]] | None = None

    def _stream(self, make: _Make) -> grain.MapDataset:
        """The samples of all ranks by position, which is what the random generator of each follows."""
        seeds = np.random.SeedSequence(self.seed).generate_state(len(self._sizes) + 1)
        places = [
            grain.MapDataset.range(size).map(partial(_place, k)).shuffle(seed=int(seeds[k])).repeat()
            for k, size in enumerate(self._sizes)
        ]
        mixed = places[0] if len(places) == 1 else grain.MapDataset.mix(places, self._weights)
        return mixed.random_map(make, seed=int(seeds[-1]))

    def _go_to(self, remainder: Remainder, position: int) -> None:
        """Makes this rank's samples of `remainder` the stream, to be read from `position` on."""
        self._remainder, self._position = remainder, position
        shard = RankShard(self.rank, self.world_size, remainder)
        self._samples = grain.MapDataset.select_from_datasets([self._all_samples], shard)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            DataError: a record is damaged (named in the message), or every record is rejected.
            FeedError: preparing a record failed for another reason.
        """
        try:
            if self._prefetch:
                self._collator = self._collator or ThreadPoolExecutor(1, thread_name_prefix="feed")
                pending = self._next or self._collator.submit(self._make_batch, self._position)
                batch, position, rejected = pending.result()
                self._next = self._collator.submit(self._make_batch, position)
            else:
                batch, position, rejected = self._make_batch(self._position)
        except BaseException:
            # Else a caller who goes on would miss the samples of the broken batch.
            self.close()
            raise
        self._position = position
        self._record(rejected)
        return batch

    def _make_batch(self, position: int) -> tuple[Batch, int, list[_Rejected]]:
        """The batch that begins at `position`, where the next one begins, and what was left out."""
        if self._items is None:
            self._items = self._open(position)
        samples: list[Sample] = []
        rejected: list[_Rejected] = []
        in_a_row = 0
        while len(samples) < self.batch_size:
            item = next(self._items)
            position += 1
            if isinstance(item, _Rejected):
                rejected.append(item)
                in_a_row += 1
            else:
                samples.append(item)
                in_a_row = 0
                rejected += [_Rejected(item.id, reason, count) for reason, count in lost(item).items()]
            # Many times all there is: what was not asked by chance is rejected too, and may be asked the next time.
            if in_a_row >= min(max(10 * sum(self._sizes), 1_000), MAX_REJECTED_IN_A_ROW):
                reasons = dict(Counter(r.reason for r in rejected))
                raise DataError(f"{in_a_row} records in a row were rejected, the last {item.id!r}: {reasons}")
        return self._collate(samples), position, rejected

    def _open(self, position: int) -> Any:
        """Grain's iterator over the samples from `position` on."""
        ahead = self._prefetch * self.batch_size
        threads = self._threads if ahead else 0
        reading = grain.ReadOptions(num_threads=min(threads, ahead), prefetch_buffer_size=ahead)
        samples = self._samples.slice(slice(position, None)).to_iter_dataset(reading)
        if self._workers:
            per_worker = max(1, ahead // self._workers)
            samples = samples.mp_prefetch(grain.MultiprocessingOptions(self._workers, per_worker), _leave_with_parent)
        return iter(samples)

    def _record(self, rejected: list[_Rejected]) -> None:
        for r in rejected:
            self.rejected[r.reason] += r.count
        if self.quarantine is None or not rejected:
            return
        if self._listed is None:
            self._listed = _listed(self.quarantine)
        # Not of each record that an end was cut of: many are, and they are trained on.
        refused = ((r.id, r.reason) for r in rejected if r.reason not in (CUT_ANSWER, CUT_CONVERSATION))
        new = dict.fromkeys(one for one in refused if one not in self._listed)
        self._listed.update(new)
        with self.quarantine.open("a") as file:
            file.writelines(json.dumps({"id": id, "reason": reason}) + "\n" for id, reason in new)

    def state(self) -> dict[str, Any]:
        """The position after the last batch handed out, as JSON-able values."""
        remainder = {"stragglers": list(self._remainder.stragglers), "start": self._remainder.start}
        return {"position": self._position, "rejected": dict(self.rejected), **self._identity(), **remainder}

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a position to mean the same samples."""
        names = {"seed": self.seed, "rank": self.rank, "world_size": self.world_size}
        return {**names, "sizes": self._sizes, "weights": self._weights}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on exactly where the feed that gave `state` stood.

        Raises:
            ValueError: the state is of another seed, rank, world size or mixture; the message names the field.
        """
        self._check(state, self._identity())
        self.close()
        self._go_to(_remainder_of(state), state["position"])
        self.rejected = Counter(state["rejected"])

    def restore_from(self, states: Sequence[dict[str, Any]]) -> None:
        """Goes on where all ranks' feeds together stood, `states` being theirs in order of rank.

        Another number of ranks takes what is left of the stream: no sample is lost or comes up twice. Where nothing
        was rejected, the batches of all ranks together are those which the former ranks would have made.

        Raises:
            ValueError: a state is of another seed or mixture; the message names the field.
        """
        if len(states) == self.world_size:
            self.restore(states[self.rank])
            return
        for rank, state in enumerate(states):
            self._check(state, {**self._identity(), "rank": rank, "world_size": len(states)})
        self.close()
        self._go_to(_remainder_of(states[0]).after([state["position"] for state in states]), 0)
        self.rejected = Counter()
        if self.rank == 0:
            for state in states:
                self.rejected.update(state["rejected"])

    @staticmethod
    def _check(state: dict[str, Any], expected: dict[str, Any]) -> None:
        for name, value in expected.items():
            if state.get(name) != value:
                raise GranvitError(f"{name} is {state.get(name)!r} in the saved feed and {value!r} in this one")

    def close(self) -> None:
        """Ends threads and worker processes. The feed can still be read on: it opens again where it stood."""
        if self._collator is not None:
            self._collator.shutdown(wait=True, cancel_futures=True)
        if self._items is not None:
            self._items.close()
        self._collator = self._next = self._items = None

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _remainder_of(state: dict[str, Any]) -> Remainder:
    return Remainder(tuple(state["stragglers"]), state["start"])


def _listed(quarantine: Path) -> set[tuple[str, str]]:
    """What an earlier part of the run wrote down; a line that a kill cut short is removed, and written again."""
    listed: set[tuple[str, str]] = set()
    if not quarantine.exists():
        return listed
    content = quarantine.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(quarantine, len(whole))
    for line in whole.splitlines():
        with suppress(ValueError, TypeError, KeyError, RecursionError):  # somebody else's line only tells less
            row = json.loads(line)
            listed.add((row["id"], row["reason"]))
    return listed


def _place(source: int, index: int) -> tuple[int, int]:
    return source, index


def _leave_with_parent(worker: int, workers: int) -> None:
    """In a worker process: ends it when the run is killed, which Grain's workers would outlive."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
