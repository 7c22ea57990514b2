"""`report.html` of a run, out of what the run left in its folder: of `granvit train` and of the demo alike."""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from granvit.errors import GranvitError
from granvit.evaluate.held_out import HeldOutScores
from granvit.evaluate.report import duration, title_of, write_report
from granvit.files import read_regular
from granvit.loading.run_folder import CHECKPOINT, RECIPE, REPORT
from granvit.model.forward import image_token_norm
from granvit.model.region_model import RegionModel
from granvit.train.build import drawn_canvases
from granvit.train.recipes.base import Recipe
from granvit.train.timing import SECTIONS

_LARGEST_FILE = 1 << 30
# Of so many drawn pictures the size of image tokens is measured.
_NORM_PICTURES = 4
# Of a history what is no measure of how well the model learns.
_NO_CURVES = ("step", "lr", "grad_norm")


def write_run_report(
    out: Path,
    recipe: Recipe,
    model: RegionModel,
    scores: HeldOutScores | None,
    *,
    title: str,
    summary: str,
    facts: Mapping[str, str],
    commands: Mapping[str, Sequence[str]],
) -> Path:
    """Writes the report of a run whose stages are done, or of those that are; returns its path.

    Args:
        model: of which the parameters are counted, and the image tokens measured.
        scores: those of held-out pictures, where there are any.
        facts: what of the run its folder does not tell, such as its corpus.
        commands: how to go on from here, by what for.
    """
    folders = [stage.folder for stage in recipe.stages]
    histories = {folder: _rows(out / folder / "history.jsonl") for folder in folders}
    speed = [row for folder in folders if (row := _speed(out / folder, folder, scores))]
    write_report(
        out / REPORT,
        title=title,
        summary=summary,
        metrics={} if scores is None else scores.metrics,
        curves={
            folder: {**_curves(rows), **({} if scores is None else scores.curves(folder))}
            for folder, rows in histories.items()
            if rows
        },
        examples=[] if scores is None else scores.examples(),
        facts={
            **facts,
            "Model": _sizes(model),
            "Image tokens": _image_tokens(model),
            "Recipe": f"{recipe.name}: " + ", ".join(_steps(histories[stage.folder], stage) for stage in recipe.stages),
            "Machine": machine(),
            "Memory": _memory(),
            "Where the time goes": "; ".join(filter(None, (_sections(out / folder, folder) for folder in folders))),
            **({} if scores is None or not scores.best() else {"Best so far": "; ".join(scores.best())}),
        },
        commands=commands,
        speed=[{name: row.get(name, "–") for name in {**speed[0], **speed[-1]}} for row in speed],
        first_batches={folder: picture for folder in folders if (picture := _first_batch(out / folder)) is not None},
        recipe=_recipe(out),
    )
    return out / REPORT


def _rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON objects; none where there is no such file.

    Raises:
        GranvitError: a line is none.
    """
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(read_regular(path, _LARGEST_FILE).splitlines(), start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise GranvitError(f"{path}: line {number}: {error}") from error
        if not isinstance(row, dict):
            raise GranvitError(f"{path}: line {number} is not what was written")
        rows.append(row)
    return rows


def _curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    names = [name for name in rows[-1] if name not in _NO_CURVES]
    return {name: [(row["step"], row[name]) for row in rows if name in row] for name in names}


def _steps(rows: Sequence[Mapping[str, Any]], stage: Any) -> str:
    return f"{stage.folder} {rows[-1]['step'] if rows else stage.loop.steps} steps"


def _speed(folder: Path, name: str, scores: HeldOutScores | None) -> dict[str, str]:
    """A stage's row of the table of times; lines without seconds are of a run that did not write them."""
    rows = [row for row in _rows(folder / "speed.jsonl") if row.get("seconds")]
    if not rows:
        return {}
    seconds = sum(row["seconds"] for row in rows)

    def mean(key: str) -> float:
        return sum(row.get(key, 0.0) * row["seconds"] for row in rows) / seconds

    asked = sum(one.seconds for one in scores.scored if one.stage == name) if scores is not None else 0.0
    return {
        "stage": title_of(name),
        "training": duration(seconds),
        "held-out scores": duration(asked) if asked else "–",
        "images/s": f"{mean('images_per_second'):.3g}",
        "regions/s": f"{mean('regions_per_second'):.3g}",
        "waiting for data": f"{mean('data_wait'):.0%}",
        **({"TFLOP/s": f"{mean('tflops'):.2g}"} if "tflops" in rows[-1] else {}),
        **({"of the peak (MFU)": f"{mean('mfu'):.0%}"} if "mfu" in rows[-1] else {}),
    }


def _sections(folder: Path, name: str) -> str:
    """The sections of a stage's steps that take longest."""
    rows = [row for row in _rows(folder / "speed.jsonl") if row.get("seconds")]
    seconds = sum(row["seconds"] for row in rows)
    shares = {part: sum(row["time"].get(part, 0.0) * row["seconds"] for row in rows) for part in SECTIONS}
    longest = sorted((part for part in shares if shares[part]), key=lambda part: -shares[part])[:5]
    return (
        f"{title_of(name)}: " + ", ".join(f"{part} {shares[part] / seconds:.0%}" for part in longest) if longest else ""
    )


def _first_batch(folder: Path) -> Image.Image | None:
    try:
        with Image.open(folder / "first_batch.png") as picture:
            return picture.convert("RGB")
    except OSError:
        return None  # none was drawn


def _recipe(out: Path) -> str:
    path = out / RECIPE
    return read_regular(path, _LARGEST_FILE).decode(errors="replace") if path.exists() else ""


def _sizes(model: RegionModel) -> str:
    parts = {"encoder": model.llava.model.vision_tower, "language model": model.llava.model.language_model}
    counts = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in parts.items()}
    return ", ".join(f"{name} {count:,.1f} M parameters" for name, count in counts.items())


@torch.no_grad()
def _image_tokens(model: RegionModel) -> str:
    features = model.features(drawn_canvases(model.canvas, _NORM_PICTURES).to(model.device))
    return f"{image_token_norm(model.llava, features):.1f} times as large as words (RMS of the embeddings)"


def machine() -> str:
    """The processor, its cores, the GPU where there is one, and the versions that matter."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpu = f", {torch.cuda.device_count()} x {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{named or platform.processor() or platform.machine()}, {cores} cores{gpu}, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )


def _memory() -> str:
    unit = 1 if sys.platform == "darwin" else 1024
    resident = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB at most, of the first process"
    if torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB of the GPU at most; {resident}"
    return resident


def ask_commands(out: Path) -> dict[str, list[str]]:
    """How to go on from a run's checkpoint, by what for."""
    model = out / CHECKPOINT
    return {
        "Ask it about a picture": [
            f"granvit describe photo.jpg --box 40,30,200,180 --model {model} --draw described.png",
            f'granvit locate photo.jpg "what to find" --model {model} --draw located.png',
            f"granvit caption photo.jpg --model {model}",
        ],
        "Draw boxes with the mouse, on a page (it needs the extra app; in a checkout: make app RUN=" + str(out) + ")": [
            f"granvit app {model}"
        ],
        "Take it elsewhere": [f"granvit export {out} exported --format llava"],
    }
