"""Which images and regions are good enough to learn from: the paper's filters for objects, others for text.

The paper keeps images whose shorter side exceeds 448 pixels and whose aspect ratio lies in [1/3, 3], boxes of more than
100^2 pixels in the same range of aspect ratios, and images with at least one box. For objects these are the defaults
here. They would leave hardly any text: a printed line is ten to forty times as long as it is high and covers 2,000
square pixels, and a receipt is a long strip. So text is held to what makes it readable, the height of its letters.

`PassedImages` is curation's first pass: the few bytes of each image that passed by which to choose among them.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from itertools import accumulate
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from granvit import geometry
from granvit.corpus.curate.balance import RepeatedTexts, Repeats
from granvit.regions import Region, RegionImage
from granvit.sampling import unit_hash


@dataclass(frozen=True)
class ImageFilter:
    """What an image must be."""

    min_short_side: float = 448
    """The shorter side must exceed this, pixels."""
    max_aspect: float = 3
    """The longer side over the shorter one, at most."""


@dataclass(frozen=True)
class BoxFilter:
    """What a region must be."""

    min_area: float = 100**2
    """The box must cover more than this, square pixels."""
    min_side: float = 0
    """The box's shorter side must have at least this, pixels."""
    max_aspect: float = 3
    """The longer side over the shorter one, at most."""
    min_score: float = 0
    """The annotator's confidence must reach this; regions without a score pass."""


@dataclass(frozen=True)
class Filters:
    """The filters of images and of regions, by kind.

    An image whose regions are all text is held to `text_image`, any other to `object_image`. Regions marked `ignore`
    pass every filter, since they say where not to look, and don't count towards `min_regions`.
    """

    object_image: ImageFilter = field(default_factory=ImageFilter)
    text_image: ImageFilter = field(default_factory=lambda: ImageFilter(min_short_side=224, max_aspect=8))
    object_box: BoxFilter = field(default_factory=BoxFilter)
    text_box: BoxFilter = field(default_factory=lambda: BoxFilter(min_area=0, min_side=8, max_aspect=50))
    min_regions: int = 1
    """An image must have so many regions left, unless there are conversations about it."""
    nested: bool = True
    """Of boxes with the same kind and text that coincide (IoU above 0.7) or lie in each other, keep the surest, then
    the largest: "a dog" asked for twice has no one answer."""


Preset = Literal["paper", "photos", "documents"]
# What the paper asks of pictures is asked of large ones: photographs of the usual data sets have short sides of 330 to
# 480 pixels. A part of one that is as large as COCO's smallest "medium" object can still be described.
_PHOTOS = Filters(
    object_image=ImageFilter(min_short_side=160, max_aspect=3),
    object_box=BoxFilter(min_area=32**2, max_aspect=5),
    text_image=ImageFilter(min_short_side=160, max_aspect=8),
)
# Whole pages and long receipts, with the stamps, logos and charts on them.
_PAGE = ImageFilter(min_short_side=160, max_aspect=40)
_DOCUMENTS = Filters(
    object_image=_PAGE,
    object_box=BoxFilter(min_area=32**2, max_aspect=50),
    text_image=_PAGE,
    text_box=BoxFilter(min_area=0, min_side=6, max_aspect=100),
)
PRESETS: dict[Preset, Filters] = {"paper": Filters(), "photos": _PHOTOS, "documents": _DOCUMENTS}


def with_preset(filters: Filters, preset: Preset) -> Filters:
    """The limits of a preset, but for those in which `filters` differs from the paper's: these were asked for."""
    return _chosen(filters, Filters(), PRESETS[preset])


def _chosen(given: Any, default: Any, preset: Any) -> Any:
    if not is_dataclass(given):
        return preset if given == default else given
    names = vars(given)
    return replace(given, **{n: _chosen(getattr(given, n), getattr(default, n), getattr(preset, n)) for n in names})  # type: ignore[type-var]


COINCIDE = 0.7
_INSIDE = 0.95


def image_reason(record: RegionImage, filters: Filters) -> str | None:
    """Why the image is dropped whatever its regions are, or None: "short-side", "image-aspect".

    Conversations without a picture pass.
    """
    if record.text_only:
        return None
    rule = filters.text_image if record.text_image else filters.object_image
    short, long = sorted((record.width, record.height))
    if short <= rule.min_short_side:
        return "short-side"
    return "image-aspect" if long > rule.max_aspect * short else None


def box_reasons(regions: Sequence[Region], filters: Filters) -> list[str | None]:
    """For each region why it is dropped by itself, or None: "score", "box-area", "box-side", "box-aspect".

    Takes the regions of many images at once: a call costs as much for a hundred as for one.
    """
    if not regions:
        return []
    boxes_n4 = geometry.as_boxes([region.box for region in regions])
    short, long = np.sort(geometry.sizes(boxes_n4), axis=1).T
    areas = geometry.area(boxes_n4)
    scores = np.array([_certainty(region) for region in regions])
    is_text = np.array([region.kind == "text" for region in regions])
    exempt = np.array([region.ignore for region in regions])

    def limit(name: str) -> NDArray[np.float64]:
        return np.where(is_text, getattr(filters.text_box, name), getattr(filters.object_box, name))

    failed = {
        "score": scores < limit("min_score"),
        "box-area": areas <= limit("min_area"),
        "box-side": short < limit("min_side"),
        "box-aspect": long > limit("max_aspect") * short,
    }
    reasons: list[str | None] = [None] * len(regions)
    for name, wrong in reversed(failed.items()):
        for i in np.flatnonzero(wrong & ~exempt):
            reasons[i] = name
    return reasons


def _certainty(region: Region) -> float:
    """The score; 1 where there is none, as human annotations have none."""
    return 1.0 if region.score is None else region.score


