"""Leakage: how many planted copies of real pictures are found, how many others are taken for copies, and what it costs.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/leakage.py [FOLDER ...] [--quick] [--hashes 1000000]

Pictures: every image under the FOLDERs (../shared/data), photographs and scans (receipts, pages of text) apart. First
true duplicates among them are left out: equal files, and photographs whose thumbnails, or one and the other's mirror
image, correlate by more than 0.6 in their details, all pairs compared (of photographs that were looked at, no two
different ones come above 0.46). Then every picture is copied in every way of `COPIES`, and each copy sought among all
originals, as `granvit corpus leakage` does. Recall: copies found as their own original's. False: copies found as
another's. Last, the originals are sought among each other: what is found there is false.

Baseline: a perceptual hash of the whole picture within ten bits, as it is and mirrored; no windows, no second look.

Costs: `--benchmark` thumbnails, blends of the real ones, become the benchmark; others are sought among them. And
`--hashes` random hashes are searched for near duplicates of each other; random ones serve, since the 16-bit parts of
the real ones are about as spread (shown: how many times more often than at random two share a part). Each cost is taken
in a process of its own, which tells its peak memory.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from granvit.corpus.dedup.copy_search import CopyFinder, _candidates, _detail
from granvit.corpus.dedup.hamming_index import distance
from granvit.corpus.dedup.leakage import SIMILARITY
from granvit.corpus.dedup.perceptual_hash import BATCH, SIDE, Hashes, Thumbs, hashes, mirrored, thumbnail

DATA = Path(__file__).parents[1] / "../shared/data"
SCANS = ("sroie", "docbank")
ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
SAME_DETAIL, BASELINE_BITS = 0.6, 10
OURS, BASELINE, NONE = "ours", "hash of the whole", "none, other originals"
COSTS = ("leakage", "duplicates")

Copying = Callable[[Image.Image, random.Random], bytes]


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def halved(image: Image.Image) -> Image.Image:
    return image.resize((max(image.width // 2, 1), max(image.height // 2, 1)), Image.Resampling.LANCZOS)


def cropped(image: Image.Image, rng: random.Random, off: float) -> Image.Image:
    """Width and height lose `off` of their length, more or less of it on either side."""
    width, height = round(image.width * (1 - off)), round(image.height * (1 - off))
    x, y = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    return image.crop((x, y, x + width, y + height))


COPIES: dict[str, Copying] = {
    "recompressed (quality 30)": lambda image, rng: jpeg(image, 30),
    "resized to 50 %": lambda image, rng: jpeg(halved(image)),
    "cropped by 10 %": lambda image, rng: jpeg(cropped(image, rng, 0.1)),
    "mirrored": lambda image, rng: jpeg(ImageOps.mirror(image)),
    "all four": lambda image, rng: jpeg(ImageOps.mirror(halved(cropped(image, rng, 0.1))), 30),
    "cropped by 20 %": lambda image, rng: jpeg(cropped(image, rng, 0.2)),
}


def upright(data: bytes) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")


def same_detail(thumbs: Thumbs) -> list[int]:
    """Which thumbnails show what an earlier one shows, by plain correlation of all pairs, mirrored ones too."""
    plain, flipped = (_unit(_detail(t.astype(np.float32))) for t in (thumbs, thumbs[:, :, ::-1]))
    found = []
    for low in range(0, len(plain), 512):
        some = plain[low : low + 512].T
        alike = np.maximum(plain @ some, flipped @ some)
        earlier = np.arange(len(plain))[:, None] < low + np.arange(some.shape[1])
        found += (low + np.flatnonzero((alike * earlier).max(axis=0) > SAME_DETAIL)).tolist()
    return found


def _unit(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    flat = pictures.reshape(len(pictures), -1)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def distinct(files: list[Path], photographs: bool) -> tuple[list[bytes], Thumbs]:
    data = list({data: None for data in (file.read_bytes() for file in files)})
    thumbs = np.stack([thumbnail(each) for each in data])
    twice = set(same_detail(thumbs)) if photographs else set()
    kept = [i for i in range(len(data)) if i not in twice]
    return [data[i] for i in kept], thumbs[kept]


def planted(data: list[bytes]) -> dict[str, Thumbs]:
    """Thumbnails of the copies of every kind, in the order of the pictures."""
    made: dict[str, list[Thumbs]] = {name: [] for name in COPIES}
    for number, each in enumerate(data):
        image, rng = upright(each), random.Random(number)
        for name, copy in COPIES.items():
            made[name].append(thumbnail(copy(image, rng)))
    return {name: np.stack(thumbs) for name, thumbs in made.items()}


class WholeHash:
    """The baseline: hashes of whole pictures, all pairs compared."""

    def __init__(self, thumbs: Thumbs) -> None:
        self._hashes = hashes(thumbs)[:, 0]

    def search(self, thumbs: Thumbs) -> list[tuple[int, int]]:
        pairs = []
        for i, asked in enumerate(hashes(thumbs)[:, 0]):
            near = np.minimum(distance(self._hashes, asked), distance(self._hashes, mirrored(asked))) <= BASELINE_BITS
            pairs += [(i, int(original)) for original in np.flatnonzero(near)]
        return pairs


def rates(pairs: list[tuple[int, int]], pictures: int) -> tuple[float, float]:
    """Shares of the pictures: those found as themselves, and those found as another."""
    return len({a for a, b in pairs if a == b}) / pictures, len({a for a, b in pairs if a != b}) / pictures


def search_all(data: list[bytes], thumbs: Thumbs) -> dict[str, dict[str, tuple[float, float]]]:
    """By way of searching and kind of copy: recall and false matches."""
    finder, whole = CopyFinder(thumbs), WholeHash(thumbs)
    found: dict[str, dict[str, tuple[float, float]]] = {OURS: {}, BASELINE: {}}
    for name, copies in {**planted(data), NONE: thumbs}.items():
        ours = [(copy.picture, copy.original) for copy in finder.search(copies, SIMILARITY)]
        found[OURS][name] = rates(ours, len(copies))
        found[BASELINE][name] = rates(whole.search(copies), len(copies))
    return found


def spread(known: Hashes) -> list[float]:
    """For each 16-bit part: how many times more often than at random two hashes share it."""
    parts = np.ascontiguousarray(known).view(np.uint16).reshape(-1, 4)
    counts = [np.bincount(part, minlength=1 << 16).astype(float) for part in parts.T]
    return [float((c * (c - 1)).sum() / (len(known) * (len(known) - 1)) * (1 << 16)) for c in counts]


def memory_mb(which: str) -> float:
    """Of this process: "VmRSS", what it holds now, or "VmHWM", the most it ever held."""
    # Not `getrusage`, whose peak includes what the process was forked from.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) / 1024


def cost_of_leakage(thumbs: Thumbs, originals: int, pictures: int) -> dict[str, float]:
    """A benchmark of many images, and pictures of a corpus that stream past it."""
    rng = np.random.default_rng(0)
    known = _blends(thumbs, originals, rng)
    CopyFinder(known[:64])  # loads what is loaded once
    before = memory_mb("VmRSS")
    started = time.process_time()
    finder = CopyFinder(known)
    built = time.process_time() - started
    held = memory_mb("VmRSS") - before
    batches = [_blends(thumbs, BATCH, rng) for _ in range(-(-pictures // BATCH))]
    started = time.process_time()
    for batch in batches:
        finder.search(batch, SIMILARITY)
    spent = time.process_time() - started
    return {
        "benchmark_images": originals,
        "build_ms_per_benchmark_image": built / originals * 1e3,
        # The thumbnails were there before.
        "kb_per_benchmark_image": held * 1024 / originals + SIDE * SIDE / 1024,
        "search_ms_per_image": spent / (len(batches) * BATCH) * 1e3,
        "search_peak_mb": memory_mb("VmHWM"),
    }


def _blends(thumbs: Thumbs, count: int, rng: np.random.Generator) -> Thumbs:
    """Pictures that are no copies of each other: two each, one of them mirrored, mixed half and half."""
    first, second = (thumbs[rng.integers(len(thumbs), size=count)] for _ in range(2))
    return ((first.astype(np.uint16) + second[:, :, ::-1]) // 2).astype(np.uint8)


def cost_of_duplicates(count: int) -> dict[str, float]:
    """All pairs of near hashes among many, as curation asks for them."""
    known = np.random.default_rng(0).integers(0, 1 << 64, size=count, dtype=np.uint64)
    before, started = memory_mb("VmHWM"), time.process_time()
    pairs = sum(len(first) for first, _, _ in _candidates(known))
    spent = time.process_time() - started
    return {
        "hashes": count,
        "near_pairs": pairs,
        "near_pairs_s": spent,
        "near_pairs_peak_mb": memory_mb("VmHWM"),
        "near_pairs_bytes_per_image": (memory_mb("VmHWM") - before) * 2**20 / count,
    }


def run_cost(cost: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--cost", cost, "--folder", str(folder)]
    command += ["--hashes", str(options.hashes), "--benchmark", str(options.benchmark)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def pictures(folders: list[Path], scans: bool, quick: bool) -> list[Path]:
    files = [file for folder in folders for file in sorted(folder.rglob("*")) if file.suffix.lower() in ENDINGS]
    chosen = [file for file in files if bool(set(file.parts) & set(SCANS)) == scans]
    return chosen[::10] if quick else chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path, default=[DATA])
    parser.add_argument("--quick", action="store_true", help="every tenth picture, few hashes")
    parser.add_argument("--hashes", type=int, default=1_000_000)
    parser.add_argument("--benchmark", type=int, default=5_000)
    parser.add_argument("--cost", choices=COSTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cost == "leakage":
        thumbs = np.load(options.folder / "thumbs.npy")
        print(json.dumps(cost_of_leakage(thumbs, options.benchmark, 20 * BATCH)))
        return
    if options.cost == "duplicates":
        print(json.dumps(cost_of_duplicates(options.hashes)))
        return
    if options.quick:
        options.hashes, options.benchmark = 50_000, 500
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {len(os.sched_getaffinity(0))} cores, numpy {np.__version__}, Pillow {Image.__version__}")
    numbers: dict[str, float] = {}
    for group in ("photographs", "scans"):
        files = pictures(options.folders, group == "scans", options.quick)
        if not files:
            print(f"\nno {group} under {', '.join(map(str, options.folders))}")
            continue
        data, thumbs = distinct(files, group == "photographs")
        found = search_all(data, thumbs)
        report(group, len(files), len(data), found)
        numbers |= summary(group, len(data), found)
        if group == "photographs":
            if len(thumbs) >= 1_000:
                parts = ", ".join(f"{part:.1f}" for part in spread(hashes(thumbs)[:, 0]))
                print(f"  two share a 16-bit part of the hash {parts} times as often as by chance")
            with tempfile.TemporaryDirectory() as folder:
                np.save(Path(folder, "thumbs.npy"), thumbs)
                numbers |= run_cost("leakage", Path(folder), options)
    numbers |= run_cost("duplicates", Path(), options)
    print(costs(numbers))
    print(json.dumps({name: round(value, 4) for name, value in numbers.items()}))


def report(group: str, files: int, kept: int, found: dict[str, dict[str, tuple[float, float]]]) -> None:
    print(f"\n{files} {group}, {kept} of them distinct; shares of the pictures")
    print(f"  {'copies':<26} {OURS + ': recall':>14} {'false':>9} {BASELINE + ': recall':>26} {'false':>9}")
    for name in found[OURS]:
        cells = [*found[OURS][name], *found[BASELINE][name]]
        recalls = ["" if name == NONE else f"{cell:.2%}" for cell in cells[::2]]
        falses = [f"{cell:.2%}" for cell in cells[1::2]]
        print(f"  {name:<26} {recalls[0]:>14} {falses[0]:>9} {recalls[1]:>26} {falses[1]:>9}")


def summary(group: str, kept: int, found: dict[str, dict[str, tuple[float, float]]]) -> dict[str, float]:
    required = list(COPIES)[:4]
    numbers: dict[str, float] = {group: kept}
    for way, prefix in ((OURS, ""), (BASELINE, "baseline_")):
        numbers[f"{prefix}{group}_least_recall"] = min(found[way][name][0] for name in required)
        numbers[f"{prefix}{group}_most_false"] = max(found[way][name][1] for name in (*required, NONE))
    return numbers


def costs(numbers: dict[str, float]) -> str:
    lines = ["\ncosts, seconds of one processor"]
    if "benchmark_images" in numbers:
        lines.append(
            f"  leakage: {numbers['benchmark_images']:.0f} benchmark images, "
            f"{numbers['kb_per_benchmark_image']:.1f} KB and {numbers['build_ms_per_benchmark_image']:.2f} ms each; "
            f"{numbers['search_ms_per_image']:.2f} ms per image of the corpus, beside its fingerprint; "
            f"{numbers['search_peak_mb']:.0f} MB in all"
        )
    lines.append(
        f"  near duplicates: {numbers['hashes']:.0f} hashes in {numbers['near_pairs_s']:.1f} s, "
        f"{numbers['near_pairs_bytes_per_image']:.0f} bytes each, {numbers['near_pairs_peak_mb']:.0f} MB in all"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
