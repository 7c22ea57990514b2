"""Annotation from end to end: images in, a corpus out, by any number of workers, resumed after any interruption."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from granvit.corpus.annotate.base import CAPTIONER, AnnotateError, ImageSource, InputFile
from granvit.corpus.annotate.plan import HOLDS, Plan
from granvit.corpus.annotate.shards import WORK, Counts, Progress, Task, counted, counts_of, join_shards
from granvit.corpus.annotate.sources import LinkedSource, open_source
from granvit.corpus.annotate.workers import Job, Schedule, WorkerPool, drive
from granvit.corpus.check import LeftOut, Rejection
from granvit.corpus.layout import MANIFEST, QUARANTINE, SHARDS, CorpusError, read_manifest
from granvit.files import checked_field, locked, read_json, removal_name, remove_folder, write_text

Device = Literal["auto", "cpu", "cuda"]

PLAN = "plan.json"
# Small inputs are cut finely too, so that all workers of a machine have something to do.
_SMALLEST_SHARD, _LARGEST_SHARD, _AIMED_SHARDS = 8, 256, 32


@dataclass(frozen=True)
class AnnotateSummary:
    """What became of the input.

    Attributes:
        counts: of images and regions, of earlier runs too.
        problems: what could not even be listed: damaged files, unsafe names.
        resumed: images that an earlier run had done.
        left_out: what else is at the source, and how often: no pictures, or beside what was read.
        plan: what was to be done.
    """

    counts: Counts
    problems: int
    resumed: int
    left_out: dict[str, int]
    plan: Plan

    @property
    def missing(self) -> str:
        """What was asked for and is not there at all, and why; "" where there is some of everything."""
        counts, plan = self.counts, self.plan
        why = ", ".join(f"{reason} {count}" for reason, count in counts.reasons.most_common(3))
        why = f" (refused: {why})" if why else ""
        if not counts.regions_written:
            undetected = counts.kinds["natural"] if plan.detect is None and plan.how == "auto" else 0
            if undetected:
                why = f": {undetected} images are no text images, and no detector is named (--detect.model)"
            return f"not one region was found in {counts.images_written} images{why}"
        asked = plan.caption is not None and plan.caption.name.startswith(CAPTIONER)
        if asked and counts.kinds["natural"] and not counts.captions:
            return f"not one caption was made for {counts.kinds['natural']} images{why}"
        if asked and plan.how == "keep" and not counts.captions:
            return f"not one caption was made: the boxes of all {counts.kinds['text']} images hold text, and no object"
        return ""

    def __str__(self) -> str:
        counts = self.counts
        lines = [
            f"images   {counts.images_written} of {counts.images_seen} written"
            + (f", {self.resumed} of them seen in an earlier run" if self.resumed else ""),
            f"regions  {counts.regions_written}",
        ]
        lines += [f"  {kind:<10} {count:>8} images" for kind, count in sorted(counts.kinds.items())]
        if self.problems:
            lines.append(f"  not listed {self.problems:>8} files or members")
        lines += [f"  quarantined  {count:>7}  {reason}" for reason, count in counts.reasons.most_common()]
        lines += [f"  kept, but    {count:>7}  {change}" for change, count in (+counts.changes).most_common()]
        lines += [f"  left out     {count:>7}  {what}" for what, count in self.left_out.items()]
        return "\n".join(lines)


def annotate(
    src: str | Path,
    out: str | Path,
    plan: Plan,
    *,
    workers: int | None = None,
    ray: str = "",
    device: Device = "auto",
    name: str = "",
    licence: str = "",
    follow_links: bool = False,
    progress: bool = False,
) -> AnnotateSummary:
    """Annotate the images at `src` and make a corpus of them at `out`.

    A run that was interrupted, in whatever way, goes on when it is called again with the same plan: finished shards
    are kept. The corpus is the same, byte by byte, whatever the number of workers and of interruptions.

    Args:
        src: a folder of pictures, of Parquet files or of tars, such a file, a `datasets` folder, or a corpus.
        workers: processes, or Ray actors; by default one per core, or per GPU where the models go to GPUs.
        ray: "local", or the address of a Ray cluster whose nodes see `src` and `out` under the same paths; empty for
            processes on this machine.
        device: where the models go; "auto" takes GPUs where there are any.
        name, licence, follow_links: the data set's name and terms, and whether links may lead out of `src`, see
            `open_source`.
        progress: show a progress bar.

    Raises:
        AnnotateError: an annotator cannot work at all, or the run at `out` was begun with other settings.
        BusyError: another process writes `out`.
        CorpusError: nothing can be read at `src`, `out` is in use, or not one image could be annotated.
        AnnotatorBug: an exception in a worker.
    """
    src, out = Path(src).resolve(), Path(out)  # workers may have another working folder
    if out.resolve().is_relative_to(src):
        raise CorpusError(f"{out} lies in {src}: choose a folder outside the images")
    keeps = plan.how == "keep" or (plan.how == "auto" and plan.detect is None and (src / MANIFEST).exists())
    listing = Listing(open_source(src, keeps, name, licence, follow_links), plan.shard_images)
    meta = {"annotated": plan.settings(), "input": listing.facts()}
    with locked(out):
        if finished := _finished(out, meta, plan):
            return finished
        resumed = _begin(out, meta)
        done = {shard: counts for shard in range(listing.shards) if (counts := counts_of(out, shard))}
        before = Counts()
        for counts in done.values():
            before.add(counts)
        schedule = Schedule(
            (shard for shard in range(listing.shards) if shard not in done),
            lambda shard: Task(shard, listing.inputs(shard), plan.batch),
        )
        if schedule.open:
            job = Job(plan, listing.source, out.resolve())
            with _pool(job, workers, ray, device) as pool, Progress(listing.images, before, progress) as bar:
                drive(pool, schedule, plan, bar)
        left_out = listing.left_out
        total = join_shards(out, listing.shards, listing.problems, meta, left_out)
    return AnnotateSummary(total, len(listing.problems), before.images_seen if resumed else 0, left_out, plan)


class Listing:
    """All images of a source in order, cut into shards.

    Attributes:
        problems: what could not be listed.
        left_out: what is there and no image of the source, with its first example, and how often.
    """

    def __init__(self, source: ImageSource, shard_images: int | None) -> None:
        self.source = source
        self.problems: list[Rejection] = []
        left_out: Counter[str] = Counter()
        first: dict[str, str] = {}
        self._files: list[InputFile] = []
        for file in source.files():
            if isinstance(file, Rejection):
                self.problems.append(file)
            elif isinstance(file, LeftOut):
                left_out[file.what] += file.count
                first.setdefault(file.what, file.detail)
            else:
                self._files.append(file)
        self.left_out = {f"{what} ({first[what]})": count for what, count in left_out.most_common()}
        self._ends = list(accumulate(file.images for file in self._files))
        self.images = self._ends[-1] if self._ends else 0
        aimed = -(-self.images // _AIMED_SHARDS)
        self.shard_images = shard_images or min(max(aimed, _SMALLEST_SHARD), _LARGEST_SHARD)

    @property
    def shards(self) -> int:
        return -(-self.images // self.shard_images)

    def inputs(self, shard: int) -> list[tuple[str, int]]:
        """File and index of each image of a shard."""
        start = shard * self.shard_images
        found = []
        for position in range(start, min(start + self.shard_images, self.images)):
            file = bisect_right(self._ends, position)
            found.append((self._files[file].name, position - (self._ends[file - 1] if file else 0)))
        return found

    def facts(self) -> dict[str, Any]:
        """What the input is, as JSON, with a checksum over every file's name, size and time of change."""
        digest = hashlib.sha256()
        for file in self._files:
            digest.update(f"{file.name}\0{file.images}\0{file.stamp}\n".encode(errors="backslashreplace"))
        inner = self.source.source if isinstance(self.source, LinkedSource) else self.source
        return {
            "source": {key: value for key, value in vars(inner).items() if key != "root"},
            "files": len(self._files),
            "images": self.images,
            "shard_images": self.shard_images,
            "sha256": digest.hexdigest(),
        }


