"""Lists that say which picture belongs to which split, one name a line, as VOC's ``ImageSets/Main/val.txt``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from granvit.corpus.check import LeftOut
from granvit.corpus.importers.base import needed, read_text
from granvit.corpus.importers.pictures import SUFFIXES
from granvit.corpus.layout import CorpusError

# In this order: of a picture in two lists, the held-out split counts.
_SPLITS = ("test", "val", "train")
# A list of one class states behind the name whether the picture shows it: 1, 0 or -1.
_COLUMN = re.compile(r"(.*\S)\s+-?[01]")
_LIST_BYTES = 1 << 30


def splits_of(
    lists: Mapping[str, Iterable[Path]], pictures: Iterable[str], encoding: str = "", default: str = ""
) -> tuple[dict[str, str], list[LeftOut]]:
    """The split of each picture that a list names, by its name's stem, and which lines say nothing.

    A line may name the picture with or without its ending and folders, be from Windows, and state a class's column. A
    picture in the lists of two splits is held out: it belongs to test before val, and to val before train.

    Args:
        lists: the files by split, "train", "val" or "test".
        pictures: the pictures' names.
        encoding: of the lists, see `read_text`.
        default: the split of the pictures that no list names, where one is stated.

    Raises:
        CorpusError: a list cannot be read; or a list of held-out pictures names none of them while no list names some,
            which then would be trained on.
    """
    stems = {_same(name): PurePosixPath(name).stem for name in pictures}
    stems |= {_same(stem): stem for stem in stems.values()}
    split_of: dict[str, str] = {}
    used = Counter[str]()
    lost: dict[str, list[str]] = {}
    repeated = []
    for split in _SPLITS:
        for file in lists.get(split, ()):
            for where, line in _lines(file, encoding):
                stem = next((stems[name] for name in _names(line) if name in stems), None)
                if stem is None:
                    lost.setdefault(split, []).append(where)
                    continue
                used[split] += 1
                if split_of.setdefault(stem, split) != split:
                    repeated.append(where)
    for split in ("test", "val"):
        unlisted = len(set(stems.values()) - split_of.keys())
        if split in lost and not used[split] and unlisted and not default:
            raise CorpusError(
                f"{lost[split][0]}: none of {len(lost[split])} lines for {split} names a picture, and {unlisted} "
                "pictures, which no list names, would be trained on: mend the names, or state the split of those"
            )
    named_nothing = [where for split in _SPLITS for where in lost.get(split, [])]
    told = {"line of a split list that names no picture": named_nothing,
            "line of a split list, its picture being held out by another": repeated}  # fmt: skip
    return split_of, [LeftOut(what, len(lines), lines[0]) for what, lines in told.items() if lines]


def _lines(file: Path, encoding: str) -> Iterator[tuple[str, str]]:
    """The lines that hold something, each with the words for where it is."""
    with needed(file):
        text = read_text(file, encoding, _LIST_BYTES)
    for number, line in enumerate(text.split("\n"), start=1):
        if line := line.strip():
            yield f"{file.name}:{number}: {line!r:.100}", line


def _names(line: str) -> Iterator[str]:
    """What a line may mean, the likeliest first: a name may hold blanks and end in a number."""
    column = _COLUMN.fullmatch(line)
    for text in filter(None, (line, column and column[1])):
        name = text.strip("\"'").replace("\\", "/").rpartition("/")[2]
        yield _same(name)
        if name.lower().endswith(SUFFIXES):
            yield _same(PurePosixPath(name).stem)


def _same(name: str) -> str:
    """A name in the one of Unicode's spellings that lists have; macOS stores "é" as two characters."""
    return normalize("NFC", name)
