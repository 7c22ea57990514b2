"""A corpus against human annotations of the same images: are the boxes there, and is the text right?

The images of the two are joined by their ids, or else by the sha256 of their files.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np

from granvit import geometry
from granvit.bootstrap import Estimate, ratios
from granvit.corpus.audit.agreement import THRESHOLD, Matching, covered, holding_several, match
from granvit.corpus.layout import CorpusError
from granvit.corpus.store import Corpus
from granvit.regions import Kind, Region, RegionImage
from granvit.texts import edit_cost, rouge_l_each


@dataclass
class Join:
    """Which image of the human corpus is which image of the audited one.

    Attributes:
        human: the human record (without picture) for each joined id of the audited corpus.
        by_id, by_content: how many were joined by their id, and by the sha256 of their file.
        only_here: images of the audited corpus that have no human partner.
        absent: human images that the audited corpus lacks, and `absent_regions`, their regions by kind.
        other_size: images of equal id but other pixel sizes; their boxes can't be compared.
    """

    human: dict[str, RegionImage] = field(default_factory=dict)
    by_id: int = 0
    by_content: int = 0
    only_here: int = 0
    absent: int = 0
    absent_regions: Counter[str] = field(default_factory=Counter)
    other_size: int = 0


def join(corpus: Corpus, human: Corpus) -> Join:
    """Join two corpora of the same images, by id, else by the sha256 of the image file. Conversations without an image
    are neither joined nor counted.

    Pictures are read only where ids don't match. The human corpus's regions are held in memory.

    Raises:
        CorpusError: they have no image in common.
    """
    joined = Join()
    waiting = {record.id: record for record in human.records() if not record.text_only}
    unmatched: dict[str, tuple[int, int]] = {}
    for record in corpus.records():
        if record.text_only:
            continue
        size = (record.width, record.height)
        if (partner := waiting.pop(record.id, None)) is None:
            unmatched[record.id] = size
        elif (partner.width, partner.height) != size:
            joined.other_size += 1
        else:
            joined.human[record.id] = partner
    joined.by_id = len(joined.human)
    if waiting and unmatched:
        ids = {digest: id for id, digest in _digests(human, waiting)}
        for id, digest in _digests(corpus, unmatched):
            if digest in ids:
                joined.human[id] = waiting.pop(ids.pop(digest))
    joined.by_content = len(joined.human) - joined.by_id
    joined.only_here = len(unmatched) - joined.by_content
    joined.absent = len(waiting)
    joined.absent_regions.update(r.kind for record in waiting.values() for r in record.regions if not r.ignore)
    if not joined.human:
        raise CorpusError(
            f"{human.path}: no image of {corpus.path} is in it, neither by id nor by the sha256 of its file"
        )
    return joined


def _digests(corpus: Corpus, wanted: Iterable[str]) -> Iterable[tuple[str, bytes]]:
    """The ids and sha256 of the wanted images, as far as their files are embedded."""
    ids = set(wanted)
    return (
        (record.id, hashlib.sha256(record.image).digest())
        for record in corpus
        if record.id in ids and record.image is not None
    )


KINDS: tuple[Kind, ...] = get_args(Kind)

# What is summed over images, and the scores that are ratios of such sums.
_SUMS = (
    "pairs found true iou covered supported exact exact_any_case rouge twice both "
    "errors characters errors_any_case characters_any_case"
).split()
_SCORES: dict[str, tuple[str, str]] = {
    "precision": ("pairs", "found"),
    "recall": ("pairs", "true"),
    "f1": ("twice", "both"),
    "mean_iou": ("iou", "pairs"),
    "covered": ("covered", "true"),
    "supported": ("supported", "found"),
}
_TEXT_SCORES: dict[str, dict[str, tuple[str, str]]] = {
    "text": {
        "cer": ("errors", "characters"),
        "cer_any_case": ("errors_any_case", "characters_any_case"),
        "exact": ("exact", "pairs"),
        "exact_any_case": ("exact_any_case", "pairs"),
    },
    "object": {"rouge_l": ("rouge", "pairs")},
}


@dataclass(frozen=True)
class Compared:
    """One image's regions of one kind: what was found, what is true, and how they match.

    The indices of `matching` count in `found` and `true`, neither of which holds regions marked `ignore`.
    """

    found: list[Region]
    true: list[Region]
    ignored: list[Region]
    matching: Matching


def compare(record: RegionImage, human: RegionImage, kind: str) -> Compared:
    """Match the regions of one kind of the same image in two corpora."""
    found = [r for r in record.regions if r.kind == kind and not r.ignore]
    true = [r for r in human.regions if r.kind == kind and not r.ignore]
    ignored = [r for r in human.regions if r.kind == kind and r.ignore]
    matching = match([r.box for r in found], [r.box for r in true], [r.box for r in ignored])
    return Compared(found, true, ignored, matching)


@dataclass
class KindScores:
    """The scores of one source and kind, over all joined images.

    Attributes:
        images, found, true, matched, ignored: counts; `found` is without the ignored.
        scores: by name, fractions in [0, 1] with intervals. "precision", "recall", "f1": one-to-one at IoU 0.5;
            "mean_iou" of the pairs. "covered": true boxes at least half of whose area lies in found ones, in
            whatever grouping; "supported": the same of found boxes in true ones. Of matched texts: "cer",
            "exact" and the same "_any_case"; of matched objects' captions "rouge_l".
        merged: found boxes that hold two or more of the missed true ones, and `merged_true`, those.
        split: missed true boxes that hold two or more of the false ones, and `split_found`, those.
    """

    images: int = 0
    found: int = 0
    true: int = 0
    matched: int = 0
    ignored: int = 0
    merged: int = 0
    merged_true: int = 0
    split: int = 0
    split_found: int = 0
    scores: dict[str, Estimate | None] = field(default_factory=dict)

    @property
    def granularity(self) -> str:
        """ "coarser" where found boxes often hold several true ones, "finer" the other way round, else "same"."""
        if not self.true:
            return "same"
        coarser, finer = self.merged_true / self.true, self.split / self.true
        if max(coarser, finer) < 0.1:
            return "same"
        return "coarser" if coarser >= finer else "finer"

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON-able values."""
        names = {"ignored": "excused"}  # in the file
        counts = {names.get(name, name): value for name, value in vars(self).items() if name != "scores"}
        scores = {name: estimate and estimate.to_json() for name, estimate in self.scores.items()}
        return {**counts, "granularity": self.granularity, "iou_threshold": THRESHOLD, "scores": scores}


