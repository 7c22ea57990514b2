"""What a run reports: history.jsonl, trackers and the progress bar."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from accelerate import Accelerator
from PIL import Image
from tqdm.auto import tqdm

from granvit.files import sync
from granvit.train.checkpoint import of_another_run
from granvit.train.timing import SECTIONS, Timing
from granvit.train.validation import Validated

Curves = dict[str, list[tuple[int, float]]]


class History:
    """One line per `log_every` steps: the mean of each metric over these steps. Continuous across resumes.

    The file holds only what the seed determines; the speed goes to speed.jsonl, the trackers and the progress bar.

    Attributes:
        curves: metric -> (step, value) pairs; on the first rank those of the run's earlier parts included.
        flops: the arithmetic of this rank's steps, earlier parts included; None where not all of it was counted.
    """

    def __init__(
        self,
        run_dir: Path,
        steps: int,
        log_every: int,
        accelerator: Accelerator,
        timing: Timing | None = None,
        peak: float | None = None,
    ):
        """`timing` measures the steps' sections; `peak` is what the device can do, in FLOP/s, for the MFU."""
        self.path = run_dir / "history.jsonl"
        self.curves: Curves = {}
        self.flops: float | None = 0.0
        self._steps, self._log_every, self._accelerator = steps, log_every, accelerator
        self._sums: dict[str, float] = defaultdict(float)
        self._summed = 0
        self._lines = 0
        self._file: IO[str] | None = None
        self._bar: Any = None
        self._timing, self._peak = timing, peak
        self._speed = Speed()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: how many lines there are, the sums of the one to come, and the arithmetic so far."""
        return {"lines": self._lines, "sums": dict(self._sums), "summed": self._summed, "flops": self.flops}

    def open(self, step: int, state: dict[str, Any]) -> None:
        """Goes on after `step`: later lines, of steps that will be taken again, are dropped.

        Raises:
            CheckpointError: the file lacks lines that the checkpoint counted, or one is not what was written.
        """
        main = self._accelerator.is_main_process
        lines = self.path.read_bytes().splitlines() if main and self.path.exists() else []
        self._lines = state.get("lines", 0)
        if main and len(lines) < self._lines:
            raise of_another_run(f"{self.path}: has {len(lines)} lines, the checkpoint counted {self._lines}")
        for number, line in enumerate(lines[: self._lines], start=1):
            self._collect(self._row(number, line))
        self._sums.update(state.get("sums", {}))
        self._summed = state.get("summed", 0)
        self.flops = state.get("flops") if state else 0.0
        if main:
            self._file = self.path.open("a")
            # Cut, not rewritten: a kill at this point must not cost the lines that stay.
            self._file.truncate(sum(len(line) + 1 for line in lines[: self._lines]))
        name = self.path.parent.name
        self._bar = tqdm(total=self._steps, initial=step, desc=name, disable=not main, unit="step", leave=False)

    def _row(self, number: int, line: bytes) -> dict[str, float]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise of_another_run(f"{self.path}: line {number}: {error}") from error
        if not isinstance(row, dict) or "step" not in row or not all(isinstance(v, int | float) for v in row.values()):
            raise of_another_run(f"{self.path}: line {number} is not what was written")
        return row

    def open_trackers(self, trackers: tuple[str, ...], config: dict[str, Any], step: int) -> None:
        """`step` is the last one done: TensorBoard drops what an earlier part logged after it."""
        if not trackers:
            return
        run_dir = self.path.parent.resolve()
        wandb = {
            "name": run_dir.name,
            "dir": str(run_dir),
            "id": hashlib.sha256(str(run_dir).encode()).hexdigest()[:16],
            "resume": "allow",
            "config": config,
        }
        options = {"tensorboard": {"purge_step": step + 1}, "wandb": wandb}
        self._accelerator.init_trackers("granvit", init_kwargs={k: v for k, v in options.items() if k in trackers})

    def add(self, step: int, metrics: dict[str, float], taken: Speed) -> None:
        """One optimizer step: its metrics, and what was done in which time."""
        self._speed.add(taken)
        self.flops = None if self.flops is None or taken.flops is None else self.flops + taken.flops
        self._summed += 1
        for name, value in metrics.items():
            self._sums[name] += value
        self._bar.update()
        if step % self._log_every and step != self._steps:
            return
        row = {"step": step, **{name: total / self._summed for name, total in self._sums.items()}}
        self._sums.clear()
        self._summed = 0
        self._lines += 1
        self._collect(row)
        speed, taken_seconds = self._speed.rates(self._peak), self._speed.seconds
        self._speed = Speed()
        seconds = {} if self._timing is None else self._timing.read()
        known = {name: seconds[name] for name in SECTIONS if name in seconds}
        shares = {name: share / max(sum(known.values()), 1e-9) for name, share in known.items()}
        if self._file is not None:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
            with self.path.with_name("speed.jsonl").open("a") as file:
                line = {"step": step, **speed, "seconds": taken_seconds, "time": shares}
                file.write(json.dumps(line) + "\n")
        timed = {f"time/{name}": share for name, share in shares.items()}
        self._accelerator.log({k: v for k, v in {**row, **speed, **timed}.items() if k != "step"}, step=step)
        shown = {k: f"{v:.4g}" for k, v in row.items() if k not in ("step", "lr")}
        shown["regions/s"] = f"{speed['regions_per_second']:.3g}"
        self._bar.set_postfix({**shown, "data_wait": f"{speed['data_wait']:.0%}"}, refresh=False)

    def validated(self, step: int, found: Validated) -> None:
        """Gives held-out scores and pictures to the trackers."""
        self._accelerator.log({f"held_out/{name}": value for name, value in found.values.items()}, step=step)
        if found.picture is not None:
            self.show("held_out", found.picture, step)

    def show(self, name: str, picture: Image.Image, step: int = 0) -> None:
        """Gives a picture to the trackers."""
        pixels = np.asarray(picture.convert("RGB"))
        for tracker in self._accelerator.trackers:
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({name: pixels[None]}, step=step, **options)

    def _collect(self, row: dict[str, float]) -> None:
        for name, value in row.items():
            if name != "step":
                self.curves.setdefault(name, []).append((int(row["step"]), value))

    def sync(self) -> None:
        """Returns when every line is on the disk, so that no checkpoint counts a line that is not."""
        if self._file is not None:
            sync(self.path)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._bar is not None:
            self._bar.close()
        for tracker in self._accelerator.trackers:
            tracker.finish()


@dataclass
class Speed:
    """What was done in which time.

    Attributes:
        regions, images, tokens: of all ranks. flops: of this rank; None where they are not counted.
        seconds: how long it took. waited: how long of that for data.
    """

    regions: int = 0
    images: int = 0
    tokens: int = 0
    flops: float | None = 0.0
    seconds: float = 0.0
    waited: float = 0.0

    def add(self, other: Speed) -> None:
        self.regions += other.regions
        self.images += other.images
        self.tokens += other.tokens
        self.flops = None if self.flops is None or other.flops is None else self.flops + other.flops
        self.seconds += other.seconds
        self.waited += other.waited

    def rates(self, peak: float | None) -> dict[str, float]:
        """Per second; `data_wait` is the share of the time spent waiting for data, `mfu` that of the peak reached."""
        seconds = max(self.seconds, 1e-9)
        rates = {f"{name}_per_second": getattr(self, name) / seconds for name in ("regions", "images", "tokens")}
        rates["data_wait"] = self.waited / seconds
        if self.flops is not None:
            rates["tflops"] = self.flops / seconds / 1e12
            if peak is not None:
                rates["mfu"] = self.flops / seconds / peak
        return rates
