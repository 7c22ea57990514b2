"""Held-out pictures, asked and scored while a recipe trains: `scores.jsonl` of a run, and its best checkpoint.

A line is written at every validation, before the checkpoint of its step; a run that goes on drops the lines of steps
that it takes again. So the file of an interrupted run ends up as that of one which never stopped, but for the seconds.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from granvit.coordinates import Box
from granvit.corpus.derive import Tiled, Tiling, held_out_part, tiles_of
from granvit.corpus.store import Corpus
from granvit.errors import GranvitError
from granvit.evaluate.items import Item
from granvit.evaluate.measures import MEASURES
from granvit.evaluate.region_tasks import MAX_REGIONS, TASKS, evaluate, region_images, region_tasks
from granvit.evaluate.report import HEADLINES, Example, ExampleRegion, drawn_examples, duration, meaning_of
from granvit.evaluate.scores_log import (
    BEFORE,
    BEST,
    BEST_SCORE,
    SCORES_LOG,
    Answer,
    Scored,
    best_score,
    box_of,
    line_of,
    read_log,
)
from granvit.evaluate.scoring import LESS_IS_BETTER
from granvit.files import staged_folder, write_text
from granvit.images import ImageError, decode
from granvit.model.region_model import RegionModel
from granvit.page import percent
from granvit.predict import GranViT
from granvit.regions import Region, RegionImage
from granvit.sampling import evenly
from granvit.train.stages.base import AnsweringStage, Stage
from granvit.train.stages.config import StageConfig
from granvit.train.validation import Validated

if TYPE_CHECKING:
    from granvit.train.loop import TrainResult

_SHOWN, _REGIONS_SHOWN, _IN_TRACKERS = 12, 5, 4


class HeldOutScores:
    """Scores held-out pictures while a recipe trains (a `granvit.train.validation.Validation`), in one process.

    Args:
        out: the run's folder.
        stages: the recipe's; those after which a model answers nothing are not scored.
        held_out: what is asked about; pictures that cannot be opened are left out.
        every: steps between two validations, besides those before the run and after each stage.
        keep_best: TASK.METRIC; the model that is best by it is kept in STAGE/best.
        rows: questions that are answered at once.

    Attributes:
        scored: all validations of these questions, in order.

    Raises:
        GranvitError: the pictures hold nothing to ask, or nothing that `keep_best` scores; CheckpointError: the lines
            of the run's earlier part are not what was written.
    """

    def __init__(
        self,
        out: Path,
        stages: Sequence[StageConfig],
        held_out: Sequence[RegionImage],
        *,
        tasks: Sequence[str] = TASKS,
        max_regions: int = MAX_REGIONS,
        every: int = 0,
        keep_best: str | None = None,
        rows: int = 256,
    ) -> None:
        self.out, self.every, self.keep_best = out, every, keep_best
        self.held_out = [record for record in held_out if _opens(record)]
        self.left_out = len(held_out) - len(self.held_out)
        self._answering = {stage.folder for stage in stages if stage.answers}
        self._tasks, self._max_regions, self._rows = tasks, max_regions, rows
        self._shown = list(shown_regions(self.held_out))
        items = [i for image in region_images(self.held_out, region_tasks(tasks), max_regions) for i in image.items]
        if not items:
            raise GranvitError(f"nothing to ask about {len(self.held_out)} held-out pictures: no region, no caption")
        self._asked = _digest(self.held_out, items)
        if keep_best is not None:
            _check_score(keep_best, {item.task for item in items})
            if any(getattr(getattr(stage, "lora", None), "rank", None) for stage in stages):
                raise GranvitError("--keep-best with lora: adapters are kept after a stage alone")
        self._log: list[Scored] = read_log(out)
        self._stage = ""

    @property
    def scored(self) -> list[Scored]:
        return [one for one in self._log if one.asked == self._asked]

    # --- called by the run -------------------------------------------------------------------------------------------

    def begin(self, stage: str, step: int) -> None:
        """Drops what was noted of the stage's later steps, and of a stage that begins anew its best model."""
        self._stage = stage
        kept = [one for one in self._log if one.stage != stage or one.step <= step]
        if len(kept) < len(self._log):
            self._write(kept)
        if step == 0:
            shutil.rmtree(self.out / stage / BEST, ignore_errors=True)

    def due(self, step: int, steps: int) -> bool:
        if self._stage not in self._answering:
            return False
        turn = step == steps or bool(self.every and step % self.every == 0)
        return turn and not any((one.stage, one.step) == (self._stage, step) for one in self.scored)

    def __call__(self, stage: Stage, step: int, end: bool) -> Validated | None:
        assert isinstance(stage, AnsweringStage)
        scored = self._score(stage.region_model, self._stage, step, end)
        if scored is None:
            return None
        values = {f"{t}/{m}": v for t, scores in scored.scores.items() for m, v in scores.items() if m != "count"}
        examples = self.examples([scored])[:_IN_TRACKERS]
        return Validated(values, drawn_examples(examples, self._stage) if examples else None)

    def on_stage(self, name: str, model: RegionModel, result: TrainResult | None = None) -> None:
        """Scores the model before the run, and after stages that were not scored while they trained (`run_recipe`).

        The line of a stage that an earlier call trained has its last step that was scored, or 0: how far it went is in
        the recipe.
        """
        wanted = name in self._answering or (name == BEFORE and self._answering)
        if wanted and not any(one.stage == name and one.end for one in self.scored):
            steps = [one.step for one in self.scored if one.stage == name]
            steps += [points[-1][0] for points in (result.history if result else {}).values()]
            self._score(model, name, max(steps, default=0), True)

    # --- what the report takes ---------------------------------------------------------------------------------------

    @property
    def metrics(self) -> dict[str, Any]:
        """The scores before the run and after each stage, by the stage's folder, and the best constant answer's."""
        found: dict[str, Any] = {}
        for one in self.scored:
            if one.end:
                found |= {one.stage: one.scores, "baseline": one.baseline}
        return found

    @property
    def asked(self) -> str:
        """Tells these questions from others."""
        return self._asked

    def curves(self, stage: str) -> dict[str, list[tuple[float, float]]]:
        """Of a stage that was scored more than once each task's main score, as (step, value) pairs."""
        mine = [one for one in self.scored if one.stage == stage]
        if len(mine) < 2:
            return {}
        return {
            f"held-out {task}, {MEASURES[metric][0]}": [
                (one.step, one.scores[task][metric]) for one in mine if metric in one.scores.get(task, {})
            ]
            for task, metric in HEADLINES.items()
        }

    def examples(self, scored: Sequence[Scored] | None = None) -> list[Example]:
        """The pictures of the report, and what was said of their regions before the run and after each stage."""
        ends = [one for one in self.scored if one.end] if scored is None else scored
        said = {(one.stage, a.task, a.id, a.box): a for one in ends for a in one.shown}
        stages = [one.stage for one in ends]
        return [
            Example(decode(record.image or b""), [_row(record, region, said, stages) for region in regions])
            for record, regions in self._shown
        ]

    def best(self) -> list[str]:
        """Where the best models are, and why, a sentence for each stage."""
        found = []
        for stage in sorted(self._answering):
            folder = self.out / stage / BEST
            if folder.exists() and self.keep_best is not None:
                score = best_score(folder)
                found.append(f"{folder}: {score['score']} {percent(score['value'])} at step {score['step']}")
        return found

    # --- one validation ----------------------------------------------------------------------------------------------

    def _score(self, model: RegionModel, stage: str, step: int, end: bool) -> Scored | None:
        """Scores, writes the line, keeps the best; None, with a warning, where the model cannot answer."""
        where = "before" if stage == BEFORE else f"after step {step} of {stage}"
        began = time.perf_counter()
        try:
            asked, shows = GranViT(model, self._rows), stage == BEFORE
            report = evaluate(asked, self.held_out, self._tasks, max_regions=self._max_regions, progress=shows)
        except GranvitError as error:  # training must not end because an answer could not be had
            tqdm.write(f"held-out pictures {where}: not scored: {error}")
            return None
        shown = {(record.id, tuple(region.box)) for record, regions in self._shown for region in regions}
        answers = [
            Answer(i.id, i.task, box_of(i.box), i.said, None if i.found is None else box_of(i.found))
            for i in report.items
            if i.box is not None and (i.id, tuple(i.box)) in shown
        ]
        seconds = round(time.perf_counter() - began, 3)
        scored = Scored(stage, step, end, self._asked, report.scores, report.baseline, seconds, answers)
        if self.keep_best is not None and stage != BEFORE:
            self._keep(model, scored, self.keep_best)
        self._write([*self._log, scored])
        lines = [f"held-out pictures {where}, in {duration(seconds)}"]
        for task, scores in report.scores.items():
            lines.append(f"  {task}: " + ", ".join(f"{k} {percent(v)}" for k, v in scores.items() if k != "count"))
        tqdm.write("\n".join(lines))
        return scored

    def _write(self, log: list[Scored]) -> None:
        write_text(self.out / SCORES_LOG, "".join(map(line_of, log)))
        self._log = log

    def _keep(self, model: RegionModel, scored: Scored, name: str) -> None:
        task, _, metric = name.partition(".")
        if metric not in scored.scores.get(task, {}):
            tqdm.write(f"held-out pictures: {name} has no value after step {scored.step}: no best model is kept by it")
            return
        value, folder = scored.scores[task][metric], self.out / scored.stage / BEST
        sign = -1 if metric in LESS_IS_BETTER else 1
        if folder.exists():
            before = best_score(folder)
            if before["score"] == name and sign * before["value"] >= sign * value:
                return
        with staged_folder(folder) as unfinished:
            model.save(unfinished)
            kept = {"score": name, "value": value, "step": scored.step}
            write_text(unfinished / BEST_SCORE, json.dumps(kept) + "\n")


