"""`granvit eval`, `granvit compare` and `granvit ap`: scores, and whether they differ."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from granvit.cli.ask import check_window, load_model
from granvit.errors import GranvitError
from granvit.files import check_replaceable, locked, write_text
from granvit.loading.devices import Device

if TYPE_CHECKING:
    from granvit.evaluate.evaluation import Evaluation
    from granvit.evaluate.items import EvalSet

_Named = Annotated[list[str], tyro.conf.arg(metavar="NAME=PLACE")]


@dataclass
class Eval:
    """Score a checkpoint on the held-out images of a corpus, or on public benchmarks from local files.

    Example: granvit eval runs/own --corpus corpora/own --bench refcoco=data/refcoco --out runs/own/eval
    """

    model: Positional[Path]
    """A checkpoint, or a run folder that holds one."""
    corpus: Path | None = None
    """A corpus; its "val" images count, or "test", or a tenth chosen by hash."""
    tasks: str = "describe,locate,read,locate_text,caption"
    """What is asked of the corpus, comma-separated: describe and locate ask about objects, read and locate_text about
    text; region_caption and label are describe where the texts are known to be captions, or names of classes; answer
    asks the first question of each conversation."""
    bench: tyro.conf.UseAppendAction[_Named] = field(default_factory=list)
    """A benchmark and its files; once for each. `granvit benchmarks` tells the names and layouts."""
    images: tyro.conf.UseAppendAction[_Named] = field(default_factory=list)
    """The folder of a benchmark's pictures, where they are elsewhere than published; once for each."""
    limit: int | None = None
    """At most so many images of the corpus and of each benchmark."""
    window: int | None = None
    """Read text in windows of so many pixels around it, larger where a line is."""
    batch: int = 256
    """So many questions are answered at once. It changes speed and memory, never an answer."""
    out: Path | None = None
    """A folder for scores.json, scores.md, report.html and every single answer. A second run goes on where the first
    was stopped."""
    device: Device = "auto"

    def run(self) -> int:
        from granvit.evaluate.evaluation import open_journal, run_evaluation
        from granvit.loading.run_folder import checkpoint_id

        self._check()
        eval_sets = self._eval_sets()
        model = load_model(self.model, self.device)
        model.rows = self.batch
        facts = self._facts(model, eval_sets)
        written: list[Path] = []
        if self.out is None:
            result = run_evaluation(model, eval_sets, facts, limit=self.limit)
        else:
            digest = checkpoint_id(self.model)
            facts["Checkpoint"] = f"sha256 {digest[:16]}"
            with locked(self.out), open_journal(self.out, digest) as journal:
                result = run_evaluation(model, eval_sets, facts, journal, self.limit)
                written = write_files(result, eval_sets, self.out)
        _print(result)
        for path in written:
            print(path)
        return 0

    def _check(self) -> None:
        check_window(self.window)
        for name, number in (("limit", self.limit), ("batch", self.batch)):
            if number is not None and number < 1:
                raise GranvitError(f"--{name} {number}: at least one is needed")
        if self.corpus is None and not self.bench:
            raise GranvitError("nothing to evaluate on: give --corpus, --bench, or both")
        if self.out is not None and self.out.is_file():
            raise GranvitError(f"--out {self.out} is a file; a folder is written")

    def _eval_sets(self) -> list[EvalSet]:
        from granvit.evaluate.benchmarks import open_benchmark

        pictures = dict(_named(text, "--images") for text in self.images)
        benches = [_named(text, "--bench") for text in self.bench]
        if unknown := pictures.keys() - {name for name, _ in benches}:
            raise GranvitError(f"--images {min(unknown)}=...: there is no --bench {min(unknown)}=...")
        eval_sets = [] if self.corpus is None else [self._corpus_eval_set(self.corpus)]
        return eval_sets + [open_benchmark(name, place, pictures.get(name)) for name, place in benches]

    def _corpus_eval_set(self, folder: Path) -> EvalSet:
        from granvit.corpus.derive import held_out_part
        from granvit.corpus.store import Corpus
        from granvit.evaluate.items import EvalSet
        from granvit.evaluate.region_tasks import MAX_REGIONS, region_images, region_tasks

        names = [name.strip() for name in self.tasks.split(",") if name.strip()]
        if not names:
            raise GranvitError("--tasks names no task; see granvit eval --help")
        tasks = region_tasks(list(dict.fromkeys(names)), self.window)
        held_out = held_out_part(Corpus(folder))
        images = lambda: region_images(held_out, tasks, MAX_REGIONS)  # noqa: E731
        return EvalSet(folder.resolve().name, tasks, images, image_count=len(held_out))

    def _facts(self, model: Any, eval_sets: Sequence[EvalSet]) -> dict[str, str]:
        import platform

        import torch

        settings = model.model.settings
        facts = {"Model": str(self.model)}
        if self.corpus is not None:
            facts["Corpus"] = f"{self.corpus}, held-out images"
        if self.bench:
            facts["Benchmarks"] = ", ".join(self.bench)
        if self.limit is not None:
            facts["Limit"] = f"{self.limit} images of each"
        if self.window is not None:
            facts["Reading"] = f"in windows of {self.window} pixels"
        facts["Boxes"] = (
            f"read as {settings.codec}, relative to the {settings.frame}, {settings.fit}; nothing else counts"
        )
        facts["Machine"] = f"{model.model.device}, torch {torch.__version__}, Python {platform.python_version()}"
        return facts


