"""Symbolic images: what a picture holds, written in word embeddings instead of pixels.

A from-scratch language model has to learn to look things up in an image before an encoder can learn from it.
`LanguageWarmup` shows it symbolic images: every patch holds the sum of the word embeddings of what covers it,
weighted by coverage. It stands in for the paper's pretrained language model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from granvit.geometry import View
from granvit.regions import Region, RegionImage

_LEAST_COVERAGE = 0.02


@dataclass
class Grid:
    """A symbolic image: entry k adds `weights[k]` of the embedding of token `words[k]` to patch `patches[k]`."""

    patches: NDArray[np.int64]
    words: NDArray[np.int64]
    weights: NDArray[np.float32]

    @staticmethod
    def collate(grids: Sequence[Grid], patches: int) -> Grids:
        """The symbolic images of a batch, of so many patches each."""
        return Grids(
            torch.from_numpy(np.concatenate([i * patches + g.patches for i, g in enumerate(grids)])),
            torch.from_numpy(np.concatenate([g.words for g in grids])),
            torch.from_numpy(np.concatenate([g.weights for g in grids])),
            patches,
        )


@dataclass
class Grids:
    """The symbolic images of a batch: K entries, whose patches run over all images of `per_image` patches each."""

    patches: Tensor
    words: Tensor
    weights: Tensor
    per_image: int

    def to(self, device: torch.device | str) -> Grids:
        return Grids(self.patches.to(device), self.words.to(device), self.weights.to(device), self.per_image)

    def of_image(self, image: int) -> Grids:
        mine = self.patches // self.per_image == image
        return Grids(self.patches[mine] % self.per_image, self.words[mine], self.weights[mine], self.per_image)


def symbolic_grid(record: RegionImage, view: View, patches: int, tokenize: Callable[[Region], list[int]]) -> Grid:
    """The symbolic image of a record: `patches` x `patches` patches, row by row.

    Later regions lie in front of earlier ones. The words of an object cover its whole box; the tokens of a text
    stand side by side along its line.
    """
    rows: list[NDArray[np.int64]] = []
    words: list[NDArray[np.int64]] = []
    weights: list[NDArray[np.float32]] = []
    uncovered = np.ones((patches, patches))
    for region in reversed(record.regions):
        cover = _coverage(region, view, patches)
        seen = cover * uncovered
        uncovered *= 1 - cover
        tokens = np.asarray(tokenize(region))
        if region.kind == "object":
            shares = np.broadcast_to(seen, (len(tokens), patches, patches))
        else:
            shares = seen * _along_line(region, view, patches, len(tokens))[:, None, :]
        token, row, column = np.nonzero(shares > _LEAST_COVERAGE)
        rows.append(row * patches + column)
        words.append(tokens[token])
        weights.append(shares[token, row, column].astype(np.float32))
    if not rows:
        empty = np.zeros(0, np.int64)
        return Grid(empty, empty, np.zeros(0, np.float32))
    return Grid(np.concatenate(rows), np.concatenate(words), np.concatenate(weights))


def _overlaps(low: float, high: float, patches: int) -> NDArray[np.float64]:
    """The share of each unit interval [i, i + 1] that [low, high] covers, shape (patches,)."""
    edges = np.arange(patches + 1.0)
    return np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, 1)


def _in_patches(region: Region, view: View, patches: int) -> NDArray[np.float64]:
    return view.to_canvas(region.box)[0] / (np.tile(view.canvas, 2) / patches)


def _coverage(region: Region, view: View, patches: int) -> NDArray[np.float64]:
    x1, y1, x2, y2 = _in_patches(region, view, patches)
    return np.outer(_overlaps(y1, y2, patches), _overlaps(x1, x2, patches))


def _along_line(region: Region, view: View, patches: int, tokens: int) -> NDArray[np.float64]:
    """How much of each column's ink belongs to each token, shape (tokens, patches)."""
    x1, _, x2, _ = _in_patches(region, view, patches)
    cuts = np.linspace(x1, x2, tokens + 1)
    shares = np.stack([_overlaps(a, b, patches) for a, b in zip(cuts[:-1], cuts[1:], strict=True)])
    total = shares.sum(0)
    return np.divide(shares, total, out=np.zeros_like(shares), where=total > 0)
