"""The embedded corpus as records without pictures: endless training data for symbolic images."""

from __future__ import annotations

from dataclasses import replace

from granvit.corpus.print import is_print, printed
from granvit.corpus.synthetic import OBJECTS, layout
from granvit.regions import RegionImage


class Undrawn:
    """`count` records of the embedded corpus `seed`, laid out when asked for, without their pictures.

    `size` is the picture's side in pixels, `documents` the share of documents in [0, 1], `objects` the fewest and most
    objects of a scene, `prints` the share of print in their place.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        size: int,
        documents: float,
        objects: tuple[int, int] = OBJECTS,
        prints: float = 0.0,
    ):
        self.count, self.seed, self.size = count, seed, size
        self.documents, self.objects, self.prints = documents, objects, prints

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> RegionImage:
        if is_print(self.seed, index, self.prints):
            return replace(printed(self.seed, index, self.size), image=None)
        return layout(self.seed, index, self.size, self.documents, self.objects).record
