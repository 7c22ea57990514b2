"""The first hour on a GPU: its tests, every benchmark at the paper's size, a profile; the table of docs/performance.md.

    python benchmarks/first_hour.py                  # the same command goes on where it was stopped
    python benchmarks/first_hour.py --rehearse       # the same on the CPU, at reduced size

It needs a Python with torch, transformers and this checkout, which need not be installed; a piece that needs more says
what, and is left out. The work is cut into pieces, each a process of its own, of at most `--minutes` (8). A call works
for so long and stops, and the next one goes on (`--all` works until all is done). A piece's result is one file in
`--out`: its command, commit, device, seconds, how it ended, and all that it printed. A piece is done once for a commit
and a device; one that failed, or took too long, is not taken again unless its file is removed.

When all pieces are done on a GPU, what they measured is written into docs/performance.md, between the two marks there;
a rehearsal writes it to a copy in `--out`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- first hour on a GPU -->", "<!-- end of the first hour -->"
GPU_TESTS = ("tests/model/test_attention.py", "tests/train/test_timing.py")
# At most so many lines of a profile, the slowest first.
_KERNELS = 25


@dataclass(frozen=True)
class Piece:
    """One process of at most so many minutes.

    Attributes:
        words: what Python is called with on a GPU. rehearsed: on the CPU.
        needs: modules beside torch and transformers.
    """

    name: str
    words: Sequence[str]
    rehearsed: Sequence[str]
    needs: Sequence[str] = ()


def benchmark(name: str, gpu: str, cpu: str = "--quick") -> tuple[list[str], list[str]]:
    """The words of a benchmark on a GPU, and on the CPU."""
    path = f"benchmarks/{name}.py"
    return [path, "--device", "cuda", *gpu.split()], [path, *cpu.split()]


_TESTS = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]
PIECES = (
    Piece(
        "tests",
        [*_TESTS, "-m", "gpu", *GPU_TESTS],
        [*_TESTS, "-m", "not gpu", "tests/train/test_timing.py"],
        ("pytest", "hypothesis"),
    ),
    Piece("packing, few", *benchmark("packing", "--size paper --images 4 --repeats 5 --regions 1 4 8", "--quick")),
    Piece("packing, many", *benchmark("packing", "--size paper --images 2 --repeats 5 --regions 16 32", "--quick")),
    Piece("step", *benchmark("step", "--size paper --images 8 --regions 8")),
    Piece("step, nano", *benchmark("step", "")),
    Piece("predict", *benchmark("predict", "")),
    Piece("peers", *benchmark("peers", ""), ("accelerate", "pyarrow", "grain")),
    Piece("profile", [__file__, "--profile", "paper"], [__file__, "--profile", "nano"]),
)


@dataclass
class Result:
    """How a piece ended: "done", "failed", "too long" or "left out"; `output` is what it printed."""

    piece: str
    command: list[str]
    commit: str
    device: str
    ended: str
    seconds: float
    output: str

    @property
    def facts(self) -> dict[str, Any]:
        """What a benchmark's last line says."""
        found: dict[str, Any] = json.loads(self.output.strip().splitlines()[-1])
        return found


# --- running ---------------------------------------------------------------------------------------------------------


def run(piece: Piece, options: argparse.Namespace, seconds: float, device: str) -> Result | None:
    """The piece's result; None where it was stopped and had less time than a piece may take."""
    words = list(piece.rehearsed if options.rehearse else piece.words)
    if __file__ in words:
        words += ["--out", str(options.out)]
    command = [sys.executable, *words]
    made = Result(piece.name, words, commit(), device, "done", 0.0, "")
    if missing := [name for name in piece.needs if importlib.util.find_spec(name) is None]:
        made.ended, made.output = "left out", f"needs {' and '.join(missing)}: pip install {' '.join(missing)}"
        return made
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_WAIT_POLICY": "PASSIVE"}
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            timeout=seconds,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        made.ended, made.output = "done" if done.returncode == 0 else "failed", done.stdout
    except subprocess.TimeoutExpired as stopped:
        if seconds < 60 * options.minutes:
            return None
        said = stopped.stdout or b""
        made.ended, made.output = "too long", said if isinstance(said, str) else said.decode(errors="replace")
    made.seconds = round(time.perf_counter() - start, 1)
    return made


