"""One job done: its stages trained as ordinary runs, what comes of them measured, its result written."""

from __future__ import annotations

import json
import platform
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from granvit.corpus.derive import held_out_part, training_part
from granvit.corpus.layout import CorpusError
from granvit.corpus.store import Corpus, Subset
from granvit.files import locked, open_regular, read_json, remove_folder, write_text
from granvit.loading.run_folder import CHECKPOINT
from granvit.model.region_model import RegionModel
from granvit.regions import RegionImage
from granvit.study.definition import Measuring, Study
from granvit.study.jobs import Job, stretched
from granvit.study.measures import measure, measured_images
from granvit.study.pictures import pictures_of
from granvit.study.results import Result, write_result
from granvit.train import checkpoint
from granvit.train.build import build_model, embedded_corpora
from granvit.train.config import on_cpu
from granvit.train.feed import Feed, Records
from granvit.train.recipes.base import Recipe
from granvit.train.run import run_recipe
from granvit.train.stages.config import RunContext

JOBS, SHARED, CORPORA = "jobs", "shared", "corpora"
# How many batches tell what a step of a stage takes.
_COUNTED_BATCHES = 8
# What is kept of a finished stage when its checkpoints go: what its steps took.
_KEPT = "cost.json"

Sources = list[tuple[Records, float]]


@dataclass
class Images:
    """What is trained on and what is measured on."""

    train: Sources
    held_out: Sequence[RegionImage]


def job_folder(out: Path, job: Job) -> Path:
    return out / JOBS / job.arm.name / f"seed{job.seed}"


