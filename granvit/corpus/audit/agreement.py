"""Agreement: which box of one annotation is which of another, and a second model's opinion of the same pictures.

Agreement is not truth: two models may be wrong alike, and the same engine asked twice says how stable it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps

from granvit.bootstrap import Estimate, ratios
from granvit.corpus.annotate.base import Annotator, Item
from granvit.geometry import area, as_boxes, intersection, iou, whole_pixels
from granvit.regions import Region, RegionImage
from granvit.texts import edit_cost, one_spaced, rouge_l_each

THRESHOLD = 0.5


@dataclass(frozen=True)
class Matching:
    """The outcome for one image; numbers are indices into the found and the true boxes as they were given.

    Attributes:
        pairs: (found, true, IoU), best first; no box is in two pairs.
        false: found boxes that are no true box.
        missed: true boxes that were not found.
        ignored: found boxes in regions to be ignored: neither right nor wrong.
    """

    pairs: list[tuple[int, int, float]]
    false: list[int]
    missed: list[int]
    ignored: list[int]


def match(found: ArrayLike, true: ArrayLike, ignored: ArrayLike = (), threshold: float = THRESHOLD) -> Matching:
    """Pair boxes one to one, greedily by IoU: the best pair of all first, then the best of what is left.

    Ignored regions follow ICDAR's rule: a found box without a partner of which more than half lies in ignored regions
    is ignored. (ICDAR takes such boxes out before it matches; here, as in COCO, a true box may be found by one first.)

    Args:
        found, true, ignored: (N, 4), (M, 4), (K, 4), xyxy pixels of one image.
        threshold: the least IoU of a pair.
    """
    overlap_nm = iou(found, true)
    rows, columns = np.nonzero((overlap_nm >= threshold) & (overlap_nm > 0))
    pairs: list[tuple[int, int, float]] = []
    free_found, free_true = set(range(overlap_nm.shape[0])), set(range(overlap_nm.shape[1]))
    # A stable sort: of equal overlaps the first boxes win, on every machine.
    for index in np.argsort(-overlap_nm[rows, columns], kind="stable").tolist():
        row, column = int(rows[index]), int(columns[index])
        if row in free_found and column in free_true:
            pairs.append((row, column, float(overlap_nm[row, column])))
            free_found.remove(row)
            free_true.remove(column)
    within = set(np.flatnonzero(covered(found, ignored) > 0.5).tolist()) & free_found
    return Matching(pairs, sorted(free_found - within), sorted(free_true), sorted(within))


def covered(boxes: ArrayLike, by: ArrayLike) -> NDArray[np.float64]:
    """The share of each box's area that lies in the boxes `by`, in [0, 1], shape (N,).

    What lies in two of them counts twice, up to the whole box: exact where they don't overlap, as words and lines
    of text don't.
    """
    total = area(boxes)
    inside = intersection(boxes, by).sum(axis=1)
    return np.clip(np.divide(inside, total, out=np.zeros_like(total), where=total > 0), 0, 1)


def holding_several(outer: ArrayLike, inner: ArrayLike) -> tuple[int, int]:
    """How many outer boxes hold two or more inner ones, at least half of each, and how many inner ones those are.

    A line of text holds its words: many such boxes mean that two annotations differ in granularity.
    """
    outer_n4, inner_m4 = as_boxes(outer), as_boxes(inner)
    shares_nm = intersection(outer_n4, inner_m4) / np.maximum(area(inner_m4), 1e-9)
    held_nm = shares_nm >= 0.5
    several = held_nm.sum(axis=1) >= 2
    return int(several.sum()), int(held_nm[several].any(axis=0).sum())


# A line is cut out with nothing around it, so that no neighbour is read along, and framed by its background, since
# text detectors want room. As a share of the crop's shorter side.
_FRAME = 0.3
# Captions that share so little speak of different things; two good short captions share about half their words.
SAME_CAPTION = 0.2


@dataclass
class Opinion:
    """What a check says about one image.

    Attributes:
        agrees: indices of regions of which the other annotator says the same.
        differs: index of a region -> what it says instead.
        more: regions that only the other annotator sees.
    """

    agrees: list[int] = field(default_factory=list)
    differs: dict[int, str] = field(default_factory=dict)
    more: list[Region] = field(default_factory=list)


class Check(Protocol):
    """A comparison of a corpus with another annotator, image by image.

    Attributes:
        name: "reread", "detector" or "captioner".
        by: the other annotator's name.
    """

    name: str
    by: str

    def __call__(self, record: RegionImage, picture: Image.Image) -> Opinion:
        """Ask about one image; the record is not modified."""
        ...

    def scores(self, seed: int) -> dict[str, dict[str, Estimate | None]]:
        """Source -> score -> fraction in [0, 1] with its interval, over the images seen so far."""
        ...


class _Tally:
    """Sums per image, by source, and scores that are ratios of such sums."""

    def __init__(self, scores: Mapping[str, tuple[str, str]]) -> None:
        self._scores = scores
        self._rows: dict[str, list[dict[str, float]]] = defaultdict(list)
        self._ids: dict[str, list[str]] = defaultdict(list)

    def add(self, record: RegionImage, sums: dict[str, float]) -> None:
        self._rows[record.source].append(sums)
        self._ids[record.source].append(record.id)

    def estimates(self, seed: int) -> dict[str, dict[str, Estimate | None]]:
        result = {}
        for source, rows in self._rows.items():
            over, under = ([[row[pair[side]] for pair in self._scores.values()] for row in rows] for side in (0, 1))
            result[source] = dict(zip(self._scores, ratios(over, under, seed, self._ids[source]), strict=True))
        return result


class Reread:
    """Text regions, each cut out and read again by itself.

    Scores: "cer" and "cer_any_case": wrong characters of this second reading, over the characters of the corpus's text;
    "same": texts that are equal but for letter case and white space; "unread": crops in which nothing was read.
    """

    name = "reread"

    def __init__(self, annotator: Annotator, by: str) -> None:
        self.by = by
        self._annotator = annotator
        self._tally = _Tally(
            {
                "cer": ("errors", "characters"),
                "cer_any_case": ("errors_any_case", "characters_any_case"),
                "same": ("same", "regions"),
                "unread": ("unread", "regions"),
            }
        )

    def __call__(self, record: RegionImage, picture: Image.Image) -> Opinion:
        chosen = {i: r for i, r in enumerate(record.regions) if r.kind == "text" and not r.ignore}
        opinion = Opinion()
        if not chosen:
            return opinion
        items = [_crop_item(record.id, region, picture) for region in chosen.values()]
        sums: dict[str, float] = defaultdict(float, regions=len(chosen))
        for (index, region), item in zip(chosen.items(), self._annotator(items), strict=True):
            said = " ".join(r.text for r in item.record.regions)
            for case, fold in (("", str), ("_any_case", str.casefold)):
                errors, characters = edit_cost(fold(said), fold(region.text))
                sums[f"errors{case}"] += errors
                sums[f"characters{case}"] += characters
            same = one_spaced(said).casefold() == one_spaced(region.text).casefold()
            sums["same"] += same
            sums["unread"] += not said
            if same:
                opinion.agrees.append(index)
            else:
                opinion.differs[index] = said
        self._tally.add(record, sums)
        return opinion

    def scores(self, seed: int) -> dict[str, dict[str, Estimate | None]]:
        return self._tally.estimates(seed)


def _crop_item(name: str, region: Region, picture: Image.Image) -> Item:
    """The region alone, framed by its most usual colour."""
    crop = picture.crop(whole_pixels(region.box, *picture.size))
    red, green, blue = np.median(np.asarray(crop).reshape(-1, 3), axis=0).astype(int).tolist()
    framed = ImageOps.expand(crop, round(_FRAME * min(crop.size)), (red, green, blue))
    return Item(RegionImage(name, None, *framed.size, regions=[]), framed)


class Redetect:
    """Objects, looked for again in the whole picture by a second detector, classes aside.

    Scores at IoU 0.5, one to one: "confirmed": boxes of the corpus that the detector has too; "known": its boxes that
    the corpus has too; "mean_iou" of the pairs. Images without object regions are left out.
    """

    name = "detector"

    def __init__(self, annotator: Annotator, by: str) -> None:
        self.by = by
        self._annotator = annotator
        self._tally = _Tally(
            {"confirmed": ("pairs", "ours"), "known": ("pairs", "theirs"), "mean_iou": ("iou", "pairs")}
        )

    def __call__(self, record: RegionImage, picture: Image.Image) -> Opinion:
        chosen = [i for i, r in enumerate(record.regions) if r.kind == "object" and not r.ignore]
        ignored = [r.box for r in record.regions if r.kind == "object" and r.ignore]
        if not chosen:
            return Opinion()
        item = Item(replace(record, regions=[]), picture)
        theirs = self._annotator([item])[0].record.regions
        matching = match([r.box for r in theirs], [record.regions[i].box for i in chosen], ignored)
        judged = len(theirs) - len(matching.ignored)
        overlap = sum(iou for _, _, iou in matching.pairs)
        pairs = len(matching.pairs)
        self._tally.add(record, {"pairs": pairs, "ours": len(chosen), "theirs": judged, "iou": overlap})
        return Opinion(
            [chosen[j] for _, j, _ in matching.pairs],
            {chosen[j]: "not found" for j in matching.missed},
            [theirs[i] for i in matching.false],
        )

    def scores(self, seed: int) -> dict[str, dict[str, Estimate | None]]:
        return self._tally.estimates(seed)


class Recaption:
    """Object regions, captioned again by a second captioner.

    Scores: "rouge_l" of its captions with the corpus's as references, on average over regions; "answered": regions for
    which it gave a caption at all.
    """

    name = "captioner"

    def __init__(self, annotator: Annotator, by: str) -> None:
        self.by = by
        self._annotator = annotator
        self._tally = _Tally({"rouge_l": ("rouge", "answered"), "answered": ("answered", "regions")})

    def __call__(self, record: RegionImage, picture: Image.Image) -> Opinion:
        chosen = [i for i, r in enumerate(record.regions) if r.kind == "object" and not r.ignore]
        opinion = Opinion()
        if not chosen:
            return opinion
        blank = [replace(record.regions[i], text="", alternatives=[]) for i in chosen]
        item = Item(replace(record, regions=blank, caption=None), picture)
        # Refused regions are gone from the answer: each is known again by its box.
        answers = {r.box: r.text for r in self._annotator([item])[0].record.regions if r.text}
        answered = [(i, answers[record.regions[i].box]) for i in chosen if record.regions[i].box in answers]
        sums: dict[str, float] = {"regions": len(chosen), "answered": len(answered), "rouge": 0.0}
        if answered:
            ours = [[record.regions[i].text, *record.regions[i].alternatives] for i, _ in answered]
            scores = rouge_l_each([said for _, said in answered], ours)
            sums["rouge"] = sum(scores)
            opinion.differs = {i: said for (i, said), s in zip(answered, scores, strict=True) if s < SAME_CAPTION}
            opinion.agrees = [i for i, _ in answered if i not in opinion.differs]
        self._tally.add(record, sums)
        return opinion

    def scores(self, seed: int) -> dict[str, dict[str, Estimate | None]]:
        return self._tally.estimates(seed)


def to_json(check: Check, seed: int) -> dict[str, Any]:
    """A check's name, who was asked, and its scores by source."""
    scores = {
        source: {name: estimate and estimate.to_json() for name, estimate in mine.items()}
        for source, mine in check.scores(seed).items()
    }
    return {"check": check.name, "by": check.by, "sources": scores}
