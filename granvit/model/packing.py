"""Many questions behind one image prefix (the packed sequence).

A *block* is one image: its prefix (everything up to the last image token), then N *branches*, each one question
with its answer. A branch sees the prefix and itself, never its siblings, and its positions start where the
prefix ends. So the encoder and the prefix run once per image, and every branch computes what it would compute
in a sequence of its own. A row of the batch holds one or more blocks; blocks never see each other.

Branches that begin with the same words, as all questions of a kind do, share these as a *stem*: it stands once, behind
the prefix, which it sees; such a branch sees prefix, stem and itself, and its positions go on where the stem ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from granvit.geometry import View

IGNORE = -100
# A shared beginning of fewer tokens is not worth a segment of its own. The presets from random weights have the fixed
# words of a question as one token, and so share nothing.
LEAST_STEM = 4
# The fields of a batch that have a number for each position.
_SEQUENCES = ("input_ids", "position_ids", "block_ids", "branch_ids", "stem_ids", "labels", "is_image")


@dataclass
class Branch:
    """One tokenised question with its answer, or a conversation of several.

    Attributes:
        ids: all tokens.
        answer_start: where the (first) answer begins.
        task: what is asked, a `Task` or "conversation".
        answers: where the answers of a conversation lie in `ids`, (start, end) of each; empty where there is one alone,
            which goes on to the end.
        stem: so many of its first tokens, fewer than stand before the answer, are those of all questions of its kind.
        cut: whether its end is missing, because it was longer than allowed.
    """

    ids: list[int]
    answer_start: int
    task: str
    answers: Sequence[tuple[int, int]] = ()
    stem: int = 0
    cut: bool = False

    @property
    def predicted(self) -> Sequence[tuple[int, int]]:
        """Where the tokens lie that are to be predicted."""
        return self.answers or ((self.answer_start, len(self.ids)),)


class SampleExtra(Protocol):
    """What a stage of its own kind adds to a sample."""

    @staticmethod
    def collate(extras: Sequence[Any], patches: int) -> BatchExtra:
        """Those of the I images of a batch together; each image is of so many patches."""


class BatchExtra(Protocol):
    """What a stage of its own kind adds to a batch."""

    def to(self, device: torch.device | str) -> Self: ...

    def of_image(self, image: int) -> Self:
        """What belongs to the image-th image alone."""


@dataclass
class Sample:
    """One image, or conversations about none, ready to be packed.

    Attributes:
        id: the record's id, named in every error about this sample.
        branches: at least one question.
        pixels: the canvas, uint8 (H, W, 3), or all K of a tiled view (K, H, W, 3); None where the stage needs none.
        crops: region crops for the teacher, uint8 (R, h, w, 3).
        crop_boxes: where these crops lie, float32 (R, 4), xyxy pixels of the canvas (`View.to_features`).
        view: how the image became the canvas, where that is known; of a tiled one it is.
        image_tokens: how many tokens show it; None for as many as the others have.
        digests: what tells its canvases from others, where wanted.
        left_out: questions that a row had no room for.
        text_only: whether there is no image: no prefix stands before its branches.
        extra: what its stage wants besides; nothing else looks at it.
    """

    id: str
    branches: list[Branch]
    pixels: NDArray[np.uint8] | None = None
    crops: NDArray[np.uint8] | None = None
    crop_boxes: NDArray[np.float32] | None = None
    view: View | None = None
    image_tokens: int | None = None
    digests: Sequence[str] = ()
    left_out: int = 0
    text_only: bool = False
    extra: SampleExtra | None = None


@dataclass
class Batch:
    """Packed samples as tensors. B rows of S positions, I images, C crops.

    A sample without an image is a block without a prefix. It has its place in `ids` and none among the I images.

    Attributes:
        input_ids: (B, S); image positions hold the image token.
        position_ids: (B, S), restarting after the prefix for every branch.
        block_ids: (B, S), which block of its row a position belongs to; -1 for padding.
        branch_ids: (B, S), 0 for the prefix and stems, n for the block's n-th branch.
        stem_ids: (B, S), k for the block's k-th stem and the branches behind it, 0 elsewhere.
        labels: (B, S), the token to predict *from* this position, or `IGNORE`.
        is_image: (B, S) bool; its True positions, row by row, take the I images' features in order.
        ids: the record ids of all blocks.
        tasks: the task of every branch, row by row.
        pixels: uint8 (K, H, W, 3), of each image its canvas, or all canvases of a tiled one.
        crops: uint8 (C, h, w, 3). crop_boxes: (C, 4) xyxy pixels of the canvas (`View.to_features`).
        crop_image: (C,) the image index of each crop.
        views: how each of the I images became its canvas, where that is known.
        digests: what tells each of the K canvases from others, or nothing.
        extra: what the stage wants besides; nothing else looks at it.
        text_only: how many blocks are without an image.
        host: the batch on the CPU of which this is a copy on another device (see `on_host`).
    """

    input_ids: Tensor
    position_ids: Tensor
    block_ids: Tensor
    branch_ids: Tensor
    stem_ids: Tensor
    labels: Tensor
    is_image: Tensor
    ids: list[str]
    tasks: list[str] = field(default_factory=list)
    pixels: Tensor | None = None
    crops: Tensor | None = None
    crop_boxes: Tensor | None = None
    crop_image: Tensor | None = None
    views: list[View | None] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    extra: BatchExtra | None = None
    text_only: int = 0
    host: Batch | None = field(default=None, repr=False)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on `device`."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors: dict[str, Any] = {k: v.to(device) for k, v in moved.items() if isinstance(v, Tensor)}
        extra = None if self.extra is None else self.extra.to(device)
        return replace(self, **tensors, extra=extra, host=self.on_host)

    @property
    def on_host(self) -> Batch:
        """The batch whose numbers can be read without waiting for a device: its copy on the CPU, or itself."""
        return self if self.host is None else self.host

    @property
    def image_positions(self) -> int:
        """How many positions take a feature; asked of no device."""
        return int(self.on_host.is_image.sum())

    def answer_positions(self) -> tuple[Tensor, Tensor]:
        """Row and column, (A,) each, of every position that predicts an answer token; asked of no device."""
        rows, columns = (self.on_host.labels != IGNORE).nonzero(as_tuple=True)
        return rows.to(self.labels.device), columns.to(self.labels.device)

    @property
    def counts(self) -> dict[str, int]:
        """What the losses are normalised by: answer tokens, crops; and the number of images, branches and tokens."""
        return {
            "answer_tokens": int((self.labels != IGNORE).sum()),
            "crops": 0 if self.crops is None else len(self.crops),
            "images": len(self.ids) - self.text_only,
            "branches": len(self.tasks),
            "tokens": int((self.block_ids >= 0).sum()),
        }

    def canvases_of(self, image: int) -> slice:
        """Which of the K canvases show the image-th image."""
        counts = [1 if view is None else view.count for view in self.views[: image + 1]]
        return slice(sum(counts[:-1]), sum(counts))

    def of_branch(self, n: int) -> Tensor:
        """Which positions (S,) of a batch that is one block are its n-th branch's, those of its stem among them."""
        own = self.branch_ids[0] == n
        stem = self.stem_ids[0][own][0]
        return own | ((self.branch_ids[0] == 0) & (self.stem_ids[0] == stem) & (stem > 0))

    @property
    def padding(self) -> float:
        """The share of positions that hold nothing."""
        return (self.block_ids == -1).double().mean().item()

    def segments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Who sees whom, in three numbers per position: the codes of its own segment, its block's prefix, its stem.

        All are (B, S). A segment is a prefix, a stem or a branch. A position sees earlier ones of these three; where it
        has no stem the third is that of the prefix.
        A padding position is a segment of its own: it sees itself, so that no softmax runs over nothing.
        """
        index = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
        most = 2 * len(self.tasks) + 1  # more than the numbers of branches and, behind them, stems
        padding = self.block_ids == -1
        roots = torch.where(padding, -1 - index, self.block_ids * most).to(torch.int32)
        stems = torch.where(self.stem_ids > 0, roots + len(self.tasks) + self.stem_ids, roots).to(torch.int32)
        return torch.where(self.branch_ids > 0, roots + self.branch_ids, stems).to(torch.int32), roots, stems

    def mask(self) -> Tensor:
        """Which position (dim 2) may look at which (dim 3): bool (B, 1, S, S)."""
        codes, roots, stems = self.segments()
        index = torch.arange(codes.shape[1], device=codes.device)
        seen = codes[:, None, :]
        reachable = (seen == codes[:, :, None]) | (seen == roots[:, :, None]) | (seen == stems[:, :, None])
        return (reachable & (index[:, None] >= index[None, :]))[:, None]

    def lengthened(self, length: int) -> Batch:
        """The same batch in rows of `length` positions, padded at their ends."""
        more = (0, length - self.input_ids.shape[1])
        padding = {"block_ids": -1, "labels": IGNORE}
        longer: dict[str, Any] = {n: F.pad(getattr(self, n), more, value=padding.get(n, 0)) for n in _SEQUENCES}
        return replace(self, **longer)


def rows_of(lengths: Sequence[int], max_tokens: int | None) -> list[list[int]]:
    """Which samples share a row: one each, or as few rows of at most `max_tokens` as best fit makes of them.

    These rows are then levelled, the longest as short as they allow, so that none stays half empty.

    Raises:
        ValueError: one sample alone is longer than `max_tokens`.
    """
    if max_tokens is None:
        return [[i] for i in range(len(lengths))]
    for i, length in enumerate(lengths):
        if length > max_tokens:
            raise ValueError(f"sample {i} has {length} tokens, a row holds {max_tokens}")
    rows = best_fit(lengths, max_tokens)
    low, high = max(max(lengths, default=0), -(-sum(lengths) // max(1, len(rows)))), max_tokens
    while low < high:
        levelled = best_fit(lengths, (low + high) // 2)
        if len(levelled) > len(rows):
            low = (low + high) // 2 + 1
        else:
            rows, high = levelled, (low + high) // 2
    return rows


def best_fit(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Rows of at most `most`, the longest samples first, each where it leaves the least room (best-fit decreasing)."""
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = [r for r in range(len(rows)) if room[r] >= lengths[i]]
        if fitting:
            best = min(fitting, key=lambda r: room[r])
            rows[best].append(i)
            room[best] -= lengths[i]
        else:
            rows.append([i])
            room.append(most - lengths[i])
    return rows


