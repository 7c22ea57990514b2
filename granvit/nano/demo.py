"""The whole recipe at nano size: corpus, both stages, evaluation before and after each, and one report."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers.utils.logging import disable_progress_bar

from granvit.corpus.derive import Tiled, Tiling, tiles_of, train_and_held_out
from granvit.corpus.store import Corpus, Subset
from granvit.errors import GranvitError
from granvit.evaluate.region_tasks import Item, Report, evaluate
from granvit.evaluate.report import Example, ExampleRegion, write_report
from granvit.files import locked, write_text
from granvit.images import decode
from granvit.loading.run_folder import CHECKPOINT
from granvit.model.region_model import RegionModel
from granvit.nano.recipes import nano, nano_own
from granvit.predict import GranViT
from granvit.regions import RegionImage
from granvit.sampling import evenly
from granvit.train.build import embedded_corpora
from granvit.train.feed import Records
from granvit.train.loop import TrainResult
from granvit.train.parallel import launch, processes_for
from granvit.train.recipes.base import Recipe
from granvit.train.run import run_recipe

REPORT = "report.html"
_SHOWN = 12
_REGIONS_SHOWN = 5
_SUMMARY = (
    "A small vision encoder that knew pictures but no regions was trained on this machine. Stage 1 taught it to "
    "describe boxes through a frozen language model; stage 2 froze it and taught the language model to find regions "
    "with it. All numbers are from pictures it never saw."
)


Sources = Sequence[tuple[Records, float]]


@dataclass
class DemoResult:
    """Scores by stage (and of the best constant answer), answers by stage, curves by stage."""

    metrics: dict[str, Any] = field(default_factory=dict)
    items: dict[str, list[Item]] = field(default_factory=dict)
    curves: dict[str, Any] = field(default_factory=dict)


def run_demo(
    out: Path | str,
    corpus: Path | str | None = None,
    recipe: Recipe | None = None,
    limit: int = 200,
    processes: int | None = None,
) -> Path:
    """Train, evaluate and report; returns the report's path.

    Args:
        out: the run folder: report.html, metrics.json and checkpoint/ are left there.
        corpus: a corpus of your own; the embedded one by default.
        recipe: `nano` by default, `nano-own` for a corpus of your own.
        limit: at most so many held-out images are evaluated.
        processes: that share each batch of the recipe; by default two where there are two cores and no GPU.

    Raises:
        ValueError: a batch of the recipe cannot be shared by so many processes; see also `run_recipe` and `launch`.
    """
    start = time.time()
    recipe = recipe or (nano() if corpus is None else nano_own())
    processes = processes or min(processes_for(stage.loop.batch_size) for stage in recipe.stages)
    shared = _share_batches(recipe, processes)
    sources, held_out = _corpora(recipe, corpus, limit)
    print(f"{_count(sources)} pictures to train on, {len(held_out)} to evaluate on; {processes} process(es)")
    launch(_work, processes, (GranvitError, OSError), Path(out), corpus, shared, limit, start)
    return Path(out) / REPORT


def _share_batches(recipe: Recipe, processes: int) -> Recipe:
    """The recipe as each process trains it: the batch of all of them together stays."""
    stages = []
    for stage in recipe.stages:
        if stage.loop.batch_size % processes:
            raise GranvitError(f"{processes} processes cannot share batches of {stage.loop.batch_size} images evenly")
        stages.append(replace(stage, loop=replace(stage.loop, batch_size=stage.loop.batch_size // processes)))
    return replace(recipe, stages=stages)


def _corpora(recipe: Recipe, corpus: Path | str | None, limit: int) -> tuple[Sources, list[RegionImage]]:
    """What to train on, and at most `limit` held-out pictures to evaluate on."""
    if corpus is not None:
        return own_corpora(corpus, recipe.text_tile, limit)
    train, held_out = embedded_corpora(recipe.corpus)
    return [(train, 1.0)], [held_out[index] for index in evenly(range(len(held_out)), limit)]


def _count(sources: Sources) -> int:
    return sum(len(records) for records, _ in sources)


def _work(out: Path, corpus: Path | str | None, recipe: Recipe, limit: int, start: float) -> None:
    """What each process does; the first one evaluates and reports besides."""
    disable_progress_bar()
    sources, held_out = _corpora(recipe, corpus, limit)
    result = DemoResult()

    def on_stage(name: str, model: RegionModel, trained: TrainResult | None) -> None:
        if name not in ("before", "stage1", "stage2"):
            return
        print(f"evaluate {name}")
        report = evaluate(GranViT(model), held_out, limit=limit)
        _keep(result, name, report, trained)

    # The report belongs to the run: nobody else writes there in between.
    with locked(out) if int(os.environ.get("RANK", 0)) == 0 else nullcontext():
        run_recipe(recipe, out, sources, on_stage=on_stage)
        if PartialState().is_main_process:
            _report(out, corpus, recipe, result, start, sources, held_out)


def _report(
    out: Path,
    corpus: Path | str | None,
    recipe: Recipe,
    result: DemoResult,
    start: float,
    sources: Sources,
    held_out: list[RegionImage],
) -> None:
    result.metrics["seconds"] = round(time.time() - start, 1)
    write_text(out / "metrics.json", json.dumps(result.metrics, indent=2) + "\n")
    write_report(
        out / REPORT,
        title="granvit: from an image encoder to a region encoder",
        summary=_SUMMARY,
        metrics=result.metrics,
        curves=result.curves,
        examples=_examples(held_out, result.items),
        facts=_facts(recipe, out, corpus, _count(sources), len(held_out)),
        commands=_commands(out),
    )


def _keep(result: DemoResult, name: str, report: Report, trained: TrainResult | None) -> None:
    result.metrics[name] = report.scores
    result.metrics["baseline"] = report.baseline
    result.items[name] = report.items
    if trained is not None:
        result.curves[name] = {k: v for k, v in trained.history.items() if k not in ("lr", "grad_norm")}
    for task, scores in report.scores.items():
        print(f"  {task}: " + ", ".join(f"{k} {100 * v:.1f}%" for k, v in scores.items() if k != "count"))


def _examples(held_out: Sequence[RegionImage], items: dict[str, list[Item]]) -> list[Example]:
    """Some held-out pictures with regions, evenly from all of them, and what was said of them after each stage."""
    said: dict[tuple[str, str, str, tuple[float, ...]], Item] = {}
    for stage, answers in items.items():
        said.update({(stage, i.task, i.id, tuple(i.box)): i for i in answers if i.box is not None})
    usable = [(record, [r for r in record.regions if not r.ignore][:_REGIONS_SHOWN]) for record in held_out]
    answered = [
        (record, shown)
        for record, shown in usable
        if shown and ("before", _task(shown[0].kind), record.id, tuple(shown[0].box)) in said
    ]
    return [
        Example(decode(record.image or b""), [_row(record, r.box, said, list(items)) for r in shown])
        for record, shown in evenly(answered, _SHOWN)
    ]


def _task(kind: str, locate: bool = False) -> str:
    if locate:
        return "locate" if kind == "object" else "locate_text"
    return "describe" if kind == "object" else "read"


def _row(record: RegionImage, box: Any, said: dict[Any, Item], stages: Sequence[str]) -> ExampleRegion:
    region = next(r for r in record.regions if r.box == box)
    described = {s: said.get((s, _task(region.kind), record.id, tuple(box))) for s in stages}
    located = {s: said.get((s, _task(region.kind, locate=True), record.id, tuple(box))) for s in stages}
    return ExampleRegion(
        region.box,
        region.text,
        {s: item.said for s, item in described.items() if item},
        {s: item.found for s, item in located.items() if item},
    )


def _facts(recipe: Recipe, out: Path, corpus: Path | str | None, train: int, held_out: int) -> dict[str, str]:
    model = RegionModel.load(out / CHECKPOINT).llava.model
    millions = {
        name: sum(p.numel() for p in part.parameters()) / 1e6
        for name, part in (("encoder", model.vision_tower), ("language model", model.language_model))
    }
    return {
        "Corpus": "the embedded one (drawn by granvit)" if corpus is None else str(corpus),
        "Pictures": f"{train} to train on, {held_out} to evaluate on",
        "Model": ", ".join(f"{name} {count:.1f} M parameters" for name, count in millions.items()),
        "Recipe": f"{recipe.name}: "
        + ", ".join(f"{s.kind} {s.loop.steps} steps" for s in recipe.stages)
        + f", {PartialState().num_processes} process(es)",
        "Machine": f"{platform.processor() or platform.machine()}, Python {platform.python_version()}",
    }


def _commands(out: Path) -> list[str]:
    model = out / CHECKPOINT
    return [
        f"granvit describe photo.jpg --box 40,30,200,180 --model {model} --draw described.png",
        f'granvit locate photo.jpg "red star" --model {model} --draw located.png',
        f"granvit caption photo.jpg --model {model}",
    ]


# How much oftener an image with text is seen than one without: it shows a small part of itself at a time.
_TEXT_WEIGHT = 3.0


def own_corpora(
    corpus: Path | str, tile: int | None, limit: int
) -> tuple[list[tuple[Records, float]], list[RegionImage]]:
    """What to train on, and at most `limit` held-out images, evenly from those without text and those with text.

    The training images come in two parts with their weights, those without text and those with. A scan on a canvas of
    160 pixels has letters of one pixel, so held-out images with text are cut into tiles of `tile` pixels, where letters
    are as they were scanned or larger; None leaves them whole.

    Raises:
        CorpusError: the corpus has nothing to train on, or nothing held out, or an image cannot be decoded.
    """
    whole = Corpus(corpus)
    train, held_out = train_and_held_out(whole)
    printed = {
        i for i, r in enumerate(whole.records(check=False)) if any(region.kind == "text" for region in r.regions)
    }
    parts = zip(_by(printed, train), (1.0, _TEXT_WEIGHT), strict=True)
    photos, scans = _by(printed, held_out)
    tiles = [scans[index] for index in evenly(range(len(scans)), limit)]
    if tile is not None:
        tiles = [part for record in tiles for part in tiles_of(record, Tiling(tile, kind="text"), Tiled())]
    share = limit // 2 if tiles and len(photos) else limit
    shown = [*(photos[index] for index in evenly(range(len(photos)), share)), *evenly(tiles, share)]
    return [(part, weight) for part, weight in parts if len(part)], shown


def _by(printed: set[int], part: Subset) -> tuple[Subset, Subset]:
    """The records of a part that are not among `printed`, and those that are."""
    without, having = ([i for i in part.indices if (i in printed) is wanted] for wanted in (False, True))
    return Subset(part.corpus, without), Subset(part.corpus, having)
