"""The shards of the output: annotated one by one, counted, shown as they progress, and put together to a corpus.

    OUT/.annotate/shards/00012/
      part-00000.parquet, manifest.json   the images that passed, as a small corpus; absent where none did
      quarantine.jsonl                    what was refused
      summary.json                        counts

A shard is a run of input images, written in a folder that appears whole or not at all. The same code runs in a local
process and in a Ray actor. It reports as it goes, so that its driver knows which images were in work when a worker
dies.

When all are finished, their files move into place and the manifest comes last. Every step of that may be repeated, so
a run that is killed there goes on where it was.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from granvit import images
from granvit.corpus.annotate.base import CAPTIONER, ImageSource, Item
from granvit.corpus.annotate.plan import Stages
from granvit.corpus.check import UNKNOWN_SIZE, Quarantine, Refused, Rejection, check_record, whole_rejection
from granvit.corpus.layout import MANIFEST, QUARANTINE, CorpusError, read_manifest
from granvit.corpus.store import CorpusFiles
from granvit.files import checked_field, put_in_place, read_json, remove_folder, sync, write_text
from granvit.regions import RegionImage

WORK = ".annotate"
SUMMARY = "summary.json"


def shard_folder(out: Path, shard: int) -> Path:
    """Where a finished shard lies until the corpus is put together."""
    return out / WORK / "shards" / f"{shard:05d}"


@dataclass(frozen=True)
class Task:
    """What a worker is asked to do.

    Attributes:
        shard: the number of the shard.
        inputs: file and index of each of its images, in order.
        batch: images handed to the annotators at once.
        excluded: positions in `inputs` that are given up, each with reason and detail.
        isolate: positions to be tried one by one, nothing being written; empty for the shard itself.
    """

    shard: int
    inputs: list[tuple[str, int]]
    batch: int
    excluded: dict[int, tuple[str, str]] = field(default_factory=dict)
    isolate: tuple[int, ...] = ()


@dataclass(frozen=True)
class BatchBegan:
    """A worker's note: these positions are in work now."""

    positions: tuple[int, ...]


@dataclass
class Counts:
    """What became of images, in one batch, one shard or all.

    ``images_seen == images_written + images_quarantined``.

    Attributes:
        reasons: quarantine entries by reason, images and regions together.
        changes: what was kept but altered, see `Checked`.
        kinds: written images by how they were routed, "natural" or "text"; conversations alone as "no-picture".
        captions: regions that a captioner described, and captions of whole images.
    """

    images_seen: int = 0
    images_written: int = 0
    images_quarantined: int = 0
    regions_written: int = 0
    captions: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, other: Counts) -> None:
        self.images_seen += other.images_seen
        self.images_written += other.images_written
        self.images_quarantined += other.images_quarantined
        self.regions_written += other.regions_written
        self.captions += other.captions
        self.reasons += other.reasons
        self.changes += other.changes
        self.kinds += other.kinds

    def to_json(self) -> str:
        return json.dumps(vars(self), indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, file: Path) -> Counts:
        """What `to_json` gave, from a file.

        Raises:
            CorpusError: the file holds something else.
        """
        row = read_json(file, CorpusError)
        if isinstance(row, dict):
            row.setdefault("captions", 0)  # older versions did not count them
        values: dict[str, Any] = {}
        for name, default in vars(cls()).items():
            if isinstance(default, Counter):
                values[name] = counted(row, name, file)
            else:
                values[name] = checked_field(row, name, int, file, error=CorpusError)
        return cls(**values)


def counted(row: Any, name: str, file: Path, inside: str = "") -> Counter[str]:
    """The member `name` of an object that was read from a file, as counts; see `checked_field`."""
    counts = checked_field(row, name, dict, file, inside, CorpusError)
    return Counter({key: checked_field(counts, key, int, file, f"{inside}{name}.", CorpusError) for key in counts})


@dataclass
class Outcome:
    """What became of one image: its record as it may be stored, or none, and what was refused."""

    record: RegionImage | None
    rejections: list[Rejection]
    kind: str = ""
    changes: Counter[str] = field(default_factory=Counter)


def run_task(task: Task, source: ImageSource, stages: Stages, out: Path) -> Iterator[BatchBegan | Counts]:
    """Do a task; yields `BatchBegan` before and `Counts` after each batch. Then the shard's folder is in place."""
    if task.isolate:
        for position in task.isolate:
            yield BatchBegan((position,))
            _annotate(task, (position,), source, stages)
        return
    temporary = out / WORK / "tmp" / f"{task.shard:05d}-{uuid.uuid4().hex}"
    temporary.mkdir(parents=True)
    total = Counts()
    with ExitStack() as stack:
        quarantine = stack.enter_context(Quarantine(temporary / QUARANTINE))
        writer: CorpusFiles | None = None
        for start in range(0, len(task.inputs), task.batch):
            positions = tuple(range(start, min(start + task.batch, len(task.inputs))))
            yield BatchBegan(positions)
            outcomes = _annotate(task, positions, source, stages)
            for outcome in outcomes:
                if outcome.record is not None:
                    writer = writer or stack.enter_context(CorpusFiles(temporary, rows_per_shard=sys.maxsize))
                    writer.write(outcome.record)
                for rejection in outcome.rejections:
                    quarantine.add(rejection)
            counts = _count(outcomes)
            total.add(counts)
            yield counts
    (temporary / SUMMARY).write_text(total.to_json(), encoding="utf-8")
    _put_in_place(temporary, shard_folder(out, task.shard))


def _put_in_place(temporary: Path, final: Path) -> None:
    for name in (QUARANTINE, SUMMARY):
        sync(temporary / name)
    if final.exists():  # by a worker that had been given up and was faster after all: the contents are the same
        shutil.rmtree(temporary)
    else:
        put_in_place(temporary, final)


