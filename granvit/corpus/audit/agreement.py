"""A second opinion: what another annotator says about the same pictures.

Agreement is not truth: two models may be wrong alike, and the same engine asked twice says how stable it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps

from granvit.bootstrap import Estimate, ratios
from granvit.corpus.annotate.base import Annotator, Item
from granvit.corpus.audit.matching import match
from granvit.geometry import whole_pixels
from granvit.regions import Region, RegionImage
from granvit.texts import edit_cost, one_spaced, rouge_l_each

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

    def add(self, source: str, sums: dict[str, float]) -> None:
        self._rows[source].append(sums)

    def estimates(self, seed: int) -> dict[str, dict[str, Estimate | None]]:
        result = {}
        for source, rows in self._rows.items():
            over, under = ([[row[pair[side]] for pair in self._scores.values()] for row in rows] for side in (0, 1))
            result[source] = dict(zip(self._scores, ratios(over, under, seed), strict=True))
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
        self._tally.add(record.source, sums)
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
        judged = len(theirs) - len(matching.excused)
        overlap = sum(iou for _, _, iou in matching.pairs)
        pairs = len(matching.pairs)
        self._tally.add(record.source, {"pairs": pairs, "ours": len(chosen), "theirs": judged, "iou": overlap})
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
        self._tally.add(record.source, sums)
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
