"""How much of what an encoder sees from a region lies in that region, over a corpus."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from granvit.bootstrap import Estimate, ratios
from granvit.errors import GranvitError
from granvit.evaluate.attention import (
    LAST_LAYERS,
    Floats,
    answer_attention,
    chance_inside,
    maps_of,
    share_inside,
    visible_part,
)
from granvit.evaluate.patch_encoder import PatchEncoder
from granvit.images import decode
from granvit.questions import caption_exchange
from granvit.regions import Region, RegionImage

ATTENTION = f"encoder attention, last {LAST_LAYERS} layers"
SIMILARITY = "feature similarity"
CONTRAST = "feature similarity, mean taken away"
WORDS = "answer words, all layers"
HEADLINES = (ATTENTION, SIMILARITY, CONTRAST, WORDS)
_LONGEST_ANSWER = 48


@dataclass
class Share:
    """The mean share of mass inside the box, that of an even map, and the difference to the first encoder.

    The intervals are 95 % bootstrap intervals over images; the difference compares the same regions, image by image.
    """

    inside: Estimate
    chance: float
    change: Estimate | None = None


@dataclass
class MassReport:
    """Shares by kind of region, by kind of map, by encoder (None where an encoder has no such map).

    `regions` counts those measured, by kind; `too_small` those that cover too little beside a single patch.
    """

    encoders: list[str]
    images: int
    regions: dict[str, int] = field(default_factory=dict)
    too_small: int = 0
    shares: dict[str, dict[str, list[Share | None]]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        def plain(share: Share | None) -> dict[str, Any] | None:
            if share is None:
                return None
            change = share.change and share.change.to_json()
            return {**share.inside.to_json(), "chance": share.chance, "change": change}

        shares = {
            kind: {
                row: dict(zip(self.encoders, map(plain, found), strict=True)) for row, found in sorted(table.items())
            }
            for kind, table in self.shares.items()
        }
        return {"images": self.images, "regions": self.regions, "too_small": self.too_small, "shares": shares}


# Per image: the sum over its regions of (share, chance), by kind and row, and the number of regions by kind.
Sums = dict[tuple[str, str], np.ndarray]


def attention_mass(
    encoders: Sequence[PatchEncoder],
    records: Iterable[RegionImage],
    limit: int | None = 200,
    max_regions: int = 32,
    progress: bool = True,
) -> MassReport:
    """Looks from every eligible region of up to `limit` images, with every encoder.

    The query is the box: all its patches, each as the others see it. Regions to be ignored are left out, and those that
    for some encoder hold less than a patch's area beside any one patch, since what is inside can't be told there from
    the query itself. Answer words are those of the true text, so that all checkpoints are asked about the same words.

    Raises:
        ValueError: no region of the images can be measured.
    """
    per_image: list[list[Sums]] = []
    counts: list[dict[str, int]] = []
    ids: list[str] = []
    report = MassReport([e.name for e in encoders], 0)
    records = islice((record for record in records if not record.text_only), limit)
    for record in tqdm(records, total=limit, desc="attention", unit="img", disable=not progress):
        asked = [r for r in record.regions if not r.ignore][:max_regions]
        regions = [r for r in asked if all(large_enough(e, record, r) for e in encoders)]
        report.images += 1
        report.too_small += len(asked) - len(regions)
        if regions:
            per_image.append([region_sums(e, record, regions) for e in encoders])
            counts.append({kind: sum(r.kind == kind for r in regions) for kind in ("object", "text")})
            ids.append(record.id)
    if not per_image:
        raise GranvitError(
            f"nothing to measure: {report.images} images with {report.too_small} regions, all smaller than two patches"
        )
    for kind in ("object", "text"):
        count_n = np.array([c[kind] for c in counts], dtype=float)
        if count_n.sum():
            report.regions[kind] = int(count_n.sum())
            having = [sums for sums, count in zip(per_image, count_n, strict=True) if count]
            of = [name for name, count in zip(ids, count_n, strict=True) if count]
            report.shares[kind] = _table(having, of, kind, count_n[count_n > 0], len(encoders))
    return report


def large_enough(encoder: PatchEncoder, record: RegionImage, region: Region) -> bool:
    """Whether a region holds a patch's area beside any one patch."""
    covered = encoder.coverage(encoder.view((record.width, record.height)), region.box)[0]
    return bool(covered.sum() - covered.max() >= 1)