def _named(text: str, option: str) -> tuple[str, Path]:
    name, equals, place = text.partition("=")
    if not (name and equals and place):
        raise GranvitError(f"{option} {text!r}: NAME=PLACE is expected")
    return name, Path(place)


def _print(result: Evaluation) -> None:
    from granvit.evaluate.evaluation_report import GROUPS, calibration_words, heading
    from granvit.evaluate.scoring import SCORERS
    from granvit.page import percent

    for task, scores in result.scores.items():
        print(heading(result, task))
        for name in SCORERS[result.tasks[task].scorer].measures:
            value = "–" if name not in scores.values else percent(scores.values[name])
            low, high = scores.intervals.get(name, (None, None))
            interval = "" if low is None or high is None else f"[{100 * low:5.1f}, {100 * high:5.1f}]"
            beside = f"   best constant answer {percent(scores.constant[name])}" if name in scores.constant else ""
            print(f"  {name:13s} {value:>6s}  {interval:15s}{beside}".rstrip())
        if task in result.calibrations:
            print(f"  confidence: {calibration_words(result.calibrations[task])}")
    for name, group in result.groups.items():
        print(f"{GROUPS[name]} average {percent(group.average.value)} of {', '.join(group.parts)}")
    for note in result.notes:
        print(f"note: {note}")


def write_files(result: Evaluation, eval_sets: Sequence[EvalSet], out: Path) -> list[Path]:
    """Scores, Markdown and page into a folder; returns what a reader opens."""
    from granvit.evaluate.evaluation import SCORES, write_scores
    from granvit.evaluate.evaluation_report import markdown, write_report

    write_scores(result, out)
    write_text(out / "scores.md", markdown(result))
    write_report(result, eval_sets, out / "report.html")
    return [out / SCORES, out / "scores.md", out / "report.html"]


@dataclass
class Loss:
    """Measure the loss on a corpus's held-out images: of each kind of question, and of conversations.

    Example: granvit loss runs/finetuned --corpus corpora/talk
    """

    model: Positional[Path]
    """A checkpoint, or a run folder that holds one."""
    corpus: Path
    """A corpus; its "val" images count, or "test", or a tenth chosen by hash."""
    limit: int | None = None
    """At most so many images."""
    batch: int = 8
    """So many images at once."""
    out: Path | None = None
    """Write the numbers here, as JSON."""
    device: Device = "auto"

    def run(self) -> int:
        import json

        from granvit.corpus.derive import held_out_part
        from granvit.corpus.store import Corpus
        from granvit.evaluate.losses import as_table, held_out_losses, to_json

        if self.out is not None:
            check_replaceable("--out", self.out, "losses")
        for name, number in (("limit", self.limit), ("batch", self.batch)):
            if number is not None and number < 1:
                raise GranvitError(f"--{name} {number}: at least one is needed")
        held_out = held_out_part(Corpus(self.corpus))
        model = load_model(self.model, self.device).model
        total = len(held_out) if self.limit is None else min(self.limit, len(held_out))
        losses, left_out = held_out_losses(model, held_out, self.limit, self.batch, total=total)
        print(as_table(losses))
        for reason, count in left_out.items():
            print(f"left out {count:,} x {reason}")
        if self.out is not None:
            facts = {"model": str(self.model), "corpus": str(self.corpus)}
            write_text(self.out, json.dumps(to_json(losses, left_out, facts), indent=1) + "\n")
        return 0


