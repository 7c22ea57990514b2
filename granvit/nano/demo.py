"""The whole recipe at nano size: corpus, both stages, evaluation before and after each, and one report."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from accelerate import PartialState
from transformers.utils.logging import disable_progress_bar

from granvit.corpus.derive import train_and_held_out
from granvit.corpus.store import Corpus, Subset
from granvit.errors import GranvitError
from granvit.evaluate.held_out import HeldOutScores, held_out_share
from granvit.evaluate.report import duration
from granvit.evaluate.run_report import ask_commands, write_run_report
from granvit.files import locked, write_text
from granvit.loading.run_folder import METRICS, REPORT
from granvit.model.region_model import RegionModel
from granvit.nano.recipes import nano, nano_own
from granvit.regions import RegionImage
from granvit.sampling import evenly
from granvit.train.build import counted, embedded_corpora
from granvit.train.feed import Records
from granvit.train.parallel import launch, processes_for
from granvit.train.recipes.base import Recipe
from granvit.train.run import run_recipe

_SUMMARY = (
    "A small vision encoder that knew pictures but no regions was trained on this machine. Stage 1 taught it to "
    "describe boxes through a frozen language model; stage 2 froze it and taught the language model to find regions "
    "with it. All numbers are from pictures it never saw."
)

_OWN = {
    "The same with your own images (three quarters of an hour on two cores)": [
        "granvit corpus import coco path/to/coco corpora/mine --val-fraction 0.1",
        "make demo CORPUS=corpora/mine",
    ]
}

Sources = Sequence[tuple[Records, float]]


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
    return counted(sources)[0]


def _work(out: Path, corpus: Path | str | None, recipe: Recipe, limit: int, start: float) -> None:
    """What each process does; the first one evaluates and reports besides."""
    disable_progress_bar()
    sources, held_out = _corpora(recipe, corpus, limit)
    first = int(os.environ.get("RANK", 0)) == 0
    # The report belongs to the run: nobody else writes there in between.
    with locked(out) if first else nullcontext():
        scores = HeldOutScores(out, recipe.stages, held_out) if first else None
        on_stage = None if scores is None else scores.on_stage
        model = run_recipe(recipe, out, sources, on_stage=on_stage, validation=scores)
        if scores is not None:
            _report(out, corpus, recipe, model, scores, time.time() - start, _count(sources))


def _report(
    out: Path,
    corpus: Path | str | None,
    recipe: Recipe,
    model: RegionModel,
    scores: HeldOutScores,
    seconds: float,
    train: int,
) -> None:
    metrics = {**scores.metrics, "asked": scores.asked, "seconds": round(seconds, 1)}
    write_text(out / METRICS, json.dumps(metrics, indent=2) + "\n")
    write_run_report(
        out,
        recipe,
        model,
        scores,
        title="granvit: from an image encoder to a region encoder",
        summary=_SUMMARY,
        facts={
            "Corpus": "the embedded one (drawn by granvit)" if corpus is None else str(corpus),
            "Pictures": f"{train} to train on, {len(scores.held_out)} to evaluate on",
            "Processes": str(PartialState().num_processes),
            "Time": f"{duration(seconds)} in all, with drawing the corpus, both stages and all evaluations",
        },
        commands={**ask_commands(out), **_OWN},
    )


# How much oftener an image with text is seen than one without: it shows a small part of itself at a time.
_TEXT_WEIGHT = 3.0


def own_corpora(
    corpus: Path | str, tile: int | None, limit: int
) -> tuple[list[tuple[Records, float]], list[RegionImage]]:
    """What to train on, and at most `limit` held-out images, evenly from those without text and those with text.

    The training images come in two parts with their weights, those without text and those with. Held-out images with
    text are cut into tiles of `tile` pixels (`held_out_share`); None leaves them whole.

    Raises:
        CorpusError: the corpus has nothing to train on, or nothing held out, or an image cannot be decoded.
    """
    whole = Corpus(corpus)
    train, _ = train_and_held_out(whole)
    printed = {
        i for i, r in enumerate(whole.records(check=False)) if any(region.kind == "text" for region in r.regions)
    }
    parts = zip(_by(printed, train), (1.0, _TEXT_WEIGHT), strict=True)
    return [(part, weight) for part, weight in parts if len(part)], held_out_share([corpus], tile, limit)


def _by(printed: set[int], part: Subset) -> tuple[Subset, Subset]:
    """The records of a part that are not among `printed`, and those that are."""
    without, having = ([i for i in part.indices if (i in printed) is wanted] for wanted in (False, True))
    return Subset(part.corpus, without), Subset(part.corpus, having)