def region_sums(encoder: PatchEncoder, record: RegionImage, regions: list[Region]) -> Sums:
    """Of one image: the sums over its regions of the shares inside and of those of an even map."""
    picture = decode(record.image or b"")
    inside = encoder.coverage(encoder.view(picture.size), [r.box for r in regions])
    visible = visible_part(encoder, picture.size)
    maps = maps_of(encoder.encode(encoder.show([picture])), inside)
    rows = {ATTENTION: maps.attention, SIMILARITY: maps.similarity, CONTRAST: maps.contrast}
    for n, of_heads in enumerate(np.moveaxis(maps.heads, 1, 0), start=1):
        rows[f"encoder attention, layer {n}"] = of_heads.mean(1)
        for h, of_head in enumerate(np.moveaxis(of_heads, 1, 0), start=1):
            rows[f"encoder attention, layer {n}, head {h}"] = of_head
    if encoder.model is not None:
        rows |= _word_rows(encoder, picture, regions)
    kinds = np.array([r.kind for r in regions])
    sums: Sums = {}
    for name, rows_rp in rows.items():
        each = np.stack([share_inside(rows_rp, inside, visible), chance_inside(rows_rp, inside, visible)], axis=1)
        for kind in set(kinds.tolist()):
            sums[kind, name] = each[kinds == kind].sum(0)
    return sums


def _word_rows(encoder: PatchEncoder, picture: Image.Image, regions: list[Region]) -> dict[str, Floats]:
    model = encoder.model
    assert model is not None
    relative = encoder.view(picture.size).to_relative([r.box for r in regions], model.settings.frame)
    branches = [
        model.dialog.branch(caption_exchange(box, region.text, model.codec), _LONGEST_ANSWER)
        for box, region in zip(relative, regions, strict=True)
    ]
    # The end token is no word.
    end = model.dialog.end_token
    questions = [b.ids[: b.answer_start] for b in branches]
    answers = [[t for t in b.ids[b.answer_start :] if t != end] for b in branches]
    found = answer_attention(model, picture, questions, answers)
    layers = np.stack([weights.mean((1, 2)) for weights in found])  # (R, layers, P)
    rows = {f"answer words, layer {n + 1}": layers[:, n] for n in range(layers.shape[1])}
    return {WORDS: layers.mean(1), **rows}


def _table(
    per_image: list[list[Sums]], ids: list[str], kind: str, count_n: np.ndarray, encoders: int
) -> dict[str, list[Share | None]]:
    names = sorted({name for sums in per_image for of_one in sums for k, name in of_one if k == kind})
    sums_nek2 = np.full((len(per_image), encoders, len(names), 2), np.nan)
    for n, of_image in enumerate(per_image):
        for e, of_one in enumerate(of_image):
            for k, name in enumerate(names):
                if (kind, name) in of_one:
                    sums_nek2[n, e, k] = of_one[kind, name]
    table: dict[str, list[Share | None]] = {name: [] for name in names}
    denominators = np.repeat(count_n[:, None], len(names), axis=1)
    first = sums_nek2[:, 0, :, 0]
    for e in range(encoders):
        mine = sums_nek2[:, e, :, 0]
        has = ~np.isnan(mine).any(0)
        inside = ratios(np.nan_to_num(mine), denominators, ids=ids)
        changes = ratios(np.nan_to_num(mine - first), denominators, ids=ids)
        comparable = has & ~np.isnan(first).any(0) & (e > 0)
        for k, name in enumerate(names):
            value = inside[k]
            if not has[k] or value is None:
                table[name].append(None)
                continue
            chance = float(sums_nek2[:, e, k, 1].sum() / count_n.sum())
            table[name].append(Share(value, chance, changes[k] if comparable[k] else None))
    return table
