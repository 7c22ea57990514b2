"""The embedded corpus, written to disk on all cores like any other corpus, or made lazily without its pictures."""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from granvit.corpus.layout import CorpusError, read_manifest
from granvit.corpus.store import Corpus, CorpusWriter
from granvit.corpus.synthetic.rendered_text import is_rendered_text, render_text
from granvit.corpus.synthetic.scenes import OBJECTS, draw, encode
from granvit.corpus.synthetic.wordings import Style, lay_out
from granvit.errors import GranvitError
from granvit.files import locked
from granvit.regions import RegionImage

# Raised when the pictures of a given seed change, so that an older cached corpus is made anew.
VERSION = 2
# Below this side (pixels) neither shapes nor text can be made out.
SMALLEST = 32
_CHUNK = 32


def make(
    index: int,
    seed: int,
    size: int,
    documents: float,
    objects: tuple[int, int] = OBJECTS,
    prints: float = 0.0,
    style: Style = "plain",
) -> RegionImage:
    """Picture number `index` with its bytes.

    `size` is its side in pixels, `prints` the share of rendered text, `style` how scenes are spoken of.
    """
    if is_rendered_text(seed, index, prints):
        return render_text(seed, index, size)
    what = lay_out(seed, index, size, documents, objects, style)
    return replace(what.record, image=encode(draw(what, seed, index)))


def synthesize(
    out: Path | str,
    count: int,
    seed: int = 0,
    size: int = 160,
    documents: float = 0.15,
    split: str = "train",
    objects: tuple[int, int] = OBJECTS,
    prints: float = 0.0,
    workers: int | None = None,
    progress: bool = True,
    style: Style = "plain",
) -> Corpus:
    """The embedded corpus of `count` pictures in `out`; one that is already there with the same settings is kept.

    Raises:
        CorpusError: `out` holds something else, or a process that draws was killed.
        GranvitError: no picture is asked for, or one too small to draw in.
    """
    shares = all(0 <= share <= 1 for share in (documents, prints))
    if count < 1 or size < SMALLEST or not shares or not 1 <= objects[0] <= objects[1]:
        raise GranvitError(
            f"count {count}, size {size}, documents {documents}, prints {prints}, objects {objects}: at least 1 "
            f"picture of at least {SMALLEST} pixels, shares in [0, 1], and the fewest and most objects of a scene"
        )
    meta: dict[str, object] = {
        "embedded": {
            "version": VERSION,
            "count": count,
            "seed": seed,
            "size": size,
            "documents": documents,
            "objects": list(objects),
            "prints": prints,
        }
    }
    if style != "plain":  # of those older than styles, and of all plain ones, nothing more is written down
        meta["embedded"] = {**meta["embedded"], "style": style}  # type: ignore[dict-item]
    workers = min(workers or os.cpu_count() or 1, math.ceil(count / _CHUNK))  # a process takes a second to start
    job = partial(make, seed=seed, size=size, documents=documents, objects=objects, prints=prints, style=style)
    with locked(out):
        there = _embedded(out, split)
        if there != meta["embedded"]:
            _draw(out, job, count, workers, split, meta, there, progress)
        return Corpus(out)


def _draw(
    out: Path | str,
    job: Callable[[int], RegionImage],
    count: int,
    workers: int,
    split: str,
    meta: dict[str, object],
    there: dict[str, object] | None,
    progress: bool,
) -> None:
    before = {"objects": list(OBJECTS), "prints": 0.0}  # what older versions did not write down
    older = there is not None and {**before, **there, "version": VERSION} == meta["embedded"]
    with (
        CorpusWriter(out, meta=meta, overwrite=older) as writer,
        tqdm(total=count, desc=f"draw {split} pictures", unit="img", disable=not progress) as bar,
    ):
        if workers <= 1:
            for record in map(job, range(count)):
                writer.write(replace(record, split=split))
                bar.update()
        else:
            # Spawned, not forked: a fork after PyTorch has started its threads can hang. An executor, not a
            # `multiprocessing.Pool`: that one waits for ever when a worker is killed or cannot start.
            with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
                try:
                    for record in pool.map(job, range(count), chunksize=_CHUNK):
                        writer.write(replace(record, split=split))
                        bar.update()
                except BrokenProcessPool as error:
                    raise CorpusError(
                        f"{out}: a process that draws was killed or could not start; a script of one's own must draw "
                        'under `if __name__ == "__main__":`, since every such process imports it'
                    ) from error
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)  # what nobody will write is not drawn either
                    raise


def _embedded(out: Path | str, split: str) -> dict[str, object] | None:
    """The settings of the embedded corpus in `out`, or None where there is no such corpus of this split."""
    try:
        manifest = read_manifest(Path(out))
    except CorpusError:
        return None
    settings = manifest["meta"].get("embedded")
    if not isinstance(settings, dict):
        return None
    return settings if list(manifest.get("images_by_split", {})) == [split] else None


class LazySynthetic:
    """`count` records of the embedded corpus `seed`, laid out when asked for, without their pictures.

    `size` is the picture's side in pixels, `documents` the share of documents in [0, 1], `objects` the fewest and most
    objects of a scene, `prints` the share of pictures of rendered text, `style` how scenes are spoken of.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        size: int,
        documents: float,
        objects: tuple[int, int] = OBJECTS,
        prints: float = 0.0,
        style: Style = "plain",
    ):
        self.count, self.seed, self.size = count, seed, size
        self.documents, self.objects, self.prints, self.style = documents, objects, prints, style

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> RegionImage:
        if is_rendered_text(self.seed, index, self.prints):
            return replace(render_text(self.seed, index, self.size), image=None)
        return lay_out(self.seed, index, self.size, self.documents, self.objects, self.style).record
