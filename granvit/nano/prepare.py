"""Samples of the warm-ups: symbolic images in place of pictures, or beside a picture which words lie in which patch."""

from __future__ import annotations

import math
from dataclasses import replace

from PIL import Image

from granvit.geometry import Boxes, View
from granvit.model.packing import Branch, Sample
from granvit.model.region_model import RegionModel
from granvit.nano.questions import where_exchange
from granvit.nano.symbolic import Grid, symbolic_grid
from granvit.regions import Region, RegionImage
from granvit.train.prepare import Prepare
from granvit.train.sampling import SampleConfig


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
        """The tokens of an object's words; of print those of each letter, for print is read letter by letter."""
        parts = list(region.text) if region.kind == "text" else [region.text]
        for part in parts:
            if part not in self.known:
                # Looked up first: encoding writes a space before a letter.
                token = self.vocabulary.get(part)
                self.known[part] = self.dialog.plain.encode([part])[0] if token is None else [token]
        return [token for part in parts for token in self.known[part]]


class SymbolicPrepare(Prepare):
    """The symbolic image in place of pixels, and the warm-up's own words for a place."""

    _locate = staticmethod(where_exchange)

    def __init__(self, model: RegionModel, config: SampleConfig):
        super().__init__(model, config)
        self.grids = GridMaker(model)

    def _decode(self, record: RegionImage) -> None:
        return None

    def _sample(
        self, record: RegionImage, image: Image.Image | None, view: View, branches: list[Branch], boxes: Boxes
    ) -> Sample:
        return Sample(record.id, branches, view=view, extra=self.grids(record, view))


class WordMapPrepare(Prepare):
    """Beside the pixels, which words lie in which patch; what is ignored is painted over."""

    def __init__(self, model: RegionModel, config: SampleConfig):
        super().__init__(model, config)
        self.grids = GridMaker(model)

    def _sample(
        self, record: RegionImage, image: Image.Image | None, view: View, branches: list[Branch], boxes: Boxes
    ) -> Sample:
        assert image is not None
        sample = super()._sample(record, _covered(image, record, self.fill), view, branches, boxes)
        return replace(sample, extra=self.grids(record, view))


def _covered(image: Image.Image, record: RegionImage, fill: tuple[int, int, int]) -> Image.Image:
    """The image with its ignored regions painted over: what is seen there is not nothing, and nobody may say what."""
    hidden = [region.box for region in record.regions if region.ignore]
    if hidden:
        image = image.copy()
        for x1, y1, x2, y2 in hidden:
            image.paste(fill, (math.floor(x1), math.floor(y1), math.ceil(x2), math.ceil(y2)))
    return image
