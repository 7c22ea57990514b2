"""OCR annotation against RapidOCR in a bare loop, on one core: what reading, checking and writing a corpus costs.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/annotate.py [FOLDER] [--images 12] [--repeats 5]

Baseline: `engine(picture)` for each picture of the folder, decoded by Pillow, results thrown away. Ours: the work of
an annotation worker on the same files with the same engine settings: read, decode, annotate, check every region, write
a Parquet shard with checksums and sync it to the disk. Models are loaded before the clock starts, in both. The arms
take turns, each round in the other order; a ratio is the median of the rounds' own ratios, given for seconds of the
clock and for seconds of the processor (which other busy processes disturb less). Without FOLDER, pages of text are
drawn, 40 lines each.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageFont
from rapidocr import RapidOCR

from granvit.corpus.annotate.ocr import OcrConfig
from granvit.corpus.annotate.pipeline import Listing
from granvit.corpus.annotate.plan import Plan
from granvit.corpus.annotate.shards import Task, run_task, shard_folder
from granvit.corpus.annotate.sources import open_source
from granvit.corpus.store import Corpus

WORDS = "total amount invoice number date customer order price tax paid cash card thank you street city".split()
LINES, OURS, BARE = 40, "annotate", "bare loop"
Texts = list[list[str]]


def draw_pages(folder: Path, count: int) -> None:
    """Pages of 700 x 1000 pixels with random words."""
    rng, font = np.random.default_rng(0), ImageFont.load_default(18)
    for number in range(count):
        page = Image.new("RGB", (700, 1000), "white")
        for line in range(LINES):
            text = " ".join([*rng.choice(WORDS, 3), f"{rng.integers(10_000) / 100:.2f}"])
            ImageDraw.Draw(page).text((30 + int(rng.integers(60)), 20 + 24 * line), text, fill="black", font=font)
        page.save(folder / f"{number:03d}.jpg", quality=90)


def bare_loop(config: OcrConfig, files: list[Path]) -> Callable[[], Texts]:
    """RapidOCR with the annotator's settings, one call per picture."""
    engine: Any = RapidOCR(params=config._engine_settings("cpu"))

    def run() -> Texts:
        results = [engine(np.asarray(Image.open(file).convert("RGB"))[:, :, ::-1]) for file in files]
        return [list(result.txts or ()) for result in results]

    return run


def annotation(config: OcrConfig, folder: Path, count: int, out: Path) -> Callable[[], Texts]:
    """An annotation worker's task over all pictures; each run writes a new shard."""
    source = open_source(folder)
    stages = Plan("ocr", config).build()
    inputs = Listing(source, shard_images=count).inputs(0)
    rounds = iter(range(10_000))

    def run() -> Texts:
        task = Task(next(rounds), inputs, Plan.batch)
        for _ in run_task(task, source, stages, out):
            pass
        return [
            [region.text for region in record.regions] for record in Corpus(shard_folder(out, task.shard)).records()
        ]

    return run


def seconds(arm: Callable[[], Texts]) -> tuple[float, float]:
    """Of the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    arm()
    return time.perf_counter() - clock, time.process_time() - processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="pictures to read; drawn where none is given")
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, out = Path(temporary, "pictures"), Path(temporary, "out")
        folder.mkdir()
        if options.folder:
            for file in sorted(path for path in options.folder.iterdir() if path.is_file())[: options.images]:
                (folder / file.name).write_bytes(file.read_bytes())
        else:
            draw_pages(folder, options.images)
        files = sorted(folder.iterdir())
        config = OcrConfig()
        arms = {OURS: annotation(config, folder, len(files), out), BARE: bare_loop(config, files)}
        texts = {name: arm() for name, arm in arms.items()}  # warms up, too
        assert texts[OURS] == texts[BARE], "the two read different texts"
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
        for repeat in range(options.repeats):
            for name in (OURS, BARE) if repeat % 2 else (BARE, OURS):
                times[name].append(seconds(arms[name]))
    print(f"{platform.machine()}, onnxruntime {onnxruntime.__version__}, one thread, {len(files)} images, ", end="")
    print(f"{sum(map(len, texts[OURS]))} lines")
    for name in arms:
        rates = [len(files) / processor for _, processor in times[name]]
        print(f"{name:10} {statistics.median(rates):7.3f} images/s per core [{min(rates):.3f}, {max(rates):.3f}]")
    ratios = [
        statistics.median(bare[i] / ours[i] for ours, bare in zip(times[OURS], times[BARE], strict=True))
        for i in (0, 1)
    ]
    print(f"annotate reaches {ratios[1]:.3f} of the bare loop ({ratios[0]:.3f} by the clock)")
    print(
        json.dumps(
            {
                "benchmark": "annotate",
                "images": len(files),
                "repeats": options.repeats,
                "images_per_second_per_core": round(statistics.median(len(files) / p for _, p in times[OURS]), 4),
                "ratio_to_rapidocr": round(ratios[1], 4),
                "ratio_to_rapidocr_by_the_clock": round(ratios[0], 4),
            }
        )
    )


if __name__ == "__main__":
    main()
