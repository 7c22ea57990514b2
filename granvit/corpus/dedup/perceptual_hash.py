"""Perceptual hashes of pictures, and the file that keeps them for a whole corpus.

What stays of a picture when it is resized, recompressed, mirrored or cropped a little: a thumbnail and 64 bits.

The thumbnail is 64 x 64 grey pixels (`granvit.images.thumbnail`). Its bits are the signs of its 64 lowest
cosine coefficients without the mean, a perceptual hash ("pHash") whose mirror image is known without looking: a sign
turns exactly where the horizontal frequency is odd. Since the coefficients are linear in the thumbnail, the hashes of
many windows of it (the picture with a tenth cut off at one side or another) cost two small matrix products.

The fingerprints of a corpus are made by several threads and kept in one Parquet file beside it, one row per image:
`row` (its place in the corpus), `id`, `sha256` of the image file, `hash` and `thumb` as above, and `problem`: why there
is none to go by. About 3 KB an image. The file says which shards it was made from, so that it is never used for another
corpus.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from granvit import images
from granvit.corpus.layout import CorpusError
from granvit.corpus.store import Corpus
from granvit.files import atomic_file
from granvit.images import ImageError
from granvit.regions import RegionImage

SIDE = 64
BITS = 64

Thumbs = NDArray[np.uint8]
Hashes = NDArray[np.uint64]
Span = tuple[float, float]

WHOLE: tuple[Span, ...] = ((0.0, 1.0),)
# What a copy cropped by a tenth, or by a fifth, may have left of the picture, along one axis. Windows are all pairs.
CROPS: tuple[Span, ...] = (
    *WHOLE,
    *((start / 40, start / 40 + 0.9) for start in range(5)),
    *((start / 20, start / 20 + 0.8) for start in range(5)),
)

_FREQUENCIES = 9
# (vertical, horizontal), from low to high, without the mean.
_CHOSEN = sorted(((v, u) for v in range(_FREQUENCIES) for u in range(_FREQUENCIES)), key=lambda p: (sum(p), p))[1:65]
_V, _U = np.array(_CHOSEN).T
_BIT_WEIGHTS = np.left_shift(np.uint64(1), np.arange(BITS, dtype=np.uint64))
_MIRROR = (_BIT_WEIGHTS * (_U % 2 == 1)).sum(dtype=np.uint64)
# Grey levels: below this, what a thumbnail shows beside slow changes of brightness is noise.
_LEAST_DETAIL = 1.5


def thumbnail(data: bytes) -> Thumbs:
    """The thumbnail of an image file, shape (SIDE, SIDE).

    Raises:
        ImageError: as `granvit.images.decode`.
    """
    return np.asarray(images.thumbnail(data, SIDE))


def featureless(thumbs_nss: Thumbs) -> NDArray[np.bool_]:
    """Whether there is nothing in a thumbnail to know it by: a blank page, a black frame. Shape (N,)."""
    return np.abs(np.diff(thumbs_nss.astype(np.int16), axis=2)).mean(axis=(1, 2)) < _LEAST_DETAIL / 4


@lru_cache
def _cosines(spans: tuple[Span, ...]) -> NDArray[np.float32]:
    """The cosine transform of each window along one axis, shape (len(spans) * frequencies, SIDE)."""
    edges = np.arange(SIDE + 1) / SIDE
    rows = []
    for start, end in spans:
        left, right = np.clip(edges[:-1], start, end), np.clip(edges[1:], start, end)
        covered = right - left
        places = ((left + right) / 2 - start) / (end - start)
        waves = np.cos(np.pi * np.outer(np.arange(_FREQUENCIES), places)) * covered
        # Without a share of the mean, which would tip the signs of the weak coefficients.
        waves[1:] -= np.outer(waves[1:].sum(axis=1), covered / covered.sum())
        rows.append(waves)
    return np.concatenate(rows).astype(np.float32)


def hashes(thumbs_nss: Thumbs, spans: tuple[Span, ...] = WHOLE) -> Hashes:
    """The hashes of all windows of the thumbnails, shape (N, len(spans) ** 2).

    Column i is the window with rows `spans[i // len(spans)]` and columns `spans[i % len(spans)]`.
    """
    waves, count = _cosines(spans), len(spans)
    found = waves @ thumbs_nss.astype(np.float32) @ waves.T
    per_window = found.reshape(-1, count, _FREQUENCIES, count, _FREQUENCIES).transpose(0, 1, 3, 2, 4)
    bits = per_window[..., _V, _U] > 0
    packed = np.ascontiguousarray(np.packbits(bits, axis=-1, bitorder="little"))
    return packed.view("<u8").reshape(len(thumbs_nss), count * count)


def mirrored(hashes: Hashes) -> Hashes:
    """The hashes of the pictures flipped left to right."""
    return hashes ^ _MIRROR


BATCH = 128
# The first is said of conversations alone, in which nothing is missing.
NO_PICTURE, NO_BYTES, FEATURELESS = "no-picture", "no-image-bytes", "featureless"

_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("sha256", pa.binary(32)),
        ("hash", pa.uint64()),
        ("thumb", pa.binary(SIDE * SIDE)),
        ("problem", pa.string()),
    ]
)
_GROUP_ROWS = 1_024
# Changes with whatever changes thumbnails or hashes.
_VERSION = 1


@dataclass
class Batch:
    """The fingerprints of a few images.

    Attributes:
        records: the images.
        sha256: of each image file; 32 zero bytes where there is none.
        thumbs: shape (N, SIDE, SIDE); zeros where there is none.
        problems: for each image why it has no thumbnail, or None.
    """

    records: list[RegionImage]
    sha256: list[bytes]
    thumbs: Thumbs
    problems: list[str | None]


def fingerprint(records: Iterable[RegionImage], workers: int = 0) -> Iterator[Batch]:
    """Fingerprints of records with their image files, in order, in batches of `BATCH`.

    `workers` threads (0: one per core) decode while the next records are read; Pillow lets other threads run meanwhile.
    """
    workers = workers or os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[tuple[list[RegionImage], list[Future[tuple[list[bytes], Thumbs, list[str | None]]]]]] = deque()
        for batch in _batches(records):
            step = -(-len(batch) // workers)
            parts = [batch[i : i + step] for i in range(0, len(batch), step)]
            pending.append((batch, [pool.submit(_fingerprint, part) for part in parts]))
            if len(pending) > 2:
                yield _gathered(*pending.popleft())
        while pending:
            yield _gathered(*pending.popleft())


def _batches(records: Iterable[RegionImage]) -> Iterator[list[RegionImage]]:
    batch: list[RegionImage] = []
    for record in records:
        batch.append(record)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _fingerprint(records: Sequence[RegionImage]) -> tuple[list[bytes], Thumbs, list[str | None]]:
    thumbs = np.zeros((len(records), SIDE, SIDE), np.uint8)
    digests: list[bytes] = []
    problems: list[str | None] = []
    for i, record in enumerate(records):
        digests.append(hashlib.sha256(record.image).digest() if record.image is not None else bytes(32))
        problem = None
        try:
            if record.image is None:
                problem = NO_PICTURE if record.text_only else NO_BYTES
            else:
                thumbs[i] = thumbnail(record.image)
        except ImageError as error:
            problem = error.reason
        problems.append(problem)
    return digests, thumbs, problems


def _gathered(records: list[RegionImage], parts: list[Future[tuple[list[bytes], Thumbs, list[str | None]]]]) -> Batch:
    done = [part.result() for part in parts]
    return Batch(
        records,
        [digest for digests, _, _ in done for digest in digests],
        np.concatenate([thumbs for _, thumbs, _ in done]),
        [problem for _, _, problems in done for problem in problems],
    )


class FingerprintFile:
    """Stored fingerprints: the small columns in memory (about 45 bytes an image), thumbnails read when asked for.

    Attributes:
        rows: places in the corpus, ascending, shape (N,).
        sha256: shape (N, 32).
        hashes: shape (N,).
        problems: by index, why an image has no fingerprint or, "featureless", none to go by.
    """

    def __init__(self, path: Path, corpus: Corpus) -> None:
        """Open the fingerprints at `path`.

        Raises:
            CorpusError: it cannot be read, or was made from another corpus or another version of this one.
        """
        self.path = path
        try:
            schema = pq.read_schema(path)
            if (schema.metadata or {}).get(b"granvit_shards") != _shards(corpus):
                raise CorpusError(
                    f"{path}: these are not the fingerprints of {corpus.path} as it is now; remove the file"
                )
            for field in _SCHEMA:
                found = schema.field(field.name).type if field.name in schema.names else "missing"
                if found != field.type:
                    raise CorpusError(f"{path}: column {field.name!r} is {found}, not {field.type}; remove the file")
            table = pq.read_table(path, columns=["row", "sha256", "hash", "problem"])
            groups = pq.read_metadata(path)
            place = schema.get_field_index("thumb")
            for group in range(groups.num_row_groups):
                counted = groups.row_group(group).column(place).statistics
                if counted is not None and counted.null_count:
                    raise CorpusError(f"{path}: column 'thumb' has gaps; remove the file")
        except (OSError, pa.ArrowException) as error:
            raise CorpusError(f"{path}: {error}") from error
        for name, column in zip(table.column_names, table.columns, strict=True):
            if name != "problem" and column.null_count:
                raise CorpusError(f"{path}: column {name!r} has gaps; remove the file")
        self.rows: NDArray[np.int64] = table["row"].to_numpy()
        self.hashes: Hashes = table["hash"].to_numpy()
        self.sha256 = _bytes(table["sha256"].combine_chunks(), 32)
        if not (np.diff(self.rows, prepend=-1) > 0).all() or (len(self.rows) and self.rows[-1] >= len(corpus)):
            raise CorpusError(f"{path}: column 'row' does not name images of the corpus in order; remove the file")
        self.problems: dict[int, str] = {i: p for i, p in enumerate(table["problem"].to_pylist()) if p is not None}

    def check_holds(self, rows: NDArray[np.int64]) -> None:
        """Raises a CorpusError unless the images at these places, ascending, all have a row."""
        if missing := len(np.setdiff1d(rows, self.rows, assume_unique=True)):
            raise CorpusError(f"{self.path}: {missing} images that are needed are not in it; remove the file")

    def batches(self, corpus: Corpus) -> Iterator[Batch]:
        """The fingerprints of a whole corpus in order, with its records but without their pictures.

        Raises:
            CorpusError: the file has those of some images alone.
        """
        self.check_holds(np.arange(len(corpus)))
        records = corpus.records()
        start = 0
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(BATCH, columns=["thumb"]):
                end = start + len(batch)
                yield Batch(
                    [next(records) for _ in range(len(batch))],
                    [digest.tobytes() for digest in self.sha256[start:end]],
                    _pixels(batch["thumb"]),
                    [None if self.problems.get(i) == FEATURELESS else self.problems.get(i) for i in range(start, end)],
                )
                start = end

    def thumbs(self, wanted: NDArray[np.int64]) -> Thumbs:
        """The thumbnails of some entries, given by ascending index, shape (len(wanted), SIDE, SIDE)."""
        found = np.zeros((len(wanted), SIDE, SIDE), np.uint8)
        with pq.ParquetFile(self.path) as file:
            start = 0
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                low, high = np.searchsorted(wanted, [start, end])
                if low < high:
                    pixels = _pixels(file.read_row_group(group, columns=["thumb"])["thumb"].combine_chunks())
                    found[low:high] = pixels[wanted[low:high] - start]
                start = end
        return found


def _bytes(column: pa.FixedSizeBinaryArray, width: int) -> NDArray[np.uint8]:
    """The values of a column as an array of shape (N, width), without a copy."""
    return np.frombuffer(column.buffers()[1], np.uint8, width * len(column), width * column.offset).reshape(-1, width)


def _pixels(column: pa.FixedSizeBinaryArray) -> Thumbs:
    return _bytes(column, SIDE * SIDE).reshape(-1, SIDE, SIDE)


def store_fingerprints(
    corpus: Corpus, path: Path, wanted: NDArray[np.int64] | None = None, workers: int = 0
) -> FingerprintFile:
    """Fingerprint a corpus, or its rows `wanted` (ascending), into the file `path`, which appears when it is whole.

    Raises:
        CorpusError: the corpus cannot be read.
    """
    chosen = iter(enumerate(corpus)) if wanted is None else _chosen(corpus, wanted)
    rows: deque[int] = deque()

    def records() -> Iterator[RegionImage]:
        for row, record in chosen:
            rows.append(row)
            yield record

    schema = _SCHEMA.with_metadata({"granvit_shards": _shards(corpus)})
    with atomic_file(path) as unfinished, pq.ParquetWriter(unfinished, schema, compression="zstd") as writer:
        waiting: list[pa.RecordBatch] = []
        for batch in fingerprint(records(), workers):
            waiting.append(_table(batch, [rows.popleft() for _ in batch.records], schema))
            if len(waiting) * BATCH >= _GROUP_ROWS:
                writer.write_table(pa.Table.from_batches(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting))
    return FingerprintFile(path, corpus)


def _chosen(corpus: Corpus, wanted: NDArray[np.int64]) -> Iterator[tuple[int, RegionImage]]:
    keep = iter(wanted.tolist())
    following = next(keep, None)
    for row, record in enumerate(corpus):
        if following is None:
            return
        if row == following:
            yield row, record
            following = next(keep, None)


def _table(batch: Batch, rows: list[int], schema: pa.Schema) -> pa.RecordBatch:
    known = hashes(batch.thumbs)[:, 0]
    problems = [
        problem or (FEATURELESS if blank else None)
        for problem, blank in zip(batch.problems, featureless(batch.thumbs), strict=True)
    ]
    pixels = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(SIDE * SIDE), len(rows), [None, pa.py_buffer(batch.thumbs.tobytes())]
    )
    ids = [record.id for record in batch.records]
    return pa.RecordBatch.from_arrays(
        [
            pa.array(rows, pa.int64()),
            pa.array(ids, pa.string()),
            pa.array(batch.sha256, pa.binary(32)),
            pa.array(known),
            pixels,
            pa.array(problems, pa.string()),
        ],
        schema=schema,
    )


def _shards(corpus: Corpus) -> bytes:
    """What identifies the contents of a corpus, the checksums of its shards in order, and the kind of fingerprint."""
    return json.dumps([_VERSION, *(shard["sha256"] for shard in corpus.manifest["shards"])]).encode()
