"""Corpora made of others: the held-out part, splits, samples, several as one, and large images cut into tiles.

What is held out is said by the images' splits, or by a hash of their ids where a corpus names none to hold out. Images
are copied as they are, but for tiles: they show a small canvas the small text and tiny objects of large images.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from granvit.corpus.check import MIN_BOX_SIDE
from granvit.corpus.layout import CorpusError
from granvit.corpus.store import Corpus, CorpusFiles, CorpusWriter, Subset, refuse_foreign_files
from granvit.errors import GranvitError
from granvit.files import staged_folder
from granvit.geometry import View, sizes
from granvit.images import MIN_SIDE, ImageError, decode
from granvit.regions import LEAST_VISIBLE, SPLITS, Kind, Region, RegionImage, picture_id
from granvit.sampling import lowest_by_hash, unit_hash

_HELD_OUT = ("val", "test")
_FRACTION = 0.1


def train_and_held_out(corpus: Corpus, fraction: float = _FRACTION) -> tuple[Subset, Subset]:
    """The images to train on, and those held out ("val", or "test" where there is no "val").

    A corpus without either holds out `fraction` of its images, chosen by a hash of their ids, of tiles by that of
    their picture's: the same ones on every machine and in every run.

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
        raise CorpusError(
            f"{corpus.path}: no image is held out; import it with --val-fraction, or use `corpus split --val`, with a "
            "share that chooses some"
        )
    return held_out


def named_split(corpus: Corpus) -> Callable[[RegionImage], str]:
    """The split of each record; in a corpus that holds none out by name, "val" for those held out by their hash."""
    if names_held_out(corpus):
        return lambda record: record.split
    picture = _pictures_of(corpus)
    return lambda record: split_by_hash(picture(record.id), _FRACTION)


def names_held_out(corpus: Corpus) -> bool:
    """Whether images of a corpus are held out by the name of their split, "val" or "test", and not by a hash."""
    return any(corpus.manifest["images_by_split"].get(name) for name in _HELD_OUT)


def _pictures_of(corpus: Corpus) -> Callable[[str], str]:
    """What tells of a record's id which picture it shows; as earlier versions wrote it in corpora of tiles alone."""
    return partial(picture_id, earlier=_made_of_tiles(corpus.manifest["meta"]))


def _made_of_tiles(meta: Any) -> bool:
    """Whether a corpus, or one that it was made from, was made by `tile`, as their manifests say."""
    if not isinstance(meta, dict):
        return False
    earlier = [meta.get("before"), *(merged.values() if isinstance(merged := meta.get("merged"), dict) else ())]
    return "tiles" in meta or any(map(_made_of_tiles, earlier))