def nested_reasons(regions: Sequence[Region], settled: int = 0) -> list[str | None]:
    """For each region of one image, why it repeats another: "same-box", "nested-box", or None.

    Args:
        settled: how many of the first of them, which do not repeat each other, stay whatever the others are.
    """
    reasons: list[str | None] = [None] * len(regions)
    by_text: dict[tuple[str, str], list[int]] = {}
    for i, region in enumerate(regions):
        if not region.ignore:
            by_text.setdefault((region.kind, region.text.casefold()), []).append(i)
    for same in by_text.values():
        if len(same) > 1:
            for i, reason in _repeats([regions[i] for i in same], sum(i < settled for i in same)):
                reasons[same[i]] = reason
    return reasons


def _repeats(regions: list[Region], settled: int) -> list[tuple[int, str]]:
    """Those to drop among regions of the same text: settled ones stay first, then the surest, then the largest."""
    boxes_n4 = geometry.as_boxes([region.box for region in regions])
    areas = geometry.area(boxes_n4)
    shared_nn = geometry.intersection(boxes_n4, boxes_n4)
    iou_nn = geometry.iou(boxes_n4, boxes_n4)
    surest = sorted(range(len(regions)), key=lambda i: (i >= settled, -_certainty(regions[i]), -areas[i], i))
    kept: list[int] = []
    dropped: list[tuple[int, str]] = []
    for i in surest:
        smaller = np.minimum(areas[kept], areas[i])
        if (iou_nn[i, kept] > COINCIDE).any():
            dropped.append((i, "same-box"))
        elif (shared_nn[i, kept] > _INSIDE * np.maximum(smaller, 1e-6)).any():
            dropped.append((i, "nested-box"))
        else:
            kept.append(i)
    return dropped


# A held-out image outlives its copy in the training part, never the other way round.
_KEPT_FIRST = {"test": 0, "val": 1}
_BATCH = 256


@dataclass
class Filtered:
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


def apply_filters(records: Iterable[RegionImage], filters: Filters) -> Iterator[Filtered]:
    """The outcomes on a stream of records, in order."""
    batch: list[RegionImage] = []
    for record in records:
        batch.append(record)
        if len(batch) == _BATCH:
            yield from _filter_batch(batch, filters)
            batch = []
    yield from _filter_batch(batch, filters)


def _filter_batch(batch: Sequence[RegionImage], filters: Filters) -> Iterator[Filtered]:
    by_region = box_reasons([region for record in batch for region in record.regions], filters)
    ends = accumulate(len(record.regions) for record in batch)
    for record, end in zip(batch, ends, strict=True):
        reason = image_reason(record, filters)
        if reason is not None:
            yield Filtered(record, [], reason)
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
        yield Filtered(record, places, too_few(record, filters), dropped)


def too_few(record: RegionImage, filters: Filters) -> str | None:
    """Why an image with these regions is dropped, or None: "no-regions", "few-regions".

    One that is talked about needs none.
    """
    if record.conversations:
        return None
    counted = sum(not region.ignore for region in record.regions)
    if counted >= filters.min_regions:
        return None
    return "few-regions" if counted else "no-regions"


class PassedImages:
    """What is known of the images that passed the filters, about 35 bytes each, in the order of the corpus.

    Attributes:
        rows: places in the corpus.
        source: index into `sources`.
        sources: names, in order of appearance.
        draw: a number in [0, 1) that depends on seed and id alone.
        held_out: whether the split's name says so.
        texts: those whose repetitions are looked at.
    """

    def __init__(self, records: Iterable[RegionImage], filters: Filters, repeats: Repeats, seed: int) -> None:
        rows, source, sizes, held = array("q"), array("i"), array("i"), array("b")
        draws, content = array("d"), array("i")
        names: dict[str, int] = {}
        self.texts = RepeatedTexts(repeats)
        for row, filtered in enumerate(apply_filters(records, filters)):
            if filtered.reason is not None:
                continue
            record = filtered.record
            rows.append(row)
            source.append(names.setdefault(record.source, len(names)))
            sizes.extend((record.width, record.height))
            held.append(_KEPT_FIRST.get(record.split, 2))
            draws.append(unit_hash(f"{seed}:{record.id}"))
            content.append(_content(record))
            self.texts.add(record.source, record.regions)
        self.sources = list(names)
        self.rows: NDArray[np.int64] = np.array(rows, np.int64)
        self.source: NDArray[np.int32] = np.array(source, np.int32)
        self.draw: NDArray[np.float64] = np.array(draws, np.float64)
        self._sizes = np.array(sizes, np.int32).reshape(-1, 2)
        self._held, self._content = np.array(held, np.int8), np.array(content, np.int32)
        self.held_out: NDArray[np.bool_] = self._held < 2

    def __len__(self) -> int:
        return len(self.rows)

    def best(self, group: Sequence[int]) -> int:
        """Of images that are copies of each other, the one to keep: held out, then the largest, then the one of which
        most is said, then the first."""
        return min(group, key=lambda i: (self._held[i], -math.prod(self._sizes[i].tolist()), -self._content[i], i))

    def same_size(self, first: int, second: int) -> bool:
        """Whether two images are of one size, and so their boxes of the same pixels."""
        return bool((self._sizes[first] == self._sizes[second]).all())

    def join(self, kept: int, copy: int) -> None:
        """Count what is said of a copy as said of the image that is kept."""
        self._content[kept] += self._content[copy]


def _content(record: RegionImage) -> int:
    """How much is said of an image: regions, a caption, conversations."""
    regions = sum(not region.ignore for region in record.regions)
    return regions + bool(record.caption) + len(record.conversations)
