"""Curation's first pass: what the filters leave of each image, and the few bytes by which to choose among images."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from granvit.corpus.filters import Filters, box_reasons, image_reason, nested_reasons
from granvit.corpus.repeats import Repeats, TextCounts, text_hash
from granvit.corpus.select import unit_hash
from granvit.regions import RegionImage

# A held-out image outlives its copy in the training part, never the other way round.
_KEPT_FIRST = {"test": 0, "val": 1}
_BATCH = 256


@dataclass
class Verdict:
    """What the filters made of one image.

    Attributes:
        record: the image with the regions that passed.
        places: of each of them, its index before.
        reason: why the image is dropped, or None.
        regions: how many regions were dropped, by reason.
    """

    record: RegionImage
    places: list[int]
    reason: str | None
    regions: Counter[str] = field(default_factory=Counter)


def judge(records: Iterable[RegionImage], filters: Filters) -> Iterator[Verdict]:
    """The verdicts on a stream of records, in order."""
    batch: list[RegionImage] = []
    for record in records:
        batch.append(record)
        if len(batch) == _BATCH:
            yield from _judge(batch, filters)
            batch = []
    yield from _judge(batch, filters)


def _judge(batch: Sequence[RegionImage], filters: Filters) -> Iterator[Verdict]:
    by_region = box_reasons([region for record in batch for region in record.regions], filters)
    ends = accumulate(len(record.regions) for record in batch)
    for record, end in zip(batch, ends, strict=True):
        reason = image_reason(record, filters)
        if reason is not None:
            yield Verdict(record, [], reason)
            continue
        reasons = by_region[end - len(record.regions) : end]
        places = [i for i, why in enumerate(reasons) if why is None]
        if filters.nested and len(places) > 1:
            for i, why in zip(places, nested_reasons([record.regions[i] for i in places]), strict=True):
                reasons[i] = why
            places = [i for i, why in enumerate(reasons) if why is None]
        if len(places) < len(record.regions):
            record = replace(record, regions=[record.regions[i] for i in places])
        dropped = Counter(filter(None, reasons)) if any(reasons) else Counter()
        yield Verdict(record, places, too_few(record, filters), dropped)


def too_few(record: RegionImage, filters: Filters) -> str | None:
    """Why an image with these regions is dropped, or None: "no-regions", "few-regions"."""
    counted = sum(not region.ignore for region in record.regions)
    if counted >= filters.min_regions:
        return None
    return "few-regions" if counted else "no-regions"


class Survey:
    """What is known of the images that passed the filters, about 30 bytes each, in the order of the corpus.

    Attributes:
        rows: places in the corpus.
        source: index into `sources`.
        sources: names, in order of appearance.
        draw: a number in [0, 1) that depends on seed and id alone.
        texts: by source and kind, the texts whose repetitions are looked at; `regions` counts all of that kind.
    """

    def __init__(self, records: Iterable[RegionImage], filters: Filters, repeats: Repeats, seed: int) -> None:
        rows, source, pixels, held = array("q"), array("i"), array("q"), array("b")
        draws = array("d")
        names: dict[str, int] = {}
        self.texts: dict[tuple[str, str], TextCounts] = {}
        self.regions: Counter[tuple[str, str]] = Counter()
        for row, verdict in enumerate(judge(records, filters)):
            if verdict.reason is not None:
                continue
            record = verdict.record
            rows.append(row)
            source.append(names.setdefault(record.source, len(names)))
            pixels.append(record.width * record.height)
            held.append(_KEPT_FIRST.get(record.split, 2))
            draws.append(unit_hash(f"{seed}:{record.id}"))
            self._count_texts(record, repeats)
        self.sources = list(names)
        self.rows: NDArray[np.int64] = np.array(rows, np.int64)
        self.source: NDArray[np.int32] = np.array(source, np.int32)
        self.draw: NDArray[np.float64] = np.array(draws, np.float64)
        self._pixels, self._held = np.array(pixels, np.int64), np.array(held, np.int8)

    def __len__(self) -> int:
        return len(self.rows)

    def _count_texts(self, record: RegionImage, repeats: Repeats) -> None:
        for region in record.regions:
            key = record.source, region.kind
            self.regions[key] += 1
            if repeats.concerns(region):
                self.texts.setdefault(key, TextCounts()).add(text_hash(region.text))

    def best(self, group: Sequence[int]) -> int:
        """Of images that are copies of each other, the one to keep: held out, then largest, then first."""
        return min(group, key=lambda i: (self._held[i], -self._pixels[i], i))

    def allowed(self, repeats: Repeats) -> dict[tuple[str, str], dict[int, tuple[float, int]]]:
        """By source and kind: texts that occur too often, as the share of them to keep and their count."""
        found = {}
        for key, texts in self.texts.items():
            limit = max(repeats.min_count, repeats.max_share * self.regions[key])
            found[key] = {hashed: (limit / count, count) for hashed, count in texts.above(limit).items()}
        return found
