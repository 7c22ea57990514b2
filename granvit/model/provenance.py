"""What a checkpoint learned from, by the sources that the records of its corpora name; kept beside its weights.

Every training adds to it, so that a model which goes on from another one knows the other's sources too. A checkpoint of
a version that kept none has none, and so have all that go on from it: nothing is said of them.
"""

from __future__ import annotations

import json
from pathlib import Path

from granvit.corpus.synthetic.scenes import SOURCES
from granvit.errors import CheckpointError
from granvit.loading.checkpoint_files import LoadError, read_json

PROVENANCE_FILE = "provenance.json"

# Names of sources; None where it is not known what they were.
Sources = frozenset[str] | None


def read_sources(folder: Path) -> Sources:
    """The sources that a checkpoint's folder names.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / PROVENANCE_FILE
    if not path.exists():
        return None
    try:
        names = read_json(path).get("sources")
    except LoadError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{path}: sources is {str(names)[:60]}, not a list of texts")
    return frozenset(names)


def write_sources(sources: Sources, folder: Path) -> None:
    if sources is not None:
        (folder / PROVENANCE_FILE).write_text(json.dumps({"sources": sorted(sources)}, indent=2) + "\n")


def joined(*all_sources: Sources) -> Sources:
    """All of them together; not known where one is not."""
    known = [sources for sources in all_sources if sources is not None]
    return frozenset[str]().union(*known) if len(known) == len(all_sources) else None


def drawn_alone(sources: Sources) -> bool:
    """Whether every picture that was learned from is known to be one that this package drew, and there were some."""
    return bool(sources) and SOURCES.issuperset(sources or ())
