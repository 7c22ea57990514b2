"""From finished shards to a corpus: their files move into place, the manifest comes last.

Every step may be repeated, so a run that is killed here goes on where it was.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from granvit.corpus.annotate.shards import SUMMARY, WORK, Counts, shard_folder
from granvit.corpus.check import Quarantine, Rejection
from granvit.corpus.layout import MANIFEST, QUARANTINE, CorpusError, read_manifest
from granvit.files import remove_folder, sync, write_text

_SUMMED = ("images", "regions")
_COUNTED = ("regions_by_kind", "images_by_source", "images_by_split")


def counts_of(out: Path, shard: int) -> Counts | None:
    """What a shard holds, or None where it is not finished."""
    file = shard_folder(out, shard) / SUMMARY
    return Counts.from_json(file) if file.exists() else None


def assemble(
    out: Path, shards: int, problems: list[Rejection], meta: dict[str, Any], left_out: dict[str, int]
) -> Counts:
    """Make the corpus at `out` of its finished shards; returns what became of all images.

    Args:
        shards: how many there are.
        problems: what was wrong with the input before any image was read; they open the quarantine.
        meta: the manifest's "meta", to which the counts of refusals are added.
        left_out: what is at the source and no image of it, and how often.

    Raises:
        CorpusError: not one image passed; the quarantine tells why.
    """
    total = Counts(reasons=Counter(problem.reason for problem in problems))
    for shard in range(shards):
        counts = counts_of(out, shard)
        assert counts is not None, f"shard {shard} is not finished"
        total.add(counts)
    _join_quarantines(out, shards, problems)
    if not total.images_written:
        why = ", ".join(f"{reason} {count}" for reason, count in total.reasons.most_common())
        remove_folder(out / WORK)
        raise CorpusError(f"{out}: none of {total.images_seen} images could be annotated ({why}); see {QUARANTINE}")
    manifest = _join_manifests(out, shards)
    manifest["meta"] = {
        **meta,
        "quarantined": dict(sorted(total.reasons.items())),
        "changed": dict(sorted(total.changes.items())),
        "routed": dict(sorted(total.kinds.items())),
        "captions": total.captions,
        "left_out": left_out,
    }
    for shard in range(shards):
        moved = shard_folder(out, shard) / _part(0)
        if moved.exists():
            os.replace(moved, out / _part(shard))
    write_text(out / WORK / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False))
    os.replace(out / WORK / MANIFEST, out / MANIFEST)
    sync(out)
    remove_folder(out / WORK)
    return total


def _part(number: int) -> str:
    return f"part-{number:05d}.parquet"


def _join_quarantines(out: Path, shards: int, problems: list[Rejection]) -> None:
    temporary = out / WORK / QUARANTINE
    with Quarantine(temporary) as quarantine:
        for problem in problems:
            quarantine.add(problem)
    with temporary.open("ab") as joined:
        for shard in range(shards):
            with (shard_folder(out, shard) / QUARANTINE).open("rb") as lines:
                shutil.copyfileobj(lines, joined)
    sync(temporary)
    os.replace(temporary, out / QUARANTINE)


def _join_manifests(out: Path, shards: int) -> dict[str, Any]:
    """The manifest of all shards; each keeps its number, so one without images leaves a gap in the file names."""
    joined: dict[str, Any] = {}
    counted = {name: Counter[str]() for name in _COUNTED}
    files = []
    for shard in range(shards):
        folder = shard_folder(out, shard)
        if not (folder / MANIFEST).exists():
            continue
        manifest = read_manifest(folder)
        sums = {name: joined.get(name, 0) + manifest[name] for name in _SUMMED}
        joined = manifest | sums
        for name in _COUNTED:
            counted[name].update(manifest[name])
        files += [{**file, "name": _part(shard)} for file in manifest["shards"]]
    return joined | {name: dict(counted[name]) for name in _COUNTED} | {"shards": files}
