"""Curation: images per second of filters and fingerprints, and a million records without pictures in bounded memory.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/curation.py [--quick] [--images 256] [--rounds 7] [--records 1000000]

Images: JPEGs of one megapixel, quality 85. Ours judges every record by the filters and takes its fingerprint (sha256,
thumbnail decoded at reduced size, perceptual hash). Baseline: Pillow decodes each file in full and does nothing else.
Both use the same threads, one per core; the arms take turns, each round in the other order. A ratio is the median of
the rounds' own ratios, given for seconds of the clock and for seconds of the processor (which other busy processes
disturb less). First it is checked that reduced decoding gives the thumbnail that full decoding gives.

Records: a corpus of records without pictures, six regions each, through curation (filters, repeated texts; no copies)
and statistics, each in a process of its own that tells its peak memory. Baseline: a bare copy, every record read and
written again.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from granvit.corpus.curate.curation import Curation, curate
from granvit.corpus.curate.filters import Filters, apply_filters
from granvit.corpus.dedup.perceptual_hash import SIDE, fingerprint, thumbnail
from granvit.corpus.stats import Statistics
from granvit.corpus.store import Corpus, CorpusWriter
from granvit.regions import Region, RegionImage

OURS, FULL = "filters + fingerprints", "full decode alone"
SIZE = (1152, 896)
WORDS = "red small large blue old wooden metal dog cat car table person window tree road sign cup on near with".split()
STAGES = ("copy", "curate", "statistics")


def photo(seed: int) -> bytes:
    """Noise with the spectrum of photographs, as a JPEG of about 300 KB, like a camera's."""
    rng = np.random.default_rng(seed)
    across, along = np.meshgrid(np.fft.rfftfreq(1024), np.fft.fftfreq(1024))
    falling = (np.hypot(across, along) + 1 / 1024) ** 1.2
    channels = [np.fft.irfft2(np.fft.rfft2(rng.normal(size=(1024, 1024))) / falling) for _ in range(3)]
    shared = [channels[0], channels[0] + 0.2 * channels[1], channels[0] + 0.2 * channels[2]]
    pixels = np.stack([np.clip(128 + 48 * c / c.std(), 0, 255) for c in shared], axis=2).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(SIZE, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def decode(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def check_thumbnails(files: list[bytes]) -> None:
    for data in files[:8]:
        exact = np.asarray(decode(data).convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=int)
        off = np.abs(thumbnail(data) - exact).mean()
        assert off < 3, f"reduced decoding differs by {off:.1f} grey levels"


def image_arms(files: list[bytes], workers: int) -> dict[str, Callable[[], object]]:
    region = Region((100, 100, 400, 400), "a thing")
    records = [RegionImage(f"{i}", data, *SIZE, [region], source="s") for i, data in enumerate(files)]
    pool = ThreadPoolExecutor(workers)

    def ours() -> None:
        kept = [verdict.record for verdict in apply_filters(records, Filters()) if verdict.reason is None]
        assert sum(len(batch.thumbs) for batch in fingerprint(kept, workers)) == len(files)

    def full() -> None:
        for image in pool.map(decode, files):
            assert image.size == SIZE

    return {OURS: ours, FULL: full}


def time_images(images: int, rounds: int) -> dict[str, float]:
    unique = [photo(seed) for seed in range(min(images, 32))]
    check_thumbnails(unique)
    files = [unique[i % len(unique)] for i in range(images)]
    workers = len(os.sched_getaffinity(0))
    arms = image_arms(files, workers)
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for round_ in range(rounds + 1):
        for name in list(arms)[:: 1 if round_ % 2 else -1]:
            clock, processor = time.perf_counter(), time.process_time()
            arms[name]()
            if round_:  # the first round warms up
                spent[name].append((time.perf_counter() - clock, time.process_time() - processor))
    kilobytes = sum(map(len, unique)) / len(unique) / 1e3
    print(f"{images} JPEGs of {SIZE[0]} x {SIZE[1]}, {kilobytes:.0f} KB on average, {workers} threads, {rounds} rounds")
    print(f"  {'':<24} {'images/s':>20} {'processor ms/image':>20}")
    for name, seconds in spent.items():
        rates = [images / clock for clock, _ in seconds]
        each = statistics.median(processor for _, processor in seconds) / images * 1e3
        print(f"  {name:<24} {statistics.median(rates):>7.0f} [{min(rates):.0f}, {max(rates):.0f}] {each:>16.2f}")
    pairs = list(zip(spent[OURS], spent[FULL], strict=True))
    return {
        "images_per_s": statistics.median(images / clock for clock, _ in spent[OURS]),
        "images_per_processor_s": images / statistics.median(processor for _, processor in spent[OURS]),
        "speed_over_full_decode": statistics.median(full[0] / ours[0] for ours, full in pairs),
        "speed_over_full_decode_processor": statistics.median(full[1] / ours[1] for ours, full in pairs),
    }


def record(number: int) -> RegionImage:
    rng = random.Random(number)
    width, height = rng.randint(400, 1400), rng.randint(400, 1400)
    regions = []
    for k in range(6):
        x, y = rng.uniform(0, width - 60), rng.uniform(0, height - 60)
        box = (x, y, rng.uniform(x + 20, width), rng.uniform(y + 20, height))
        text = " ".join(rng.choices(WORDS, k=6))
        kind = "object" if k < 4 else "text"
        regions.append(Region(box, text, kind, rng.random(), "detector:d", "captioner:c"))
    return RegionImage(f"s/{number}", None, width, height, regions, f"{number}.jpg", f"s{number % 5}")


def run_stage(stage: str, folder: Path) -> None:
    """One arm over the stored records, in this process; prints seconds and peak memory as JSON."""
    corpus, started, processor = Corpus(folder / "records"), time.perf_counter(), time.process_time()
    if stage == "copy":
        with CorpusWriter(folder / "copied") as writer:
            for item in corpus:
                writer.write(item)
    elif stage == "curate":
        curate(corpus, folder / "curated", Curation(exact_duplicates=False, near_duplicates=False))
    else:
        Statistics.of(corpus.records())
    # Not `getrusage`, whose peak includes what the process was forked from.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    spent = {"seconds": time.perf_counter() - started, "processor_s": time.process_time() - processor}
    print(json.dumps({**spent, "peak_mb": int(peak.split()[1]) / 1024}))


def time_records(count: int, folder: Path) -> dict[str, float]:
    with CorpusWriter(folder / "records") as writer:
        for number in range(count):
            writer.write(record(number))
    found = {}
    for stage in STAGES:
        command = [sys.executable, __file__, "--stage", stage, "--folder", str(folder)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[stage] = json.loads(done.stdout.splitlines()[-1])
    print(f"\n{count} records without pictures, 6 regions each")
    print(f"  {'':<12} {'seconds':>9} {'processor s':>12} {'peak MB':>9}")
    for stage, measured in found.items():
        print(f"  {stage:<12} {measured['seconds']:>9.1f} {measured['processor_s']:>12.1f} {measured['peak_mb']:>9.0f}")
    numbers = {f"{stage}_{name}": measured[name] for stage, measured in found.items() for name in measured}
    return {
        "records": count,
        **numbers,
        "curate_over_copy": _over(found, "curate"),
        "statistics_over_copy": _over(found),
    }


def _over(found: dict[str, dict[str, float]], stage: str = "statistics") -> float:
    return found[stage]["processor_s"] / found["copy"]["processor_s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few images, rounds and records")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        run_stage(args.stage, args.folder)
        return
    if args.quick:
        args.images, args.rounds, args.records = 64, 3, 20_000
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {len(os.sched_getaffinity(0))} cores, Pillow {Image.__version__}")
    numbers = time_images(args.images, args.rounds)
    with tempfile.TemporaryDirectory() as folder:
        numbers |= time_records(args.records, Path(folder))
    print(json.dumps({name: round(value, 3) for name, value in numbers.items()}))


if __name__ == "__main__":
    main()