def open_images(study: Study, out: Path, corpora: Sequence[str]) -> Images:
    """The study's images (`pictures_of` corpora); those of the embedded one are drawn on first use, for all jobs.

    Raises:
        GranvitError: a corpus cannot be read, has nothing to train on or nothing held out, or two hold out one id.
    """
    if not corpora:
        train, held_out = embedded_corpora(study.base().corpus, out / CORPORA)
        return Images([(train, 1.0)], measured_images(held_out, study.measuring.held_out))
    whole = [Corpus(folder) for folder in corpora]
    parts = [pictures_of(held_out_part(corpus)) for corpus in whole]
    each = -(-study.measuring.held_out // len(parts))
    held = [record for part in parts for record in measured_images(part, each)]
    sources: Sources = [(pictures_of(training_part(corpus)), 1.0) for corpus in whole]
    held = held[: study.measuring.held_out]
    if twice := next((name for name, n in Counter(record.id for record in held).items() if n > 1), None):
        raise CorpusError(f"{twice!r} is held out in two of the corpora: make one of them with `granvit corpus merge`")
    return Images(sources, held)


def do_job(study: Study, job: Job, out: Path, images: Images, device: Literal["auto", "cpu"], keep: bool) -> None:
    """Train what is missing of a job, measure it, and leave its result.

    Args:
        keep: whether the trained model stays in the job's folder; checkpoints for resuming go when the result is there.

    Raises:
        BusyError: another process is at this job. Besides, what `run_recipe` and `measure` raise.
    """
    start = time.monotonic()
    state, folder = PartialState(cpu=on_cpu(device)), job_folder(out, job)
    sources = [(_part(records, job.arm.share), weight) for records, weight in images.train]
    with locked(folder) if state.is_main_process else nullcontext():
        asked, job = job, _resolved(job, sources)
        init, first = _train_shared(job, out, sources, device)
        rest = job.recipe.stages[job.shared :]
        if rest:
            model = run_recipe(replace(job.recipe, stages=rest), folder, sources, init=init, device=device)
        elif init is not None:
            model = RegionModel.load(init, state.device)
        else:  # no stage at all
            model = build_model(job.recipe)
        if state.is_main_process:
            model.llava.eval()
            found = measure(model, images.train[0][0], images.held_out, asked_of(job, study.measuring))
            trained = [*_stage_folders(first, job.recipe.stages[: job.shared]), *_stage_folders(folder, rest)]
            cost = _cost(job, trained, time.monotonic() - start, state.num_processes)
            curves = {stage: _curves(path) for stage, path in trained}
            result = Result(
                *(job.arm.name, job.seed, asked.identity, asked.settings, found.images, found.tables, found.numbers),
                *(curves, cost, _facts(state)),
            )
            write_result(out, job, result)
            _clear(folder, rest, keep)
        state.wait_for_everyone()


def asked_of(job: Job, measuring: Measuring) -> Measuring:
    """How a job is measured: where no stage teaches to answer, the encoder alone is."""
    return measuring if any(stage.answers for stage in job.recipe.stages) else replace(measuring, tasks=())


def _part(records: Records, share: float) -> Records:
    """The first images of a corpus."""
    if share == 1.0:
        return records
    count = max(1, round(share * len(records)))
    if isinstance(records, Subset):
        return type(records)(records.corpus, records.indices[:count])
    assert isinstance(records, Corpus)
    return Subset(records, list(range(count)))


def _train_shared(
    job: Job, out: Path, sources: Sources, device: Literal["auto", "cpu"]
) -> tuple[Path | None, Path | None]:
    """The checkpoint of the stages that other jobs have too, trained here where nobody has; and their run's folder."""
    if job.shared_folder is None:
        return None, None
    folder = out / SHARED / job.shared_folder
    recipe = replace(job.recipe, stages=job.recipe.stages[: job.shared])
    state = PartialState(cpu=on_cpu(device))
    with locked(folder, wait=True) if state.is_main_process else nullcontext():
        if agreed(not (folder / CHECKPOINT).exists(), state):
            run_recipe(recipe, folder, sources, device=device)
            if state.is_main_process:
                _clear(folder, recipe.stages, keep=True)
        state.wait_for_everyone()
    return folder / CHECKPOINT, folder


def agreed(here: Any, state: PartialState) -> Any:
    """What the first process says, on all."""
    told = [here]
    broadcast_object_list(told)
    return told[0] if state.num_processes > 1 else here


def _resolved(job: Job, sources: Sources) -> Job:
    """The job with its steps, where they follow from the arithmetic of another arm."""
    if job.reference is None:
        return job
    wanted = sum(
        flops * stage.loop.steps
        for flops, stage in zip(_step_flops(job.reference, sources), job.reference.stages, strict=True)
    )
    recipe = stretched(job.recipe, job.reference, _step_flops(job.recipe, sources), wanted)
    return replace(job, recipe=recipe)


def _step_flops(recipe: Recipe, sources: Sources) -> list[float]:
    """What a step of each stage takes, from its first batches; counted as a run counts it."""
    model = build_model(recipe)
    found = []
    for config in recipe.stages:
        stage, prepare = config.build(model, RunContext(sources)), config.prepare(model)
        size = config.loop.batch_size
        with Feed(sources, prepare, prepare.collate, size, seed=config.loop.seed, prefetch=0) as feed:
            counted = [stage.flops(next(feed)) for _ in range(_COUNTED_BATCHES)]
        found.append(float(np.mean([n for n in counted if n is not None])) * config.loop.accumulate)
    return found


def _stage_folders(run: Path | None, stages: Sequence[Any]) -> list[tuple[str, Path]]:
    return [] if run is None else [(stage.folder, run / stage.folder) for stage in stages]


def _cost(job: Job, trained: Sequence[tuple[str, Path]], seconds: float, processes: int) -> dict[str, Any]:
    """What training took of all processes; each has a batch of its own, and counts the arithmetic of its own."""
    flops = [_flops(path) for _, path in trained]
    return {
        "images": processes * sum(s.loop.steps * s.loop.batch_size * s.loop.accumulate for s in job.recipe.stages),
        "flops": None if None in flops else float(processes * sum(f for f in flops if f is not None)),
        "steps": {stage.folder: stage.loop.steps for stage in job.recipe.stages},
        "seconds": round(seconds, 1),
    }


def _flops(stage_dir: Path) -> float | None:
    """What a finished stage took, kept with its last checkpoint or by `_clear`."""
    newest = checkpoint.latest(stage_dir)
    if newest is None:
        path = stage_dir / _KEPT
        return read_json(path).get("flops") if path.exists() else None
    flops = read_json(newest / checkpoint.STATE).get("history", {}).get("flops")
    return float(flops) if flops is not None else None


def _curves(stage_dir: Path) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    with open_regular(stage_dir / "history.jsonl") as lines:
        for line in lines:
            row = json.loads(line)
            for name, value in row.items():
                if name not in ("step", "lr", "grad_norm"):
                    curves.setdefault(name, []).append((row["step"], value))
    return curves


def _clear(run: Path, stages: Sequence[Any], keep: bool) -> None:
    """Remove what only an unfinished run needs, and where nothing is to be kept the model too."""
    for name, folder in _stage_folders(run, stages):
        write_text(folder / _KEPT, json.dumps({"flops": _flops(folder)}) + "\n")
        for part in ("checkpoints", "model", "tensorboard"):
            remove_folder(run / name / part)
    if not keep:
        remove_folder(run / CHECKPOINT)


def _facts(state: PartialState) -> dict[str, str]:
    return {
        "version": version("granvit"),
        "machine": platform.processor() or platform.machine(),
        "device": str(state.device.type),
        "processes": str(state.num_processes),
    }