def pack(
    samples: Sequence[Sample],
    prefix_ids: Sequence[int],
    image_token: int,
    pad_token: int,
    max_tokens: int | None = None,
) -> Batch:
    """Samples -> one batch.

    `prefix_ids` is what stands before the questions of every image, image tokens included; a sample that says how many
    tokens show its image has so many. With `max_tokens` several images share a row (best fit); without it every image
    has its own row, padded to the longest.

    A sample without an image is its branches alone, whose positions begin at 0.

    Raises:
        ValueError: no samples, a sample without branches or without answer, or one longer than `max_tokens`.
    """
    if not samples:
        raise ValueError("nothing to pack: no samples")
    for sample in samples:
        if not sample.branches or any(not 0 < b.answer_start < len(b.ids) for b in sample.branches):
            raise ValueError(f"sample {sample.id!r} has no question, or a question without an answer")
    prefixes = [_prefix(sample, prefix_ids, image_token) for sample in samples]
    stems = [_stems(sample) for sample in samples]
    lengths = [
        len(prefix)
        + sum(map(len, own))
        + sum(len(b.ids) - b.stem * (tuple(b.ids[: b.stem]) in own) for b in s.branches)
        for prefix, own, s in zip(prefixes, stems, samples, strict=True)
    ]
    rows = rows_of(lengths, max_tokens)
    shape = (len(rows), max(sum(lengths[i] for i in row) for row in rows))
    tokens = np.full(shape, pad_token)
    positions, branch_ids, stem_ids = np.zeros((3, *shape), int)
    block_ids, labels = np.full(shape, -1), np.full(shape, IGNORE)
    for r, row in enumerate(rows):
        at = 0
        for block, i in enumerate(row):
            prefix = prefixes[i]
            block_ids[r, at : at + lengths[i]] = block
            tokens[r, at : at + len(prefix)] = prefix
            positions[r, at : at + len(prefix)] = np.arange(len(prefix))
            at += len(prefix)
            for stem, k in stems[i].items():
                tokens[r, at : at + len(stem)] = stem
                positions[r, at : at + len(stem)] = len(prefix) + np.arange(len(stem))
                stem_ids[r, at : at + len(stem)] = k
                at += len(stem)
            for n, branch in enumerate(samples[i].branches, start=1):
                k = stems[i].get(tuple(branch.ids[: branch.stem]), 0)
                before = branch.stem if k else 0
                end = at + len(branch.ids) - before
                tokens[r, at:end] = branch.ids[before:]
                positions[r, at:end] = len(prefix) + np.arange(before, len(branch.ids))
                branch_ids[r, at:end], stem_ids[r, at:end] = n, k
                for start, stop in branch.predicted:
                    labels[r, at + start - before - 1 : at + stop - before - 1] = branch.ids[start:stop]
                at = end
    ordered = [samples[i] for row in rows for i in row]
    extras = [s.extra for s in ordered if s.extra is not None]
    return Batch(
        input_ids=torch.from_numpy(tokens),
        position_ids=torch.from_numpy(positions),
        block_ids=torch.from_numpy(block_ids),
        branch_ids=torch.from_numpy(branch_ids),
        stem_ids=torch.from_numpy(stem_ids),
        labels=torch.from_numpy(labels),
        is_image=torch.from_numpy((tokens == image_token) & (branch_ids == 0) & (block_ids >= 0)),
        ids=[s.id for s in ordered],
        tasks=[b.task for s in ordered for b in s.branches],
        text_only=sum(s.text_only for s in ordered),
        views=[s.view for s in ordered if not s.text_only],
        digests=[digest for s in ordered for digest in s.digests],
        extra=extras[0].collate(extras, list(prefix_ids).count(image_token)) if extras else None,
        **_pictures(ordered),
    )