def _finished(out: Path, meta: dict[str, Any], plan: Plan) -> AnnotateSummary | None:
    """The summary of the corpus at `out` if it is what this run would make."""
    if not (out / MANIFEST).exists():
        return None
    manifest = read_manifest(out)
    before = {key: manifest["meta"][key] for key in meta if key in manifest["meta"]}
    if len(before) < len(meta):
        raise CorpusError(f"{out} holds another corpus: choose another folder or remove it")
    if other := _difference(before, meta):
        raise CorpusError(f"{out} holds another corpus: it was made with {other}: choose another folder or remove it")
    remove_folder(out / WORK)
    stated = {"captions": 0, "left_out": {}, **manifest["meta"]}  # older versions did not count these
    counts = Counts(
        images_seen=meta["input"]["images"],
        images_written=manifest["images"],
        images_quarantined=meta["input"]["images"] - manifest["images"],
        regions_written=manifest["regions"],
        captions=checked_field(stated, "captions", int, out / MANIFEST, "meta.", CorpusError),
    )
    for field in ("reasons", "changes", "kinds"):
        key = {"reasons": "quarantined", "changes": "changed", "kinds": "routed"}[field]
        getattr(counts, field).update(counted(stated, key, out / MANIFEST, "meta."))
    left_out = counted(stated, "left_out", out / MANIFEST, "meta.")
    return AnnotateSummary(counts, 0, counts.images_seen, left_out, plan)


