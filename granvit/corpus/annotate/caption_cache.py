"""Every answer of a captioner, kept from the moment it arrives: what was paid for once is never asked again."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

from granvit.corpus.annotate.base import AnnotateError
from granvit.corpus.annotate.caption_answers import Answer

# How long a writer waits for the others, seconds; a write takes milliseconds.
_PATIENCE_S = 60
_KEYS_AT_ONCE = 500
# What the column "cut" says of how an answer ended; files of before know the first two.
_ENDS = (("", False), ("", True), ("caption-refused", False), ("caption-tool-call", False))


def default_path() -> Path:
    """One cache for all runs of this user: `$XDG_CACHE_HOME/granvit/captions.sqlite`."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "granvit" / "captions.sqlite"


class AnswerCache:
    """Answers by the key of their request, in an SQLite file that any number of processes of one machine may share.

    An answer is in the file when `put` returns; a process killed after that loses nothing. The file must be on a disk
    of the machine, since SQLite's write-ahead log doesn't work on network file systems.

    Raises:
        AnnotateError: the file cannot be opened, is no SQLite file, or cannot be written (a full disk).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Answers are written by the thread that receives them, and read by the one that asks.
            self._file = sqlite3.connect(path, timeout=_PATIENCE_S, isolation_level=None, check_same_thread=False)
            self._write_ahead()
            self._file.execute("PRAGMA synchronous=NORMAL")
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS answers"
                " (key TEXT PRIMARY KEY, model TEXT NOT NULL, text TEXT NOT NULL, cut INTEGER NOT NULL) WITHOUT ROWID"
            )
        except (sqlite3.Error, OSError) as error:
            raise AnnotateError(f"{path}: cannot be used as the cache of captions: {error}") from error

    def _write_ahead(self) -> None:
        """Switch a new file to a write-ahead log. While another process does the same SQLite gives up at once."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                self._file.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def get(self, keys: Sequence[str]) -> dict[str, Answer]:
        """The answers that are known, by key."""
        known: dict[str, Answer] = {}
        try:
            for start in range(0, len(keys), _KEYS_AT_ONCE):
                some = keys[start : start + _KEYS_AT_ONCE]
                marks = ",".join("?" * len(some))
                rows = self._file.execute(f"SELECT key, text, cut FROM answers WHERE key IN ({marks})", some)
                known.update({key: Answer(text, _ENDS[end][1], _ENDS[end][0]) for key, text, end in rows})
        except sqlite3.Error as error:
            raise AnnotateError(f"{self.path}: the cache of captions cannot be read: {error}") from error
        return known

    def put(self, key: str, model: str, answer: Answer) -> None:
        """Remember an answer; of two to the same question the first one stays."""
        try:
            row = (key, model, answer.text, _ENDS.index((answer.refusal, answer.cut and not answer.refusal)))
            self._file.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?)", row)
        except sqlite3.Error as error:
            raise AnnotateError(f"{self.path}: the cache of captions cannot be written: {error}") from error
