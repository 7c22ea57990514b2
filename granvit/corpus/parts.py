"""Corpora made of others: several as one, one as its splits, or a sample. Images are copied as they are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from granvit.corpus.layout import CorpusError
from granvit.corpus.select import unit_hash
from granvit.corpus.store import Corpus, CorpusFiles, CorpusWriter, refuse_foreign_files
from granvit.files import staged_folder
from granvit.regions import SPLITS, RegionImage

_MOVABLE = ("", "train")


def write_part(
    corpus: Corpus, records: Iterable[RegionImage], out: str | Path, made: dict[str, Any], overwrite: bool = False
) -> int:
    """Write some of a corpus's records to `out`; returns how many.

    Args:
        made: how they were chosen, for the manifest's "meta", which also keeps what `corpus` says of itself.

    Raises:
        CorpusError: `out` is in use, or there is no record.
    """
    meta = {**made, "of": str(corpus.path), "before": corpus.manifest["meta"]}
    with CorpusWriter(out, meta=meta, overwrite=overwrite) as writer:
        for record in records:
            writer.write(record)
    return writer.images


def merge(corpora: Sequence[Corpus], out: str | Path, skip_known: bool = False, overwrite: bool = False) -> int:
    """Write all images of several corpora, one corpus after another; returns how many.

    Args:
        skip_known: leave out an image whose id an earlier one has; otherwise two of one id are an error.

    Raises:
        CorpusError: two images have one id, or `out` is in use.
    """
    meta = {"merged": {str(corpus.path): corpus.manifest["meta"] for corpus in corpora}}
    with CorpusWriter(out, meta=meta, overwrite=overwrite) as writer:
        for corpus in corpora:
            for record in corpus:
                if not (skip_known and record.id in writer):
                    writer.write(record)
    return writer.images


def split(
    corpus: Corpus, out: str | Path, val: float = 0.0, test: float = 0.0, overwrite: bool = False
) -> dict[str, int]:
    """Write each split of a corpus as a corpus of its own, out/train, out/val and out/test: all of them or none.

    Args:
        val, test: shares in [0, 1) of the images without a split, or in "train", that become "val" and "test", chosen
            by a hash of the id: an image is held out whatever else the corpus holds. The rest are "train".

    Returns:
        Images by split.

    Raises:
        CorpusError: the shares make no sense, or `out` holds anything else than splits that may be replaced.
    """
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise CorpusError(f"the shares must be at least 0 and less than 1 together, got val {val} and test {test}")
    if Path(os.path.realpath(corpus.path)).is_relative_to(os.path.realpath(out)):
        raise CorpusError(f"{out} holds {corpus.path}, which it would replace: choose another folder")
    meta = {"split": {"val": val, "test": test}, "of": str(corpus.path), "before": corpus.manifest["meta"]}
    writers: dict[str, CorpusFiles] = {}
    with staged_folder(out, partial(_refuse_other_folders, overwrite=overwrite)) as folder, ExitStack() as stack:
        for record in corpus:
            name = _split(record, val, test)
            if name not in writers:
                (folder / name).mkdir()
                writers[name] = stack.enter_context(CorpusFiles(folder / name, meta=meta))
            writers[name].write(replace(record, split=name))
    return {name: writer.images for name, writer in sorted(writers.items())}


def _refuse_other_folders(out: Path, overwrite: bool) -> None:
    """Whether the splits may be written at `out`, which is replaced as a whole."""
    if out.exists() and not out.is_dir():
        raise CorpusError(f"{out} is a file; the splits go into a folder")
    for inner in sorted(out.iterdir()) if out.exists() else ():
        if inner.name not in SPLITS or not inner.is_dir():
            raise CorpusError(f"{out} is not empty (it holds {inner.name}): choose another folder")
        refuse_foreign_files(inner, overwrite)


def _split(record: RegionImage, val: float, test: float) -> str:
    if record.split not in _MOVABLE:
        return record.split
    draw = unit_hash(record.id)
    if draw < val:
        return "val"
    return "test" if draw < val + test else "train"


def sample(corpus: Corpus, count: int, seed: int = 0, per_source: bool = False) -> list[int]:
    """The places of `count` images, or of `count` of each source, ascending; all of them where there are no more.

    Those whose hash with the seed is smallest: a smaller sample is part of a larger one, and neither the order of the
    corpus nor what else it holds changes how an image fares.

    Raises:
        CorpusError: `count` is not positive.
    """
    if count < 1:
        raise CorpusError(f"a sample of {count} images is no corpus")
    draws: dict[str, list[tuple[float, int]]] = {}
    for place, record in enumerate(corpus.records(check=False)):  # whoever copies the sample checks what it reads
        drawn = draws.setdefault(record.source if per_source else "", [])
        drawn.append((unit_hash(f"{seed}:{record.id}"), place))
    return sorted(place for drawn in draws.values() for _, place in sorted(drawn)[:count])


def at(corpus: Corpus, places: Sequence[int]) -> Iterator[RegionImage]:
    """The records at ascending places, read in one go."""
    wanted = np.zeros(len(corpus), dtype=bool)
    wanted[list(places)] = True
    return (record for record, keep in zip(corpus, wanted, strict=True) if keep)
