"""Answers on disk as they are given, so that an evaluation goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from granvit.errors import GranvitError
from granvit.evaluate.items import Item, Task
from granvit.files import open_regular
from granvit.loading.run_folder import checkpoint_of

ANSWERS = "answers.jsonl"


class Journal:
    """A file of answers, one JSON object a line, the first one naming the checkpoint that gave them.

    An answer is used again where task, key and all that the model was shown and asked are the same; a line cut off by a
    crash is dropped.

    Raises:
        ValueError: the file holds another checkpoint's answers, or is no journal.
    """

    def __init__(self, path: Path, checkpoint: str) -> None:
        self.path = path
        self._known: dict[tuple[str, str, str], dict[str, Any]] = {}
        header = {"journal": "granvit-answers", "checkpoint": checkpoint}
        end = self._read(header) if path.exists() else 0
        self._file = path.open("r+b" if end else "wb")
        self._file.seek(end)
        self._file.truncate()
        if not end:
            self._write(header)

    def _read(self, header: dict[str, str]) -> int:
        """Reads what is there; returns where the last whole line ends."""
        end = 0
        with open_regular(self.path) as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    break
                row = self._row(line, number)
                if number == 1 and row.get("journal") != header["journal"]:
                    raise GranvitError(f"{self.path}: line 1 is not that of a file of answers")
                if number == 1 and row["checkpoint"] != header["checkpoint"]:
                    raise GranvitError(
                        f"{self.path} holds another checkpoint's answers: choose another --out, or remove it"
                    )
                if number > 1:
                    self._known[row["task"], row["key"], row["asked"]] = row
                end += len(line)
        return end

    def _row(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise GranvitError(f"{self.path}: line {number}: {error}") from error
        if not isinstance(row, dict) or (number > 1 and not {"task", "key", "asked", "said", "size"} <= row.keys()):
            raise GranvitError(f"{self.path}: line {number} is not an answer")
        return row

    def recall(self, item: Item, task: Task) -> bool:
        """Fills in the answer to a question, where it was given before; says whether it was."""
        row = self._known.get((item.task, item.key, fingerprint(item, task)))
        if row is None:
            return False
        item.said = row["said"]
        item.found = tuple(row["found"]) if row.get("found") else None
        item.size = (row["size"][0], row["size"][1])
        return True

    def write(self, items: Sequence[Item], tasks: dict[str, Task]) -> None:
        """Appends answers; they are on disk when this returns, as far as a killed process is concerned."""
        for item in items:
            row: dict[str, Any] = {"task": item.task, "key": item.key, "asked": fingerprint(item, tasks[item.task])}
            self._write({**row, "said": item.said, "found": item.found, "size": item.size})
        self._file.flush()

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def fingerprint(item: Item, task: Task) -> str:
    """Short for all that decides the answer besides checkpoint and image: questions that share it are the same."""
    box = None if item.how == "phrase" or item.box is None else [float(v) for v in item.box]
    parts = [item.id, item.how, item.asked, box, task.window if item.how == "box" else None, task.longest]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def checkpoint_id(folder: Path) -> str:
    """What tells a checkpoint from another: a digest over its settings and weights."""
    root = checkpoint_of(folder)
    digest = hashlib.sha256()
    for path in sorted((*root.glob("*.json"), *root.glob("*.safetensors"), *root.glob("*.jinja"))):
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