@dataclass
class HumanScores:
    """The whole comparison.

    Attributes:
        join: which images were compared.
        sources: source (see `group`) -> kind -> scores.
        unjudged: found regions of kinds that no human annotated in that source: (source, kind) -> how many.
    """

    join: Join
    sources: dict[str, dict[str, KindScores]] = field(default_factory=dict)
    unjudged: dict[tuple[str, str], int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON-able values."""
        images = {name: value for name, value in vars(self.join).items() if name != "human"}
        return {
            "images": {"joined": len(self.join.human), **images},
            "unjudged": [{"source": s, "kind": k, "regions": n} for (s, k), n in self.unjudged.items()],
            "sources": {
                source: {kind: scores.to_json() for kind, scores in kinds.items()}
                for source, kinds in self.sources.items()
            },
        }


def group(record: RegionImage, human: RegionImage) -> str:
    """Under which name an image is scored: its source, and the human data set where that has another name.

    Data sets differ in what people annotated and how they cut it; a folder of pictures from several must not mix them.
    """
    return record.source if human.source == record.source else f"{record.source} / {human.source}"


def against_human(records: Iterable[RegionImage], joined: Join, seed: int = 0) -> HumanScores:
    """Score every joined image, by source and kind; a kind that people didn't annotate in a source is not judged."""
    rows: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    ids: dict[tuple[str, str], list[str]] = defaultdict(list)
    scores: dict[tuple[str, str], KindScores] = defaultdict(KindScores)
    annotated: set[tuple[str, str]] = set()
    for record in records:
        if (human := joined.human.get(record.id)) is None:
            continue
        source = group(record, human)
        annotated.update((source, region.kind) for region in human.regions)
        for kind in KINDS:
            compared = compare(record, human, kind)
            if not (compared.found or compared.true or compared.ignored):
                continue
            rows[source, kind].append(_row(compared, kind))
            ids[source, kind].append(record.id)
            _count(scores[source, kind], compared)
    result = HumanScores(joined)
    for (source, name), mine in sorted(scores.items()):
        if (source, name) in annotated:
            mine.scores = _scores(np.array(rows[source, name]), ids[source, name], name, seed)
            result.sources.setdefault(source, {})[name] = mine
        else:
            result.unjudged[source, name] = mine.found
    return result


def _row(compared: Compared, kind: str) -> list[float]:
    """What one image contributes to `_SUMS`."""
    matching = compared.matching
    judged = [r.box for i, r in enumerate(compared.found) if i not in set(matching.ignored)]
    true = [r.box for r in compared.true]
    sums = dict.fromkeys(_SUMS, 0.0)
    sums["pairs"], sums["found"], sums["true"] = len(matching.pairs), len(judged), len(true)
    sums["twice"], sums["both"] = 2 * sums["pairs"], sums["found"] + sums["true"]
    sums["iou"] = sum(overlap for _, _, overlap in matching.pairs)
    sums["covered"] = int((covered(true, [r.box for r in compared.found]) >= 0.5).sum())
    sums["supported"] = int((covered(judged, true) >= 0.5).sum())
    if matching.pairs:
        said = [compared.found[i].text for i, _, _ in matching.pairs]
        truth = [_wordings(compared.true[j]) for _, j, _ in matching.pairs]
        sums |= _text_sums(said, truth) if kind == "text" else {"rouge": sum(rouge_l_each(said, truth))}
    return [sums[name] for name in _SUMS]


def _wordings(region: Region) -> list[str]:
    return [region.text, *region.alternatives]


def _text_sums(said: list[str], truth: list[list[str]]) -> dict[str, float]:
    sums: Counter[str] = Counter()
    for text, wordings in zip(said, truth, strict=True):
        for case, fold in (("", str), ("_any_case", str.casefold)):
            errors, characters = edit_cost(fold(text), [fold(w) for w in wordings])
            sums[f"errors{case}"] += errors
            sums[f"characters{case}"] += characters
            sums[f"exact{case}"] += errors == 0
    return {name: float(value) for name, value in sums.items()}


def _count(scores: KindScores, compared: Compared) -> None:
    matching = compared.matching
    scores.images += 1
    scores.found += len(compared.found) - len(matching.ignored)
    scores.true += len(compared.true)
    scores.matched += len(matching.pairs)
    scores.ignored += len(matching.ignored)
    false = geometry.as_boxes([compared.found[i].box for i in matching.false])
    missed = geometry.as_boxes([compared.true[i].box for i in matching.missed])
    merged, merged_true = holding_several(false, missed)
    split, split_found = holding_several(missed, false)
    scores.merged += merged
    scores.merged_true += merged_true
    scores.split += split
    scores.split_found += split_found


def _scores(rows_nk: np.ndarray, ids: list[str], kind: str, seed: int) -> dict[str, Estimate | None]:
    wanted = {**_SCORES, **_TEXT_SCORES[kind]}
    columns = [[_SUMS.index(name) for name in side] for side in zip(*wanted.values(), strict=True)]
    return dict(zip(wanted, ratios(rows_nk[:, columns[0]], rows_nk[:, columns[1]], seed, ids), strict=True))
