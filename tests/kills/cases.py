"""The commands that write, at their smallest."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from PIL import Image

from granvit.corpus.store import CorpusWriter
from granvit.errors import GranvitError
from granvit.regions import Region, RegionImage

_TRAINING = ("train", "study", "export", "export-encoder", "assemble", "eval", "loss", "attend", "probe", "describe")


@dataclass
class Case:
    """A command that writes.

    Attributes:
        args: what is given to `granvit`, with {in} and {work} for the folders; or None where `run` does it.
        run: called with the inputs' folder and the working folder.
        before: makes what is in the working folder before the command, the same each time.
        out: what is written, below the working folder.
    """

    name: str
    args: list[str] | None = None
    run: Callable[[Path, Path], object] | None = None
    before: Callable[[Path, Path], object] = lambda inputs, work: None
    out: str = "out"

    def __call__(self, inputs: Path, work: Path) -> int:
        """The exit status, as the program would give it."""
        try:
            if self.run is not None:
                sys.argv = ["granvit", self.name]
                self.run(inputs, work)
                return 0
            from granvit.cli import main

            assert self.args is not None
            args = [arg.replace("{in}", str(inputs)).replace("{work}", str(work)) for arg in self.args]
            sys.argv = ["granvit", *args]
            main(args)
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 1
        except (GranvitError, OSError) as error:
            print(f"granvit: {error}", file=sys.stderr)
            return 1
        return 0


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40), (number, 7 * number % 256, 40)).save(buffer, "PNG")
    return buffer.getvalue()


def write_corpus(path: Path, numbers: range, rows_per_shard: int = 4) -> None:
    with CorpusWriter(path, rows_per_shard) as writer:
        for number in numbers:
            regions = [Region((1, 2, 30, 20), f"a thing {number}"), Region((0, 20, 60, 40), f"TOTAL {number}", "text")]
            split = ("train", "val", "test", "")[number % 4]
            record = RegionImage(f"set/{number}", png(number), 60, 40, regions, f"{number}.png", "set", split=split)
            writer.write(record)


def preload(names: set[str]) -> None:
    """Import once what the forked processes need; nothing is computed, so no thread is started."""
    import granvit.cli
    import granvit.corpus.annotate.pipeline
    import granvit.corpus.audit.run
    import granvit.corpus.audit.sheet  # noqa: F401

    if names & set(_TRAINING):
        import granvit.evaluate.evaluation_report
        import granvit.export.llava
        import granvit.study.report
        import granvit.study.work
        import granvit.train.run  # noqa: F401


def make_inputs(inputs: Path, names: set[str]) -> int:
    """What the commands read."""
    write_corpus(inputs / "a", range(10))
    write_corpus(inputs / "b", range(10, 16))
    rows = []
    (inputs / "pack" / "images").mkdir(parents=True)
    for number in range(9):
        (inputs / "pack" / "images" / f"{number}.png").write_bytes(png(number) if number != 5 else b"no picture")
        region = {"bbox": [1, 2, 30, 20], "kind": "object", "caption": f"thing {number}"}
        rows.append({"image": f"images/{number}.png", "width": 60, "height": 40, "split": "train", "regions": [region]})
    (inputs / "pack" / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (inputs / "photos").mkdir()
    for number in range(20):
        (inputs / "photos" / f"{number:02d}.png").write_bytes(png(number) if number != 7 else png(7)[:60])
    if names & set(_TRAINING):
        from helpers.tiny_model import make_model
        from helpers.tiny_recipe import save_parts

        save_parts(inputs / "parts")
        make_model().save(inputs / "checkpoint")
    return 0


def _old(inputs: Path, work: Path) -> None:
    write_corpus(work / "out", range(3))


def _annotate(inputs: Path, work: Path) -> None:
    from helpers.cheap import InlineWorkers, plan

    from granvit.corpus.annotate import pipeline

    pipeline._pool = InlineWorkers  # type: ignore[assignment]
    pipeline.annotate(inputs / "photos", work / "out", plan(), workers=1, device="cpu")


def _train(inputs: Path, work: Path) -> None:
    import torch
    from helpers.tiny_recipe import tiny_recipe

    from granvit.corpus.synthetic.synthesize import make
    from granvit.evaluate import region_tasks
    from granvit.evaluate.held_out import HeldOutScores
    from granvit.evaluate.run_report import write_run_report
    from granvit.files import locked
    from granvit.train.run import run_recipe

    torch.set_num_threads(1)
    region_tasks.LONGEST_CAPTION = 4  # an untrained model never ends an answer by itself
    records = [make(i, seed=1, size=64, documents=0.4) for i in range(8)]
    recipe = tiny_recipe(inputs / "parts")
    for stage in recipe.stages:
        stage.loop.trackers = ()
    out, held_out = work / "out", [make(i, seed=2, size=64, documents=0.0) for i in range(2)]
    with locked(out):
        scores = HeldOutScores(out, recipe.stages, held_out, tasks=("caption",), every=1, keep_best="caption.rouge_l")
        model = run_recipe(recipe, out, [(records, 1.0)], device="cpu", on_stage=scores.on_stage, validation=scores)
        write_run_report(out, recipe, model, scores, title="", summary="", facts={}, commands={})


def _study(inputs: Path, work: Path) -> None:
    import torch
    from helpers.tiny_study import tiny_study

    from granvit.corpus.synthetic.synthesize import make
    from granvit.study import work as of_jobs
    from granvit.study.jobs import Data, jobs_of
    from granvit.study.report import write_study
    from granvit.study.results import find_result

    torch.set_num_threads(1)
    of_jobs.time = SimpleNamespace(monotonic=lambda: 0.0)  # a result says how long it took
    records = [make(i, seed=1, size=64, documents=0.0) for i in range(8)]
    study, out = tiny_study(inputs / "parts", 2), work / "out"
    jobs, images = jobs_of(study, 1, Data(8, "drawn")), of_jobs.Images([(records, 1.0)], records[:4])
    for job in jobs:
        if find_result(out, job) is None:
            of_jobs.do_job(study, job, out, images, "cpu", keep=False)
    write_study(study, jobs, [result for job in jobs if (result := find_result(out, job)) is not None], out)


def _assemble(inputs: Path, work: Path) -> None:
    from helpers.tiny_recipe import tiny_recipe

    from granvit.cli.train import Assemble

    Assemble(tiny_recipe(inputs / "parts"), work / "out").run()


def _one_thread(inputs: Path, work: Path) -> None:
    import torch

    torch.set_num_threads(1)


def cases() -> list[Case]:
    """All of them; those that need torch last."""
    corpus = ["corpus"]
    asked = ["--box", "1,2,30,20", "--model", "{in}/checkpoint", "--device", "cpu"]
    return [
        Case("import", [*corpus, "import", "jsonl", "{in}/pack", "{work}/out"]),
        Case("import-over", [*corpus, "import", "jsonl", "{in}/pack", "{work}/out", "--overwrite"], before=_old),
        Case("curate", run=_curate),
        Case("curate-over", run=lambda inputs, work: _curate(inputs, work, True), before=_old),
        Case("split", [*corpus, "split", "{in}/a", "{work}/out", "--val", "0.2"]),
        Case("merge", [*corpus, "merge", "{in}/a", "{in}/b", "{work}/out"]),
        Case("sample", [*corpus, "sample", "{in}/a", "{work}/out", "--count", "5"]),
        Case("tile", [*corpus, "tile", "{in}/a", "{work}/out", "--side", "32"]),
        Case("draw", [*corpus, "draw", "{work}/out", "--count", "4", "--size", "64"]),
        Case(
            "leakage",
            [*corpus, "leakage", "{in}/a", "--against", "{in}/b", "--out", "{work}/out", "--report", "{work}/l.json"],
        ),
        Case("annotate", run=_annotate),
        Case("coco", [*corpus, "export", "coco", "{in}/a", "{work}/out"]),
        Case("webdataset", [*corpus, "export", "webdataset", "{in}/a", "{work}/out"]),
        Case("llava", [*corpus, "export", "llava", "{in}/a", "{work}/out"]),
        Case("audit", [*corpus, "audit", "{in}/a", "{work}/out", "--sample", "3"]),
        Case("show", [*corpus, "show", "{in}/a", "--out", "{work}/show.html"], out="show.html"),
        Case("export", ["export", "{in}/checkpoint", "{work}/out"], before=_one_thread),
        Case("export-encoder", ["export", "{in}/checkpoint", "{work}/out", "--format", "encoder"]),
        Case("train", run=_train),
        Case("assemble", run=_assemble),
        Case("study", run=_study),
        Case("attend", ["attend", "{in}/photos/00.png", *asked, "--out", "{work}/out"]),
        Case("describe", ["describe", "{in}/photos/00.png", *asked, "--draw", "{work}/out.png"], out="out.png"),
        Case(
            "probe",
            ["probe", "{in}/checkpoint", "--corpus", "{in}/a", "--held-out", "{in}/b"]
            + ["--task", "is-text", "--out", "{work}/out.json", "--device", "cpu"],
            out="out.json",
        ),
        Case("eval", ["eval", "{in}/checkpoint", "--corpus", "{in}/a", "--out", "{work}/out", "--device", "cpu"]),
        Case(
            "loss",
            ["loss", "{in}/checkpoint", "--corpus", "{in}/a", "--out", "{work}/out/loss.json", "--device", "cpu"],
        ),
    ]


def _curate(inputs: Path, work: Path, overwrite: bool = False) -> None:
    from granvit.corpus.curate.curation import Curation, curate
    from granvit.corpus.curate.filters import BoxFilter, Filters, ImageFilter
    from granvit.corpus.store import Corpus

    image, box = ImageFilter(8, 8), BoxFilter(0, 1, 50)
    curation = Curation(Filters(image, image, box, box))
    curate(Corpus(inputs / "a"), work / "out", curation, workers=1, overwrite=overwrite)
