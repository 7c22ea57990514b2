"""What the corpus commands share."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from granvit.corpus.layout import read_manifest
from granvit.corpus.store import Corpus


def fail(message: str) -> int:
    """Print what went wrong, in one line; the exit status of a command that could do nothing."""
    print(f"granvit: {message}", file=sys.stderr)
    return 1


def warn(message: str) -> None:
    """Print what may have been meant otherwise; the command goes on."""
    print(f"granvit: {message}", file=sys.stderr)


def status_of(out: Path, made_of: Sequence[Corpus]) -> int:
    """The exit status of a command that wrote a corpus: 1, and a line that says so, where no region came through."""
    given = sum(corpus.manifest["regions"] for corpus in made_of)
    if given and not read_manifest(out)["regions"]:
        return fail(f"{out} holds none of the {given} regions of {', '.join(str(corpus.path) for corpus in made_of)}")
    return 0