def commit() -> str:
    """The checkout's commit; a copy without git has none."""
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return asked.stdout.strip() if asked.returncode == 0 else "unknown"


def device_name(rehearse: bool) -> str:
    import torch

    if rehearse:
        return "CPU, rehearsed"
    if not torch.cuda.is_available():
        raise SystemExit("no GPU is there: --rehearse goes through it on the CPU, at reduced size")
    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"


def file_of(piece: Piece, out: Path) -> Path:
    return out / f"{piece.name.replace(', ', '-')}.json"


def kept(out: Path, device: str) -> dict[str, Result]:
    """The results that are there of this commit and device."""
    found = {}
    for piece in PIECES:
        path = file_of(piece, out)
        if path.exists():
            result = Result(**json.loads(path.read_text()))
            if (result.commit, result.device) == (commit(), device):
                found[piece.name] = result
    return found


def work(options: argparse.Namespace, device: str) -> dict[str, Result]:
    """Runs what is missing, for as long as this call may work."""
    options.out.mkdir(parents=True, exist_ok=True)
    results, began = kept(options.out, device), time.perf_counter()
    for piece in PIECES:
        if piece.name in results:
            continue
        whole = 60.0 * options.minutes
        left = whole if options.all else whole - (time.perf_counter() - began)
        print(f"{piece.name}: at most {left:.0f} s", flush=True)
        result = run(piece, options, left, device) if left > 0 else None
        if result is None:
            print("stopped here: the same command goes on")
            break
        path = file_of(piece, options.out)
        path.with_suffix(".partial").write_text(json.dumps(asdict(result), indent=1) + "\n")
        path.with_suffix(".partial").replace(path)
        results[piece.name] = result
        last = result.output.strip().splitlines()[-1:] if result.ended != "done" else []
        print(f"{piece.name}: {result.ended} after {result.seconds:.0f} s {' '.join(last)[:300]}", flush=True)
    return results


# --- the table -------------------------------------------------------------------------------------------------------


def of_tests(result: Result) -> Iterator[tuple[str, str]]:
    yield "the tests that need a GPU", result.output.strip().splitlines()[-1].strip("= ")


def of_packing(result: Result) -> Iterator[tuple[str, str]]:
    for count, found in result.facts["regions_per_image"].items():
        speed = f"{found['regions_per_second']:,.0f} regions/s, {found['speedup_vs_one_by_one']:.2f}x"
        yield (
            f"packed, {count} regions an image, against one question per sequence",
            f"{speed} ({found['share_of_bound']:.0%} of the bound), {found['memory_vs_one_by_one']:.2f} of its memory",
        )


def of_step(result: Result) -> Iterator[tuple[str, str]]:
    for arm, found in result.facts["arms"].items():
        used = (
            f"{found['mfu']:.0%} MFU" if found["mfu"] is not None else f"{found['of_matmul']:.0%} of a matrix product"
        )
        speed = f"{found['ms']:,.0f} ms, {found['regions_per_second']:,.0f} regions/s"
        yield f"a step at {result.facts['size']} size: {arm}", f"{speed}, {used}, {found['gib']:.1f} GiB"


def of_predict(result: Result) -> Iterator[tuple[str, str]]:
    for task, found in result.facts["tasks"].items():
        yield (
            f"{task}, {found['questions']} questions about one picture",
            f"{found['speedup_vs_one_call_each']:.1f}x as fast as stock `generate` calls, "
            f"{found['speedup_vs_one_batch']:.1f}x as one call with all",
        )


def of_peers(result: Result) -> Iterator[tuple[str, str]]:
    for arm, found in result.facts["arms"].items():
        if "left_out" in found:
            yield f"training against {arm}", f"left out: {found['left_out']}"
        elif arm != "granvit":
            yield f"training against {arm}", f"{found['speedup']:.2f}x its {found['regions_per_second']:,.0f} regions/s"