def _annotate(task: Task, positions: Sequence[int], source: ImageSource, stages: Stages) -> list[Outcome]:
    """Read, decode, annotate and check the images at `positions`; one outcome for each, in order."""
    outcomes: dict[int, Outcome] = {}
    items: dict[int, Item] = {}
    for position in positions:
        opened = _open(task, position, source)
        if isinstance(opened, Item):
            items[position] = opened
        elif isinstance(opened, RegionImage):
            checked = check_record(opened)
            outcomes[position] = Outcome(checked.record, checked.rejections, "no-picture", checked.changes)
        else:
            outcomes[position] = Outcome(None, [opened])
    annotated = stages(list(items.values())) if items else []
    for position, item in zip(items, annotated, strict=True):
        checked = check_record(item.record, decoded=item.picture.size)
        changes = item.changes + checked.changes
        outcomes[position] = Outcome(checked.record, item.rejections + checked.rejections, item.kind, changes)
    return [outcomes[position] for position in positions]


def _open(task: Task, position: int, source: ImageSource) -> Item | RegionImage | Rejection:
    """An image to annotate; conversations without one as they are; or why there is neither."""
    file, index = task.inputs[position]
    try:
        if position in task.excluded:
            raise Refused(*task.excluded[position])
        record = source.read(file, index)
        if record.text_only and record.conversations:
            return record
        if record.image is None:
            raise Refused("missing-image", "the corpus has no bytes for this image")
        picture = images.decode(record.image)
    except images.ImageError as error:
        return whole_rejection(source.identify(file, index), error.reason, error.detail)
    except Refused as refused:
        return whole_rejection(source.identify(file, index), refused.reason, refused.detail)
    if (record.width, record.height) == UNKNOWN_SIZE:
        record = replace(record, width=picture.width, height=picture.height)
    return Item(record, picture)


def _count(outcomes: Sequence[Outcome]) -> Counts:
    written = [outcome for outcome in outcomes if outcome.record is not None]
    return Counts(
        images_seen=len(outcomes),
        images_written=len(written),
        images_quarantined=len(outcomes) - len(written),
        regions_written=sum(len(outcome.record.regions) for outcome in written if outcome.record),
        captions=sum(_captions(outcome.record) for outcome in written if outcome.record),
        reasons=Counter(rejection.reason for outcome in outcomes for rejection in outcome.rejections),
        changes=sum((+outcome.changes for outcome in written), Counter()),
        kinds=Counter(outcome.kind for outcome in written),
    )


def _captions(record: RegionImage) -> int:
    regions = sum(region.text_by.startswith(CAPTIONER) for region in record.regions)
    return regions + (record.caption is not None)


_SUMMED = ("images", "regions", "conversations")
_COUNTED = ("regions_by_kind", "images_by_source", "images_by_split")


def counts_of(out: Path, shard: int) -> Counts | None:
    """What a shard holds, or None where it is not finished."""
    file = shard_folder(out, shard) / SUMMARY
    return Counts.from_json(file) if file.exists() else None


def join_shards(
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
    put_in_place(out / WORK / MANIFEST, out / MANIFEST)
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
    put_in_place(temporary, out / QUARANTINE)


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
        sums = {name: joined.get(name, 0) + manifest.get(name, 0) for name in _SUMMED}
        joined = manifest | sums
        for name in _COUNTED:
            counted[name].update(manifest[name])
        files += [{**file, "name": _part(shard)} for file in manifest["shards"]]
    return joined | {name: dict(counted[name]) for name in _COUNTED} | {"shards": files}


_SHOWN_REASONS = 4
# Seconds between two lines of a log.
_LINE_EVERY = 60.0
_LINE = "{n_fmt}/{total_fmt} images [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class _Lines:
    """A file for tqdm that makes a log of its bar: what would be written over is written below."""

    def write(self, text: str) -> None:
        if line := text.strip():
            print(line, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


class Progress:
    """A progress bar over all images; a line each minute where standard error is no terminal.

    What a dead worker had done of a shard is taken back when the shard is redone.

    Args:
        total: images in the input.
        before: counts of the shards that an earlier run finished.
        shown: whether there is anything to be seen.
    """

    def __init__(self, total: int, before: Counts, shown: bool) -> None:
        log: dict[str, Any] = {}
        if not sys.stderr.isatty():
            log = {"file": _Lines(), "bar_format": _LINE, "mininterval": _LINE_EVERY, "maxinterval": _LINE_EVERY}
        seen = before.images_seen
        self._bar = tqdm(total=total, initial=seen, unit=" images", disable=not shown, smoothing=0.05, **log)
        self._reasons = Counter(before.reasons)
        self._regions = 0
        self._in_work: dict[int, Counts] = {}
        self._start = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def restart(self, task: Task) -> None:
        """A worker begins the task anew."""
        lost = self._in_work.pop(task.shard, Counts())
        self._regions -= lost.regions_written
        self._reasons -= lost.reasons
        self._bar.update(-lost.images_seen)

    def add(self, task: Task, counts: Counts) -> None:
        """A worker has done a batch."""
        self._in_work.setdefault(task.shard, Counts()).add(counts)
        self._regions += counts.regions_written
        self._reasons += counts.reasons
        notes = [f"{self._regions / max(time.monotonic() - self._start, 1e-3):.1f} regions/s"]
        if self._reasons:
            most = [f"{reason} {count}" for reason, count in self._reasons.most_common(_SHOWN_REASONS)]
            notes.append(f"refused: {', '.join(most)}")
        self._bar.set_postfix_str(", ".join(notes), refresh=False)
        self._bar.update(counts.images_seen)

    def finished(self, task: Task) -> None:
        """The task is done for good."""
        self._in_work.pop(task.shard, None)