def _prefix(sample: Sample, prefix_ids: Sequence[int], image_token: int) -> NDArray[np.int64]:
    """What stands before a sample's questions."""
    if sample.text_only:
        return np.zeros(0, int)
    if sample.image_tokens is None:
        return np.asarray(prefix_ids)
    return np.asarray([i for i in prefix_ids if i != image_token] + [image_token] * sample.image_tokens)


def _stems(sample: Sample) -> dict[tuple[int, ...], int]:
    """The beginnings that several of an image's branches share, numbered from 1."""
    counts = Counter(tuple(b.ids[: b.stem]) for b in sample.branches if b.stem)
    shared = [stem for stem, count in counts.items() if count > 1 and not sample.text_only]
    return {stem: k for k, stem in enumerate(shared, start=1)}


def _pictures(samples: Sequence[Sample]) -> dict[str, Any]:
    """The picture side of a batch: canvases and crops."""
    tensors: dict[str, Tensor] = {}
    samples = [s for s in samples if not s.text_only]
    pixels = [s.pixels for s in samples if s.pixels is not None]
    if pixels:
        tensors["pixels"] = torch.from_numpy(np.concatenate([p if p.ndim == 4 else p[None] for p in pixels]))
    with_crops = [(i, s.crops, s.crop_boxes) for i, s in enumerate(samples) if s.crops is not None and len(s.crops)]
    if with_crops:
        tensors["crops"] = torch.from_numpy(np.concatenate([crops for _, crops, _ in with_crops]))
        tensors["crop_boxes"] = torch.from_numpy(np.concatenate([b for _, _, b in with_crops if b is not None]))
        owner = np.repeat([i for i, _, _ in with_crops], [len(crops) for _, crops, _ in with_crops])
        tensors["crop_image"] = torch.from_numpy(owner)
    return tensors


