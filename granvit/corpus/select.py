"""Parts of a corpus: by split, or by a hash where the corpus has no split of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from granvit.corpus.layout import CorpusError
from granvit.corpus.store import Corpus
from granvit.regions import RegionImage

_HELD_OUT = ("val", "test")
_FRACTION = 0.1
T = TypeVar("T")


class Subset:
    """Some records of a corpus, in the corpus's order; random access, picklable like the corpus itself."""

    def __init__(self, corpus: Corpus, indices: list[int]):
        self.corpus, self.indices = corpus, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> RegionImage:
        return self.corpus[self.indices[index]]

    def __iter__(self) -> Iterator[RegionImage]:
        for i in self.indices:
            self.corpus.check_shard(self.corpus.shard_of(i))
            yield self.corpus[i]


def train_and_held_out(corpus: Corpus, fraction: float = _FRACTION) -> tuple[Subset, Subset]:
    """The images to train on, and those held out ("val", or "test" where there is no "val").

    A corpus without either holds out `fraction` of its images, chosen by a hash of their ids: the same ones on
    every machine and in every run.

    Raises:
        CorpusError: one of the two parts is empty.
    """
    train, held_out = _parts(corpus, fraction)
    if not len(train) or not len(held_out):
        raise CorpusError(
            f"{corpus.path}: {len(train)} images to train on and {len(held_out)} held out; both are needed"
        )
    return train, held_out


def training_part(corpus: Corpus) -> Subset:
    """The training images as `train_and_held_out` chooses them, where nothing needs to be held out.

    Raises:
        CorpusError: there is none.
    """
    train, _ = _parts(corpus)
    if not len(train):
        raise CorpusError(f"{corpus.path}: no image to train on, all are held out")
    return train


def held_out_part(corpus: Corpus) -> Subset:
    """The held-out images as `train_and_held_out` chooses them, where nothing needs to be trained on.

    Raises:
        CorpusError: there is none.
    """
    _, held_out = _parts(corpus)
    if not len(held_out):
        raise CorpusError(f'{corpus.path}: no image is held out; give some the split "val" when you import it')
    return held_out


def named_split(corpus: Corpus) -> Callable[[RegionImage], str]:
    """The split of each record; in a corpus that holds none out by name, "val" for those held out by their hash."""
    if any(corpus.manifest["images_by_split"].get(name) for name in _HELD_OUT):
        return lambda record: record.split
    return lambda record: "val" if unit_hash(record.id) < _FRACTION else "train"


def _parts(corpus: Corpus, fraction: float = _FRACTION) -> tuple[Subset, Subset]:
    splits: dict[str, list[int]] = {}
    ids: list[str] = []
    for index, record in enumerate(corpus.records(check=False)):  # what is read of these is checked when it is
        splits.setdefault(record.split, []).append(index)
        ids.append(record.id)
    named = next((name for name in _HELD_OUT if splits.get(name)), None)
    if named is not None:
        held_out = splits[named]
        train = sorted(i for name, indices in splits.items() if name not in _HELD_OUT for i in indices)
    else:
        held_out = [i for i, name in enumerate(ids) if unit_hash(name) < fraction]
        train = [i for i, name in enumerate(ids) if unit_hash(name) >= fraction]
    return Subset(corpus, train), Subset(corpus, held_out)


def evenly(things: Sequence[T], limit: int) -> Iterator[T]:
    """At most so many of them, evenly spaced: a corpus's sources follow each other."""
    count = min(limit, len(things))
    return (things[index * len(things) // count] for index in range(count))


def unit_hash(name: str) -> float:
    """A number in [0, 1) that depends on the id alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
