"""Odd checkpoints for the fuzzer: every field of every settings file of a tiny checkpoint, with every odd value."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILES = (
    "config.json",
    "granvit.json",
    "processor_config.json",
    "tokenizer_config.json",
    "generation_config.json",
    "tokenizer.json",
)
DELETED = object()
ODD = (
    DELETED,
    None,
    0,
    -1,
    1,
    3,
    10**9,
    10**30,
    0.5,
    float("nan"),
    float("inf"),
    True,
    False,
    "",
    "x",
    "../x",
    "\ud800",
    [],
    [0],
    [None],
    ["a", "b"],
    {},
    {"a": {"b": []}},
)


def paths_of(content: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every value of a JSON file stands; of long lists and tables the first entries alone."""
    if before:
        yield before
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in list(entries)[:12]:
        yield from paths_of(value, (*before, key))


def cases(checkpoint: Path, seed: int) -> list[tuple[str, tuple[Any, ...], int]]:
    """All (file, path of the value, number of the odd value), in an order of the seed's."""
    found = [
        (file, path, odd)
        for file in FILES
        for path in paths_of(json.loads((checkpoint / file).read_text(encoding="utf-8")))
        for odd in range(len(ODD))
    ]
    random.Random(seed).shuffle(found)
    return found


def spoil(checkpoint: Path, file: str, path: tuple[Any, ...], odd: int) -> None:
    """Put an odd value into a file of a checkpoint."""
    content = json.loads((checkpoint / file).read_text(encoding="utf-8"))
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    if ODD[odd] is DELETED:
        del inner[path[-1]]
    else:
        inner[path[-1]] = ODD[odd]
    (checkpoint / file).write_text(json.dumps(content), encoding="utf-8")
