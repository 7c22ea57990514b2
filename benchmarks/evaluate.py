"""What an evaluation costs beside the model's own answers: decoding, asking, keeping, scoring, intervals, the page.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/evaluate.py [--images 1000] [--regions 10] [--repeats 2] [--model RUN]

The baseline is the model alone: the same pictures, decoded beforehand, and the same questions, in groups of as many
images and rows. The evaluation is `granvit eval`'s, from the corpus on disk to its files. Both run in turns in one
process, one first and then the other, after warming up on some of the images; a round's ratio is to the baseline of
the same round, the table gives medians. "CPU" is the time that all threads of this process computed: where others use
the machine too, its ratio is the one to trust. In every round both are held to give the same answers. The model is
`--model`, or nano's shipped parts under a new projector; answers end after a few tokens, as a trained model's do.

Some of an evaluation's cost is the same for any number of images (the page with its drawn cases), so that few images
make the ratio worse than it is for a real evaluation.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from granvit.cli.evaluate import write_files
from granvit.corpus.store import Corpus, CorpusWriter
from granvit.corpus.synthetic.synthesize import make
from granvit.evaluate.answering import answer_some, batched, decode_named
from granvit.evaluate.evaluation import Evaluation, open_journal, run_evaluation
from granvit.evaluate.items import EvalImage, EvalSet
from granvit.evaluate.region_tasks import region_images, region_tasks
from granvit.model.region_model import RegionModel
from granvit.nano.recipes import nano
from granvit.predict import GranViT
from granvit.train.build import build_model

TASKS = ("describe", "locate")
WARM_UP = 64
ANSWER_TOKENS = {"describe": 6, "locate": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--regions", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    model = GranViT(RegionModel.load(options.model / "checkpoint") if options.model else build_model(nano()))
    with tempfile.TemporaryDirectory() as folder:
        corpus = draw(Path(folder) / "corpus", options.images, options.regions)
        measure(model, corpus, options, Path(folder))


def draw(folder: Path, images: int, regions: int) -> Corpus:
    """Embedded scenes, each with exactly so many regions: those it has, and the same again with other texts."""
    with CorpusWriter(folder) as writer:
        for i in range(images):
            record = make(i, seed=5, size=160, documents=0.0)
            own = record.regions
            copies = [replace(own[n % len(own)], text=f"{own[n % len(own)].text} {n}") for n in range(regions)]
            writer.write(replace(record, id=str(i), split="val", regions=copies))
    return Corpus(folder)


def eval_set_of(corpus: Corpus, images: int | None = None) -> EvalSet:
    """Both questions about every region of the first `images`, answered in as many tokens as a trained model needs."""
    tasks = [replace(task, longest=ANSWER_TOKENS[task.name]) for task in region_tasks(TASKS)]

    def asked() -> Iterator[EvalImage]:
        return region_images(islice(iter(corpus), images), tasks, max_regions=1_000)

    return EvalSet("corpus", tasks, asked, image_count=images or len(corpus))


@dataclass(frozen=True)
class Seconds:
    """On the wall, and of all threads' computing."""

    wall: float
    cpu: float

    @classmethod
    def since(cls, start: Seconds) -> Seconds:
        now = cls.now()
        return cls(now.wall - start.wall, now.cpu - start.cpu)

    @classmethod
    def now(cls) -> Seconds:
        return cls(time.perf_counter(), time.process_time())


def bare(model: GranViT, eval_set: EvalSet) -> tuple[Seconds, list[str]]:
    """The time of the model's answers alone, and the answers."""
    tasks = {task.name: task for task in eval_set.tasks}
    groups = [[(decode_named(image), image.items) for image in some] for some in batched(eval_set.images(), 64)]
    start = Seconds.now()
    for asked in groups:
        answer_some(model, asked, tasks)
    seconds = Seconds.since(start)
    return seconds, [item.said for asked in groups for _, items in asked for item in items]


def evaluation(model: GranViT, eval_set: EvalSet, out: Path) -> tuple[Seconds, Evaluation]:
    """The time of the whole evaluation, and what came of it."""
    start = Seconds.now()
    with open_journal(out, "benchmark") as journal:
        result = run_evaluation(model, [eval_set], {"Model": "benchmark"}, journal, progress=False)
    write_files(result, [eval_set], out)
    return Seconds.since(start), result


def measure(model: GranViT, corpus: Corpus, options: argparse.Namespace, folder: Path) -> None:
    """Time both in turns, and print the table."""
    eval_set = eval_set_of(corpus)
    warm_up = eval_set_of(corpus, images=WARM_UP)
    bare(model, warm_up), evaluation(model, warm_up, folder / "warm-up")
    bares: list[Seconds] = []
    wholes: list[Seconds] = []
    for repeat in range(options.repeats):
        out = folder / f"out{repeat}"
        if repeat % 2:
            whole, result = evaluation(model, eval_set, out)
            alone, said = bare(model, eval_set)
        else:
            alone, said = bare(model, eval_set)
            whole, result = evaluation(model, eval_set, out)
        assert [item.said for item in result.items] == said, "the evaluation gives other answers than the model alone"
        bares.append(alone)
        wholes.append(whole)
    ratios = [whole.wall / alone.wall for whole, alone in zip(wholes, bares, strict=True)]
    cpu_ratios = [whole.cpu / alone.cpu for whole, alone in zip(wholes, bares, strict=True)]
    print(f"{len(corpus)} images, {len(said)} questions, {torch.get_num_threads()} threads, {platform.processor()}")
    print(f"{'':16}{'seconds':>10}{'least':>10}{'most':>10}{'CPU':>10}")
    for name, times in (("model alone", bares), ("evaluation", wholes)):
        walls, cpu = [t.wall for t in times], statistics.median(t.cpu for t in times)
        print(f"{name:16}{statistics.median(walls):10.2f}{min(walls):10.2f}{max(walls):10.2f}{cpu:10.2f}")
    facts: dict[str, Any] = {
        "ratio": round(statistics.median(ratios), 4),
        "ratios": [round(ratio, 4) for ratio in ratios],
        "cpu_ratio": round(statistics.median(cpu_ratios), 4),
        "model_cpu_seconds": round(statistics.median(t.cpu for t in bares), 3),
        "images": len(corpus),
        "questions": len(said),
    }
    print(json.dumps({"benchmark": "evaluate", **facts}))


if __name__ == "__main__":
    main()