@dataclass
class Compare:
    """Compare two evaluations of the same questions: differences with intervals, paired image by image."""

    first: Annotated[Positional[Path], tyro.conf.arg(metavar="A")]
    """What `granvit eval --out` wrote: the folder, or its scores.json. Or, for means alone, a run that was asked about
    held-out pictures (its scores.jsonl, or the demo's metrics.json)."""
    second: Annotated[Positional[Path], tyro.conf.arg(metavar="B")]
    """The same of another checkpoint."""
    out: Path | None = None
    """Write the differences here, as JSON."""

    def run(self) -> int:
        import json
        from dataclasses import asdict

        from granvit.evaluate.compare import as_table, compare_places

        if self.out is not None:
            check_replaceable("--out", self.out, "differences")
        differences, notes = compare_places(self.first, self.second)
        print(as_table(differences))
        print(*(f"note: {note}" for note in notes), sep="\n", end="\n" if notes else "")
        if self.out is not None:
            rows = [{**asdict(d), "difference": d.difference} for d in differences]
            write_text(self.out, json.dumps({"differences": rows, "notes": notes}, indent=1) + "\n")
        return 0


@dataclass
class AveragePrecision:
    """COCO's average precision of a corpus's boxes against human boxes on the same images (extra `eval`)."""

    found: Positional[Path]
    """The corpus whose boxes are judged, with their scores."""
    true: Positional[Path]
    """The human-annotated corpus; images are joined by id, else by their file."""
    by_text: bool = False
    """Take every text for a class of its own, as in corpora of class names; without it, where a box is alone counts."""
    kind: Literal["object", "text"] = "object"
    """Which regions are judged: objects, or printed text."""

    def run(self) -> int:
        from granvit.corpus.audit.human import join
        from granvit.corpus.store import Corpus
        from granvit.evaluate.metrics.boxes import average_precision
        from granvit.page import percent

        found = Corpus(self.found)
        human = join(found, Corpus(self.true)).human
        pairs = [
            (
                [r for r in record.regions if r.kind == self.kind],
                [r for r in human[record.id].regions if r.kind == self.kind],
            )
            for record in found.records()
            if record.id in human
        ]
        true = Counter(r.kind for record in human.values() for r in record.regions if not r.ignore)
        if not true[self.kind]:
            others = "".join(f"; it has {count:,} of kind {kind}: --kind {kind}" for kind, count in true.items())
            raise GranvitError(f"{self.true} has no true box of kind {self.kind} on these images{others}")
        try:
            scores = average_precision([mine for mine, _ in pairs], [true for _, true in pairs], self.by_text)
        except ImportError as error:
            raise GranvitError(str(error)) from error
        print(f"{len(pairs):,} images, {sum(len(mine) for mine, _ in pairs):,} boxes found")
        for name, value in scores.items():
            print(f"  {name:10s} {'no such boxes' if value is None else percent(value)}")
        return 0


@dataclass
class Benchmarks:
    """List the benchmarks that `granvit eval --bench NAME=SRC` reads, and the files they expect."""

    def run(self) -> int:
        from granvit.evaluate.benchmarks import BENCHMARKS

        for name, reader in sorted(BENCHMARKS.items()):
            text = inspect.getdoc(reader) or ""
            print(f"{name}\n  " + text.replace("\n", "\n  "))
        return 0
