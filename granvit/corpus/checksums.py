"""Checksums of corpora that are read here and there rather than from end to end, as training does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self, TypeVar

from granvit.corpus.select import Subset
from granvit.corpus.store import Corpus

T = TypeVar("T")
R = TypeVar("R")


class ShardCheck:
    """Holds every shard of some corpora to its checksum, once, in the background. Use as a context manager.

    Of several processes each checks its share, so that all of them together read the corpora once. The thread that
    reads and hashes lets others run meanwhile.

    Args:
        sources: what is read: corpora, parts of them, or what has no files and so no checksums.
        rank, ranks: which share is this process's.
    """

    def __init__(self, sources: Iterable[object], rank: int = 0, ranks: int = 1) -> None:
        found = (source.corpus if isinstance(source, Subset) else source for source in sources)
        corpora = {id(corpus): corpus for corpus in found if isinstance(corpus, Corpus)}
        shards = [(corpus, shard) for corpus in corpora.values() for shard in range(corpus.shards)]
        self._shards = shards[rank::ranks]
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checksums")
        self._checked: Future[None] | None = None

    def __enter__(self) -> Self:
        self._checked = self._pool.submit(self._check)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._pool.shutdown()

    def _check(self) -> None:
        for corpus, shard in self._shards:
            if self._stopped.is_set():
                return
            corpus.check_shard(shard)

    def before(self, work: Callable[[T], R]) -> Callable[[T], R]:
        """`work`, which is not done any more once a damaged shard was found: it raises `CorpusError` instead."""

        def checked(argument: T) -> R:
            if self._checked is not None and self._checked.done():
                self._checked.result()
            return work(argument)

        return checked

    def finish(self) -> None:
        """Wait until all is checked.

        Raises:
            CorpusError: a shard is not what was written.
        """
        assert self._checked is not None, "ShardCheck is used as a context manager"
        self._checked.result()
