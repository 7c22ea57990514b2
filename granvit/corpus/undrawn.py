"""The embedded corpus as records without pictures: endless training data for symbolic images."""

from __future__ import annotations

from granvit.corpus.synthetic import OBJECTS, layout
from granvit.regions import RegionImage


class Undrawn:
    """`count` records of the embedded corpus `seed`, laid out when asked for, never drawn.

    `size` is the picture's side in pixels, `documents` the share of documents in [0, 1], `objects` the fewest and most
    objects of a scene.
    """

    def __init__(self, count: int, seed: int, size: int, documents: float, objects: tuple[int, int] = OBJECTS):
        self.count, self.seed, self.size = count, seed, size
        self.documents, self.objects = documents, objects

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> RegionImage:
        return layout(self.seed, index, self.size, self.documents, self.objects).record