def _digest(records: Sequence[RegionImage], items: Sequence[Item]) -> str:
    """Tells pictures and what is asked of them, with its right answers, from others that go by the same names.

    What earlier versions noted, without the "2:", told names alone, and cannot be held against this.
    """
    pictures = [[record.id, hashlib.sha256(record.image or b"").hexdigest()] for record in records]
    asked = [[i.task, i.key, i.how, i.asked, i.truth, None if i.box is None else box_of(i.box)] for i in items]
    return "2:" + hashlib.sha256(json.dumps([pictures, asked]).encode()).hexdigest()[:16]


def held_out_share(corpora: Sequence[Path | str], tile: int | None, limit: int) -> list[RegionImage]:
    """At most `limit` held-out pictures of some corpora, evenly from each, half of them with text where there are any.

    A scan on a small canvas has letters of a pixel: with `tile`, pictures with text are cut into tiles of so many
    pixels, where letters are as they were scanned or larger. Pictures of several corpora are called NUMBER:ID.

    Raises:
        CorpusError: nothing is held out, or an image to cut cannot be decoded.
    """
    shares = [list(_share(Corpus(folder), tile, max(1, limit // len(corpora)))) for folder in corpora]
    if len(corpora) == 1:
        return shares[0]
    return [replace(r, id=f"{number}:{r.id}") for number, share in enumerate(shares, start=1) for r in share][:limit]


def _share(corpus: Corpus, tile: int | None, limit: int) -> Iterator[RegionImage]:
    held_out = set(held_out_part(corpus).indices)
    records = ((i, record) for i, record in enumerate(corpus.records(check=False)) if i in held_out)
    printed = {i for i, record in records if any(region.kind == "text" for region in record.regions)}
    scans, photos = sorted(printed), sorted(held_out - printed)
    tiles = [corpus[i] for i in evenly(scans, limit)]
    if tile is not None:
        tiles = [part for record in tiles for part in tiles_of(record, Tiling(tile, kind="text"), Tiled())]
    share = limit // 2 if tiles and photos else limit
    yield from (corpus[i] for i in evenly(photos, share))
    yield from evenly(tiles, share)


def shown_regions(held_out: Sequence[RegionImage]) -> Iterator[tuple[RegionImage, list[Region]]]:
    """Some held-out pictures with regions, evenly from all of them, each with its first regions."""
    usable = [(record, [r for r in record.regions if not r.ignore][:_REGIONS_SHOWN]) for record in held_out]
    return evenly([(record, regions) for record, regions in usable if regions], _SHOWN)


def _opens(record: RegionImage) -> bool:
    try:
        return not record.text_only and bool(decode(record.image or b""))
    except ImageError:
        return False


def _row(
    record: RegionImage, region: Region, said: dict[tuple[str, str, str, Box], Answer], stages: Sequence[str]
) -> ExampleRegion:
    describe, locate = ("describe", "locate") if region.kind == "object" else ("read", "locate_text")
    box = box_of(region.box)
    described = {s: said.get((s, describe, record.id, box)) for s in stages}
    located = {s: said.get((s, locate, record.id, box)) for s in stages}
    return ExampleRegion(
        region.box,
        region.text,
        {s: answer.said for s, answer in described.items() if answer},
        {s: answer.found for s, answer in located.items() if answer},
    )


def _check_score(name: str, asked: set[str]) -> None:
    task, dot, metric = name.partition(".")
    if not dot or meaning_of(task, metric) is None:
        known = ", ".join(f"{t}.{metric}" for t, metric in HEADLINES.items())
        raise GranvitError(f"--keep-best {name}: no score TASK.METRIC; such are {known}")
    if task not in asked:
        raise GranvitError(
            f"--keep-best {name}: the held-out pictures ask nothing of {task}; of {', '.join(sorted(asked))}"
        )
