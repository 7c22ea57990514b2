"""A batch of symbolic images, drawn."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageColor

from granvit.coordinates import Box
from granvit.draw import PALETTE
from granvit.model.packing import Batch
from granvit.model.region_model import RegionModel
from granvit.nano.symbolic import WHERE, Grids, parse_where
from granvit.train.debug.first_batch import BatchReader


class SymbolicReader(BatchReader):
    """A symbolic image as what covers each patch, a colour for each word; places as the warm-up words them."""

    def canvas(self, model: RegionModel, single: Batch) -> Image.Image:
        grids = single.extra
        assert isinstance(grids, Grids)
        ink, weight = np.zeros((model.grid**2, 3)), np.zeros((model.grid**2, 1))
        entries = (t.cpu().numpy() for t in (grids.patches, grids.words, grids.weights))
        for patch, word, share in zip(*entries, strict=True):
            ink[patch] += share * np.array(ImageColor.getrgb(PALETTE[word % len(PALETTE)]))
            weight[patch] += share
        covered = weight / max(weight.max(), 1e-9)
        colors = 255 * (1 - covered) + covered * ink / np.maximum(weight, 1e-9)
        patches = Image.fromarray(colors.round().astype(np.uint8).reshape(model.grid, model.grid, 3))
        return patches.resize((model.canvas, model.canvas), Image.Resampling.NEAREST)

    def located(self, model: RegionModel, question: str, answer: str) -> tuple[str, Box | None]:
        return question.partition(WHERE)[2].strip(), parse_where(answer, model.codec)