def _begin(out: Path, meta: dict[str, Any]) -> bool:
    """Make the working folder of this run, or go on in it; gives whether an earlier run began it.

    Raises:
        AnnotateError: it was begun with other settings.
        CorpusError: `out` holds something else.
    """
    _refuse_foreign_files(out)
    work = out / WORK
    work.mkdir(parents=True, exist_ok=True)
    plan = work / PLAN
    resumed = plan.exists()
    if resumed:
        _refuse_other_plan(plan, meta)
    else:
        write_text(plan, json.dumps(meta, indent=1, ensure_ascii=False))
    shutil.rmtree(work / "tmp", ignore_errors=True)
    return resumed


def _refuse_foreign_files(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise CorpusError(f"{out} is a file; a corpus is a folder")
    present = {path.name for path in out.iterdir()} if out.exists() else set()
    ours = {WORK, removal_name(out / WORK).name, QUARANTINE}
    if WORK in present:
        ours |= {path.name for path in out.glob(SHARDS)}
    if present - ours:
        raise CorpusError(f"{out} is not empty (it holds {min(present - ours)}): choose another folder")


# Of runs of earlier versions, with a model of this disk.
_UNNOTED = "before it was noted what a model holds"


def _refuse_other_plan(file: Path, meta: dict[str, Any]) -> None:
    if other := _difference(read_json(file, CorpusError), meta):
        way = "finish it with the earlier version" if other.endswith(_UNNOTED) else "give the same settings and input"
        raise AnnotateError(f"{file.parent.parent} was begun with {other}: {way}, or choose another folder")


def _difference(before: Any, meta: dict[str, Any]) -> str:
    """The first setting in which an earlier run differs from this one, what it was and is; "" where all are equal."""
    was, now = _flat(before), _flat(json.loads(json.dumps(meta)))
    for key in sorted(was.keys() | now.keys()):
        if was.get(key) == now.get(key):
            continue
        if key.endswith(HOLDS) and key in now:
            model = now[key.removesuffix(HOLDS)]
            if key in was:
                return f"other weights or settings in {model}"
            return f"{model}, {_UNNOTED}"
        return f"{key} {was.get(key)!r}, and is now to go on with {now.get(key)!r}"
    return ""


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {key: value}
    parts = [_flat(item, f"{key}.{name}" if key else name) for name, item in value.items()]
    return {name: item for part in parts for name, item in part.items()}


def _pool(job: Job, workers: int | None, ray: str, device: Device) -> WorkerPool:
    if ray:
        from granvit.corpus.annotate.ray_workers import RayWorkers

        return RayWorkers(job, workers, ray, device)
    from granvit.corpus.annotate.workers import LocalWorkers

    devices = _devices(device, job.plan)
    cores = len(os.sched_getaffinity(0))
    return LocalWorkers(job, workers or (cores if devices == ["cpu"] else len(devices)), devices)


def _devices(device: Device, plan: Plan) -> list[str]:
    """The GPUs of this machine, or the CPU."""
    # To hear from torch that there is no GPU takes seconds.
    if device == "cpu" or (device == "auto" and not (_has_gpu() and plan.uses_gpu)):
        return ["cpu"]
    import torch

    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if device == "cuda" and not gpus:
        raise AnnotateError("--device cuda: no GPU is visible here")
    return gpus or ["cpu"]


def _has_gpu() -> bool:
    """Whether a driver of NVIDIA, WSL or AMD is there."""
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))
