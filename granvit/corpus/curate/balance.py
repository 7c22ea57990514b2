"""Balance: texts that one source repeats too often, and how many images of each source stay.

What is repeated suspiciously often is what a captioner says when it does not know. Caps and mixing weights of sources
leave images by a hash, the same everywhere.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from granvit.corpus.layout import CorpusError
from granvit.regions import Region

# Makers of class names, and of captions that are right by construction.
_NAMES_OR_TRUTHS = ("human", "detector:", "synthetic")


@dataclass(frozen=True)
class Repeats:
    """How often a text may occur. What is beyond that is thinned out, evenly by a hash, not dropped altogether.

    Class names and the words of people repeat by nature, and so do printed ones ("TOTAL"); a machine's caption that
    comes back a thousand times is mostly its way to say nothing.
    """

    whose: Literal["captioner", "all", "none"] = "captioner"
    """Which texts are looked at: what captioning models wrote about objects, every text, or none."""
    max_share: float = 0.002
    """A text may be this share of its source's regions of its kind ..."""
    min_count: int = 50
    """... and always occur this often."""

    def concerns(self, region: Region) -> bool:
        """Whether the region's text is looked at."""
        if self.whose == "none" or region.ignore:
            return False
        return self.whose == "all" or region.kind == "object" and not region.text_by.startswith(_NAMES_OR_TRUTHS)


def text_hash(text: str) -> int:
    """64 bits of the text, whatever its case and spacing."""
    plain = " ".join(text.casefold().split())
    return int.from_bytes(hashlib.blake2b(plain.encode(), digest_size=8).digest(), "little")


class TextCounts:
    """Counts of texts by their hashes, at most 20 bytes for each different one, 60 for a moment."""

    def __init__(self) -> None:
        self.total = 0
        self._waiting = array("Q")
        self._hashes = np.empty(0, np.uint64)
        self._counts = np.empty(0, np.int64)

    def add(self, hashed: int) -> None:
        """Count one text."""
        self.total += 1
        self._waiting.append(hashed)
        # In proportion to what is there: however many texts come, each is sorted a few times only.
        if len(self._waiting) >= max(1 << 20, len(self._hashes) // 2):
            self._merge()

    def _merge(self) -> None:
        hashes = np.concatenate([self._hashes, np.frombuffer(self._waiting, np.uint64)])
        counts = np.concatenate([self._counts, np.ones(len(self._waiting), np.int64)])
        self._waiting = array("Q")
        self._hashes, places = np.unique(hashes, return_inverse=True)
        self._counts = np.bincount(places, weights=counts, minlength=len(self._hashes)).astype(np.int64)

    def above(self, limit: float) -> dict[int, int]:
        """The texts that occur more often than `limit`, with their counts."""
        self._merge()
        many: NDArray[np.bool_] = self._counts > limit
        return dict(zip(self._hashes[many].tolist(), self._counts[many].tolist(), strict=True))


class RepeatedTexts:
    """Counts of the texts that `repeats` looks at, by source and kind of region."""

    def __init__(self, repeats: Repeats) -> None:
        self._repeats = repeats
        self._texts: dict[tuple[str, str], TextCounts] = {}
        self._regions: Counter[tuple[str, str]] = Counter()

    def __bool__(self) -> bool:
        """Whether there was any."""
        return bool(self._texts)

    def add(self, source: str, regions: Iterable[Region]) -> None:
        """Count the texts of regions that a source has."""
        for region in regions:
            key = source, region.kind
            self._regions[key] += 1
            if self._repeats.concerns(region):
                self._texts.setdefault(key, TextCounts()).add(text_hash(region.text))

    def allowed(self) -> dict[tuple[str, str], dict[int, tuple[float, int]]]:
        """By source and kind: texts that occur too often, as the share of them to keep and their count."""
        found = {}
        for key, texts in self._texts.items():
            limit = max(self._repeats.min_count, self._repeats.max_share * self._regions[key])
            found[key] = {hashed: (limit / count, count) for hashed, count in texts.above(limit).items()}
        return found


def mix(
    source: NDArray[np.int32],
    draw: NDArray[np.float64],
    names: list[str],
    caps: Mapping[str, int],
    weights: Mapping[str, float],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which images caps, and which the weights, leave out: two masks, shape (N,).

    Of each source the images with the lowest draws stay. The weights keep as many as possible in their proportion; no
    image is repeated. With weights, each source that is left must have one.

    Args:
        source: indices into `names`, shape (N,).
        draw: a number in [0, 1) for each image.

    Raises:
        CorpusError: a source has no weight.
    """
    over_cap = np.zeros(len(source), dtype=bool)
    over_weight = np.zeros(len(source), dtype=bool)
    chosen: dict[str, NDArray[np.int64]] = {}
    for index, name in enumerate(names):
        mine = np.flatnonzero(source == index)
        mine = mine[np.argsort(draw[mine], kind="stable")]
        cap = caps.get(name, len(mine))
        over_cap[mine[cap:]] = True
        if len(mine[:cap]):
            chosen[name] = mine[:cap]
    if weights:
        if missing := sorted(set(chosen) - set(weights)):
            raise CorpusError(f"no weight for the source {missing[0]!r}; 0 leaves it out")
        # The source that is scarcest for its weight sets the size of all.
        whole = min((len(mine) / weights[name] for name, mine in chosen.items() if weights[name] > 0), default=0.0)
        for name, mine in chosen.items():
            over_weight[mine[int(whole * weights[name] + 1e-6) :]] = True
    return over_cap, over_weight
