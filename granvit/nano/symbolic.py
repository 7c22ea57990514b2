"""Symbolic images: what a picture holds, written in word embeddings instead of pixels; and samples made of them.

The warm-up of a from-scratch language model learns to look things up in them, but in words and in an order of
coordinates of its own: Caption2Bbox is new to it in stage 2, as it is to the paper's pretrained model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from granvit.coordinates import Box, Codec
from granvit.errors import GranvitError
from granvit.geometry import Boxes, View
from granvit.model.packing import Branch, Sample, SampleExtra
from granvit.model.region_model import RegionModel
from granvit.questions import Coded, Exchange, parse_box
from granvit.regions import Region, RegionImage
from granvit.train.config import SampleConfig
from granvit.train.prepare import Prepare

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


WHERE = "Where in the image is this: "


def where_exchange(box: ArrayLike, text: str, codec: Codec) -> Exchange:
    """The warm-up's way to ask for a region, answered as y1, x1, y2, x2 (PaliGemma's order).

    `box` is relative (x1, y1, x2, y2) in [0, 1].
    """
    return Exchange("caption2bbox", WHERE + text, Coded(codec.encode(np.asarray(box)[[1, 0, 3, 2]])))


def parse_where(answer: str, codec: Codec) -> Box | None:
    """The relative box (x1, y1, x2, y2) of an answer to `where_exchange`, or None."""
    box = parse_box(answer, codec)
    return None if box is None else (box[1], box[0], box[3], box[2])


class GridMaker:
    """Lays records out as symbolic images; remembers the tokens of each text."""

    def __init__(self, model: RegionModel):
        self.grid, self.dialog = model.grid, model.dialog
        vocabulary: dict[str, int] = self.dialog.tokenizer.get_vocab()
        self.vocabulary = {text: i for text, i in vocabulary.items() if i not in self.dialog.plain.ids}
        self.known: dict[str, list[int]] = {}

    def __call__(self, record: RegionImage, view: View) -> Grid:
        """With what the view cuts: it is seen, though not asked about."""
        seen = replace(record, regions=[region for region in record.regions if not region.ignore])
        return symbolic_grid(seen, view, self.grid, self._tokens)

    def _tokens(self, region: Region) -> list[int]:
        """The tokens of an object's words; of text those of each letter, for text is read letter by letter."""
        parts = list(region.text) if region.kind == "text" else [region.text]
        for part in parts:
            if part not in self.known:
                # Looked up first: encoding writes a space before a letter.
                token = self.vocabulary.get(part)
                self.known[part] = self.dialog.plain.encode([part])[0] if token is None else [token]
        return [token for part in parts for token in self.known[part]]


def _refuse_tiles(model: RegionModel) -> None:
    if model.settings.tiles:
        raise GranvitError("settings.tiles: warm-ups know pictures of one canvas alone; tile in the stages after them")


class SymbolicPrepare(Prepare):
    """The symbolic image in place of pixels, and the warm-up's own words for a place."""

    _locate = staticmethod(where_exchange)

    def __init__(self, model: RegionModel, config: SampleConfig):
        _refuse_tiles(model)
        super().__init__(model, config)
        self.grids = GridMaker(model)

    def _decode(self, record: RegionImage) -> None:
        return None

    def _sample(
        self,
        record: RegionImage,
        image: Image.Image | None,
        view: View,
        branches: list[Branch],
        boxes: Boxes,
        cropped: NDArray[np.int64],
    ) -> Sample:
        return Sample(record.id, branches, view=view, extra=self.grids(record, view))


class WordMapPrepare(Prepare):
    """Beside the pixels, which words lie in which patch; what is ignored is painted over."""

    def __init__(self, model: RegionModel, config: SampleConfig):
        _refuse_tiles(model)
        super().__init__(model, config)
        self.grids = GridMaker(model)

    def _decode(self, record: RegionImage) -> Image.Image | None:
        image = super()._decode(record)
        return None if image is None else _covered(image, record, self.fill)

    def _extra(self, record: RegionImage, view: View, branches: list[Branch], boxes: Boxes) -> SampleExtra:
        return self.grids(record, view)


def _covered(image: Image.Image, record: RegionImage, fill: tuple[int, int, int]) -> Image.Image:
    """The image with its ignored regions painted over: what is seen there is not nothing, and nobody may say what."""
    hidden = [region.box for region in record.regions if region.ignore]
    if hidden:
        image = image.copy()
        for x1, y1, x2, y2 in hidden:
            image.paste(fill, (math.floor(x1), math.floor(y1), math.ceil(x2), math.ceil(y2)))
    return image