def of_profile(result: Result) -> Iterator[tuple[str, str]]:
    for name, share in result.facts["kernels"][:5]:
        yield f"of a stage-1 step's kernel time: `{name[:60]}`", f"{share:.0%}"


ROWS: dict[str, Callable[[Result], Iterator[tuple[str, str]]]] = {
    "tests": of_tests,
    "packing": of_packing,
    "step": of_step,
    "predict": of_predict,
    "peers": of_peers,
    "profile": of_profile,
}


def table(results: dict[str, Result], device: str) -> str:
    """All pieces as Markdown; one without a measurement has its reason."""
    lines = [
        f"`python benchmarks/first_hour.py` on {device}, commit {commit()}:",
        "",
        "| what | measured |",
        "|---|---|",
    ]
    for piece in PIECES:
        result = results[piece.name]
        if result.ended == "done":
            rows = list(ROWS[piece.name.partition(",")[0]](result))
        else:
            said = (result.output.strip().splitlines() or ["without a word"])[-1]
            rows = [(piece.name, f"{result.ended}: {said[:200]}")]
        lines += [f"| {what} | {measured.replace('|', '/')} |" for what, measured in rows]
    return "\n".join(lines)


def written(page: str, made: str) -> str:
    """The page with a table between its marks."""
    before, mark, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise SystemExit(f"{PAGE}: the marks {BEGIN} and {END} are gone, so there is no place for the table")
    return f"{before}{BEGIN}\n{made}\n{END}{after}"


# --- the profile -----------------------------------------------------------------------------------------------------


def profile(size: Any, out: Path) -> None:
    """Where a stage-1 step's time goes, kernel by kernel: a table, and a trace for chrome://tracing or Perfetto."""
    import torch
    from sizes import autocast, make_model, make_samples
    from torch.profiler import ProfilerActivity

    from granvit.corpus.synthetic.scenes import sample_texts
    from granvit.model.packing import pack
    from granvit.train.fake import plain_step
    from granvit.train.optimizer import make_optimizer
    from granvit.train.stages.pretrain import Pretrain

    device = "cpu" if size == "nano" else "cuda"
    texts = sample_texts(200)
    model = make_model(size, texts, device)
    stage = Pretrain(model).to(device).train()
    samples = make_samples(model, texts, 4, 8, crops=2, crop_size=64 if size == "nano" else model.canvas)
    dialog = model.dialog
    batch = pack(samples, dialog.prefix_ids, dialog.image_token, dialog.pad_token).to(device)
    optimizer = make_optimizer(stage, 1e-5, 0.0, (0.9, 0.999), {})
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    for _ in range(2):
        plain_step(stage, batch, optimizer, autocast(device))
    with torch.profiler.profile(activities=activities) as seen:
        plain_step(stage, batch, optimizer, autocast(device))
        if device == "cuda":
            torch.cuda.synchronize()
    time_of = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    averages = seen.key_averages()
    seen.export_chrome_trace(str(out / "trace.json"))
    print(averages.table(sort_by=time_of, row_limit=_KERNELS))
    total = sum(getattr(each, time_of) for each in averages)
    slowest = sorted(averages, key=lambda each: -getattr(each, time_of))[:_KERNELS]
    print(json.dumps({"kernels": [(each.key, round(getattr(each, time_of) / total, 4)) for each in slowest]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "first_hour", help="a folder for the results")
    parser.add_argument("--minutes", type=float, default=8.0, help="a piece takes at most so long, and a call too")
    parser.add_argument("--all", action="store_true", help="a call takes as long as all pieces do")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, at reduced size")
    parser.add_argument("--profile", choices=("nano", "paper"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out = options.out.resolve()
    if options.profile:
        profile(options.profile, options.out)
        return
    device = device_name(options.rehearse)
    results = work(options, device)
    if len(results) < len(PIECES):
        return
    page = options.out / PAGE.name if options.rehearse else PAGE
    page.write_text(written(PAGE.read_text(), table(results, device)))
    print(f"all {len(PIECES)} pieces: the table is in {page}")


if __name__ == "__main__":
    main()