def unpack(batch: Batch) -> list[Batch]:
    """Each block, an image with its questions and crops, as a batch of its own, in the batch's order."""
    found: list[Batch] = []
    first_task = image = 0
    for row, blocks in enumerate(batch.block_ids):
        for block in range(int(blocks.max()) + 1):
            where = (blocks == block).nonzero()[:, 0]
            sequences = {name: getattr(batch, name)[row, where][None] for name in _SEQUENCES}
            sequences["block_ids"] = sequences["block_ids"] * 0
            tasks = batch.tasks[first_task : first_task + int(sequences["branch_ids"].max())]
            first_task += len(tasks)
            rest: dict[str, Any] = dict(sequences)
            if (sequences["branch_ids"] == 0).any():  # its prefix shows an image
                rest |= {**_pictures_of(batch, image), "views": batch.views[image : image + 1]}
                rest["digests"] = batch.digests[batch.canvases_of(image)]
                rest["extra"] = None if batch.extra is None else batch.extra.of_image(image)
                image += 1
            else:
                rest["text_only"] = 1
            found.append(Batch(ids=[batch.ids[len(found)]], tasks=tasks, **rest))
    return found


def _pictures_of(batch: Batch, image: int) -> dict[str, Tensor]:
    """What belongs to one image besides its tokens."""
    parts: dict[str, Any] = {}
    if batch.pixels is not None:
        parts["pixels"] = batch.pixels[batch.canvases_of(image)]
    if batch.crops is not None and batch.crop_boxes is not None and batch.crop_image is not None:
        mine = batch.crop_image == image
        if mine.any():
            parts |= {"crops": batch.crops[mine], "crop_boxes": batch.crop_boxes[mine]}
            parts["crop_image"] = batch.crop_image[mine] * 0
    return parts
