"""`granvit study`: do the paper's claims hold? Arms x seeds become runs, runs a table, plots and a page."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro
from tyro.conf import Positional

from granvit.errors import GranvitError
from granvit.files import locked

if TYPE_CHECKING:
    from granvit.study.definition import Study as Definition
    from granvit.study.jobs import Data, Job
    from granvit.train.recipes.base import Recipe


def _nano() -> Definition:
    from granvit.nano.study import nano_study

    return nano_study()


def _paper() -> Definition:
    from granvit.study.arms import paper_study

    return paper_study()


def _longer() -> Definition:
    from granvit.nano.study import nano_longer

    return nano_longer()


def _smollm2() -> Definition:
    from granvit.nano.study import nano_smollm2

    return nano_smollm2()


STUDIES: dict[str, Callable[[], Definition]] = {
    "nano": _nano,
    "nano-longer": _longer,
    "nano-smollm2": _smollm2,
    "paper": _paper,
}


def _through(base: Callable[[], Recipe], language: str) -> Recipe:
    return replace(base(), language=language)


@dataclass
class Study:
    """Train arms and seeds, and answer with intervals which of the paper's claims hold: table, plots, page."""

    name: Positional[Literal["nano", "nano-longer", "nano-smollm2", "paper"]]
    """nano: on two CPU cores, on the embedded corpus. nano-longer: its central arms, six times as many pictures.
    nano-smollm2: stage 1 of the central arms through a pretrained language model. paper: nano's arms at full size, on
    corpora of your own."""
    out: Path | None = None
    """Where runs, results and the report go, runs/study-NAME by default; several machines may work into one folder."""
    arms: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ARM ...")] = ()
    """Only these arms; all by default (--dry-run names them)."""
    seeds: int = 3
    """Seeds of each arm: 0, 1, 2..."""
    processes: int = 1
    """Jobs that run at a time."""
    corpus: tuple[str, ...] = ()
    """Corpus folders to train on and to measure on; the study's embedded corpus if none."""
    language: str | None = None
    """Another language model in place of the study's pretrained one: a folder, a GGUF file or a name on the hub."""
    keep: bool = False
    """Keep the model of every job, and not only its result, history and log."""
    dry_run: bool = False
    """Only list jobs, steps and the time to expect."""
    report: bool = False
    """Only write the report of the results that are there."""
    device: Literal["auto", "cpu"] = "auto"
    """Where to train; "auto" takes a GPU where there is one."""
    resumes: ClassVar[bool] = True

    def run(self) -> int:
        from granvit.study.jobs import jobs_of
        from granvit.study.runner import check_processes, plan_lines

        check_processes(self.processes)
        study, out = self._study(), self.out or Path("runs") / f"study-{self.name}"
        chosen = {arm.name for arm in study.chosen(self.arms)}
        jobs = jobs_of(study, self.seeds, self._data(study))
        mine = [job for job in jobs if job.arm.name in chosen]
        if self.dry_run:
            print("\n".join(plan_lines(study, mine, out, self.processes)))
            return 0
        status = 0 if self.report else self._work(study, mine, out)
        if int(os.environ.get("RANK", "0")) == 0:
            self._report(study, jobs, out)
        return status

    def _study(self) -> Definition:
        """The study of that name, through the language model that is asked for.

        Raises:
            GranvitError: there is none of that name, or the study's own is one that cannot be exchanged.
        """
        study = STUDIES[self.name]()
        if self.language is None:
            return study
        from granvit.train.recipes.base import NAMED_PARTS

        if study.base().language in NAMED_PARTS:
            raise GranvitError(
                f"--language {self.language}: study {self.name} is of the language model that is shipped with granvit"
            )
        from transformers import AutoConfig

        from granvit.loading.models import load

        load(AutoConfig, self.language)  # told here, and not by every job
        return replace(study, base=partial(_through, study.base, self.language))

    def _report(self, study: Definition, jobs: Sequence[Job], out: Path) -> None:
        """Write what all results say, of the arms that were not chosen too."""
        from granvit.study.report import PAGE, verdicts, write_study
        from granvit.study.results import find_result

        results = [result for job in jobs if (result := find_result(out, job)) is not None]
        if not results:
            print(f"no result in {out} yet, so there is no report")
            return
        with locked(out / PAGE, wait=True):  # of several machines that end together one writes at a time
            print(verdicts(write_study(study, jobs, results, out)))
        print(f"page: {out / PAGE}")

    def _work(self, study: Definition, jobs: Sequence[Job], out: Path) -> int:
        from granvit.study.runner import run_jobs
        from granvit.study.worker import Place, do_together

        out.mkdir(parents=True, exist_ok=True)  # what cannot be written is told before anything is loaded
        place = Place(out, self.corpus, self.device, self.keep)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            return do_together(study, jobs, place)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // self.processes)))  # before torch is imported
        outcome = run_jobs(study, jobs, place, self.processes)
        for name, reason in outcome.failed.items():
            print(f"failed: {name}: {reason}")
        if outcome.elsewhere:
            print(f"run elsewhere, no result yet: {', '.join(outcome.elsewhere)}")
        return 1 if outcome.failed else 0

    def _data(self, study: Definition) -> Data:
        """What the study is trained on."""
        from granvit.study.jobs import Data
        from granvit.train.identity import decisive

        if not self.corpus and study.embedded:
            corpus = study.base().corpus
            return Data(corpus.train, decisive(corpus))
        if not self.corpus:
            raise GranvitError(f"study {study.name} is of corpora of your own: name them with --corpus DIR")
        from granvit.corpus.derive import training_part
        from granvit.corpus.store import Corpus
        from granvit.study.pictures import pictures_of

        parts = [pictures_of(training_part(Corpus(folder))) for folder in self.corpus]
        facts: list[Any] = [[shard["sha256"] for shard in part.corpus.manifest["shards"]] for part in parts]
        if told := sum(part.corpus.manifest.get("conversations", 0) for part in parts):
            facts.append("without conversations")
            if int(os.environ.get("RANK", "0")) == 0:
                print(f"{told:,} conversations of the corpora are asked in no arm")
        return Data(sum(map(len, parts)), facts)