def split_by_hash(picture: str, val: float, test: float = 0.0) -> str:
    """ "train", "val" or "test", by the id of the picture alone: it is held out whatever else the corpus holds.

    Args:
        picture: as `picture_id` has it of a record's id, so that tiles go with their picture.
        val, test: the shares of these two, in [0, 1).
    """
    draw = unit_hash(picture)
    if draw < val:
        return "val"
    return "test" if draw < val + test else "train"


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
        by_hash = [split_by_hash(picture, fraction) for picture in map(_pictures_of(corpus), ids)]
        train, held_out = ([i for i, name in enumerate(by_hash) if name == part] for part in ("train", "val"))
    return Subset(corpus, train), Subset(corpus, held_out)


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

    Where some of the corpora name the images that they hold out and others do not, the others' images without a split
    get the one of `named_split`: what was held out by its hash would be trained on beside named splits.

    Args:
        skip_known: leave out an image whose id an earlier one has; otherwise two of one id are an error.

    Raises:
        CorpusError: two images have one id, `out` is in use, an image held out would be left out for an earlier one
            that is trained on, or one picture, whole or in tiles, would be both held out and trained on.
    """
    meta = {"merged": {str(corpus.path): corpus.manifest["meta"] for corpus in corpora}}
    named = any(map(names_held_out, corpora))
    held_out: set[str] = set()  # pictures, and
    tiles: set[str] = set()  # pictures of which tiles are trained on
    with CorpusWriter(out, meta=meta, overwrite=overwrite) as writer:
        for corpus in corpora:
            by_hash, picture_of = named_split(corpus), _pictures_of(corpus)
            for record in corpus:
                picture = picture_of(record.id)
                if skip_known and record.id in writer:
                    if record.split in _HELD_OUT and picture not in held_out:
                        raise CorpusError(
                            f"{corpus.path}: {record.id!r} is in {record.split}, and trained on in an earlier corpus: "
                            "name the held-out data first"
                        )
                    continue
                record = replace(record, split=record.split or (by_hash(record) if named else ""))
                out_here = record.split in _HELD_OUT
                trained_on = picture in tiles or picture in writer and picture not in held_out
                if named and record.id not in writer and (trained_on if out_here else picture in held_out):
                    raise CorpusError(
                        f"{corpus.path}: {record.id!r} is {'held out' if out_here else 'trained on'}, and its picture, "
                        f"whole or in other tiles, {'trained on' if out_here else 'held out'}: make the tiles from the "
                        "corpus that names what is held out"
                    )
                writer.write(record)
                if out_here:
                    held_out.add(picture)
                elif picture != record.id:
                    tiles.add(picture)
    return writer.images


def split(
    corpus: Corpus, out: str | Path, val: float = 0.0, test: float = 0.0, overwrite: bool = False
) -> dict[str, int]:
    """Write each split of a corpus as a corpus of its own, out/train, out/val and out/test: all of them or none.

    Args:
        val, test: shares in [0, 1) of the images without a split, or in "train", that become "val" and "test", chosen
            by a hash of the id, see `split_by_hash`. The rest are "train".

    Returns:
        Images by split.

    Raises:
        CorpusError: the shares make no sense, or `out` holds anything else than splits that may be replaced.
    """
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise CorpusError(f"--val {val} --test {test}: shares must be at least 0 and together less than 1")
    if Path(os.path.realpath(corpus.path)).is_relative_to(os.path.realpath(out)):
        raise CorpusError(f"{out} holds {corpus.path}, which it would replace: choose another folder")
    meta = {"split": {"val": val, "test": test}, "of": str(corpus.path), "before": corpus.manifest["meta"]}
    writers: dict[str, CorpusFiles] = {}
    with staged_folder(out, partial(_refuse_other_folders, overwrite=overwrite)) as folder, ExitStack() as stack:
        picture_of = _pictures_of(corpus)
        for record in corpus:
            movable = record.split in _MOVABLE
            name = split_by_hash(picture_of(record.id), val, test) if movable else record.split
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


def sample(corpus: Corpus, count: int, seed: int = 0, per_source: bool = False) -> list[int]:
    """The places of `count` images, or of `count` of each source, ascending; all of them where there are no more.

    Those whose hash with the seed is smallest: a smaller sample is part of a larger one, and neither the order of the
    corpus nor what else it holds changes how an image fares.

    Raises:
        CorpusError: `count` is not positive.
    """
    if count < 1:
        raise CorpusError(f"a sample of {count} images is no corpus")
    records = enumerate(corpus.records(check=False))  # whoever copies the sample checks what it reads
    named = ((place, record.source if per_source else "", f"{seed}:{record.id}") for place, record in records)
    return sorted(place for drawn in lowest_by_hash(named, count).values() for place in drawn)


def records_at(corpus: Corpus, places: Sequence[int]) -> Iterator[RegionImage]:
    """The records at ascending places, read in one go."""
    wanted = np.zeros(len(corpus), dtype=bool)
    wanted[list(places)] = True
    return (record for record, keep in zip(corpus, wanted, strict=True) if keep)


@dataclass(frozen=True)
class Tiling:
    """How images are cut.

    Attributes:
        side: of a tile, in pixels of the image. An image that is no larger, both ways, stays whole.
        overlap: share of its side in [0, 1) that a tile has in common, at least, with the next one.
        kind: only images with regions of this kind are cut; None cuts all.

    Raises:
        ValueError: a value out of its range.
    """

    side: int
    overlap: float = 0.25
    kind: Kind | None = None

    def __post_init__(self) -> None:
        if self.side < MIN_SIDE:
            raise GranvitError(f"a tile of {self.side} pixels is no image; the least is {MIN_SIDE}")
        if not 0 <= self.overlap < 1:
            raise GranvitError(f"tiles overlap by a share of at least 0 and less than 1, got {self.overlap}")

    def windows(self, width: int, height: int) -> list[tuple[int, int, int, int]]:
        """The tiles of an image, xyxy in whole pixels, row by row; evenly spaced, they cover all of it."""
        columns, rows = self._starts(width), self._starts(height)
        return [(x, y, min(x + self.side, width), min(y + self.side, height)) for y in rows for x in columns]

    def _starts(self, length: int) -> list[int]:
        rest = max(length - self.side, 0)
        count = int(np.ceil(rest / max(self.side * (1 - self.overlap), 1))) + 1
        return [round(at) for at in np.linspace(0, rest, count).tolist()]


@dataclass
class Tiled:
    """What a tiling wrote: tiles, and images that stayed whole; what it left out: tiles, regions no tile shows,
    captions and conversations, which are about whole images, and images all of whose regions are larger than a tile."""

    tiles: int = 0
    whole: int = 0
    empty: int = 0
    lost: int = 0
    captions: int = 0
    conversations: int = 0
    images: int = 0

    def left_out(self) -> str:
        """What was left out, in one line."""
        said = [(self.captions, "captions"), (self.conversations, "conversations")]
        about = " and ".join(f"{count} {what}" for count, what in said if count)
        return (
            f"{self.empty} tiles without a region, {self.lost} regions that no tile shows whole"
            + (f", {about} about cut images" if about else "")
            + (f"; {self.images} images are gone, since no tile shows a region of theirs whole" if self.images else "")
        )


def tile(corpus: Corpus, out: str | Path, tiling: Tiling, overwrite: bool = False, progress: bool = True) -> Tiled:
    """Write a corpus's images as tiles; returns what became of them.

    All tiles of an image go into one split: where the corpus names none to hold out, its hash decides. Tiles without
    a usable region are left out, as are captions and conversations of cut images, since they tell of the whole.
    Images without a usable region have nothing to cut out and stay whole, and so do conversations without an image.

    Raises:
        CorpusError: an image cannot be decoded, nothing is left, or `out` is in use.
    """
    split_of = named_split(corpus)
    made = Tiled()
    meta = {"tiles": vars(tiling), "of": str(corpus.path), "before": corpus.manifest["meta"]}
    with CorpusWriter(out, meta=meta, overwrite=overwrite) as writer:
        for record in tqdm(corpus, desc="tile", unit=" images", disable=not progress):
            for part in tiles_of(replace(record, split=split_of(record)), tiling, made):
                writer.write(part)
    return made


def tiles_of(record: RegionImage, tiling: Tiling, made: Tiled) -> Iterator[RegionImage]:
    """The tiles of a record, or the record itself where it need not be cut; counted in `made`.

    Raises:
        CorpusError: the record has no image, or one that cannot be decoded.
    """
    kinds = {region.kind for region in record.regions if not region.ignore}
    small = max(record.width, record.height) <= tiling.side
    if record.text_only or small or not kinds or (tiling.kind is not None and tiling.kind not in kinds):
        made.whole += 1
        yield record
        return
    try:
        picture = decode(record.image or b"")
    except ImageError as error:
        raise CorpusError(f"{record.id}: {error}") from error
    shown: set[int] = set()
    for window in tiling.windows(*picture.size):
        regions = _regions(record, window)
        usable = [index for index, region in regions.items() if not region.ignore]
        shown.update(usable)
        if not usable:
            made.empty += 1
            continue
        made.tiles += 1
        part = picture.crop(window)
        file = io.BytesIO()
        part.save(file, "PNG")
        yield replace(
            record,
            id=f"{record.id}@{window[0]},{window[1]},{tiling.side}",
            image=file.getvalue(),
            width=part.width,
            height=part.height,
            caption=None,
            regions=list(regions.values()),
            conversations=[],
        )
    made.conversations += len(record.conversations)
    made.captions += bool(record.caption)
    made.images += not shown
    made.lost += sum(not region.ignore and index not in shown for index, region in enumerate(record.regions))


def _regions(record: RegionImage, window: tuple[int, int, int, int]) -> dict[int, Region]:
    """The regions that a window shows, by their index, in its own pixels. What it cuts too much of is to be ignored."""
    view = View.window(window, max(window[2] - window[0], window[3] - window[1]))
    boxes = [region.box for region in record.regions]
    shares, parts = view.visible(boxes), view.clip(boxes)
    left, top = window[:2]
    found = {}
    for index in np.flatnonzero((sizes(parts) >= MIN_BOX_SIDE).all(1)).tolist():
        region, share = record.regions[index], shares[index]
        x1, y1, x2, y2 = (parts[index] - [left, top, left, top]).tolist()
        outline = region.polygon if share > 1 - 1e-9 else None
        found[index] = replace(
            region,
            box=(x1, y1, x2, y2),
            polygon=None if outline is None else (np.reshape(outline, (-1, 2)) - [left, top]).ravel().tolist(),
            ignore=region.ignore or share < LEAST_VISIBLE[region.kind],
        )
    return found
