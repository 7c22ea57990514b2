"""The training loop (on Accelerate): one process, or one of many under `torchrun`.

It knows of a stage only that it turns a batch into named sums. An optimizer step is exactly the step of one big
batch, however that batch is cut into micro-batches and ranks: the micro-batches are fetched first, so that every
sum is divided by the count of the whole.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    ProjectConfiguration,
    gather_object,
    set_seed,
)
from torch import Tensor, nn

from granvit.draw import save_picture
from granvit.errors import GranvitError
from granvit.model.packing import Batch
from granvit.train import checkpoint, rng
from granvit.train.config import LoopConfig, on_cpu
from granvit.train.debug import nonfinite
from granvit.train.debug.nonfinite import NonFiniteLoss
from granvit.train.feed import Feed
from granvit.train.history import Curves, History, Speed
from granvit.train.identity import cut_of, decisive
from granvit.train.optimizer import make_optimizer, make_schedule
from granvit.train.parallel import clip_gradients, shard, whole_tensors
from granvit.train.signals import StopSignals
from granvit.train.stages.base import Stage
from granvit.train.timing import Timing, peak_flops, section
from granvit.train.validation import Validation

__all__ = ["LoopConfig", "NonFiniteLoss", "TrainResult", "train"]


@dataclass
class TrainResult:
    """How a run went.

    Attributes:
        history: metric -> (step, value) pairs of the whole run, earlier parts included.
        seconds, data_wait, regions_per_second: of this call, validation left out; `data_wait` is the share of the
            time spent waiting for batches.
        left_out: what of the data could not be used in the whole run, by reason (`Feed.rejected` of all ranks).
    """

    history: Curves
    seconds: float
    data_wait: float
    regions_per_second: float
    left_out: dict[str, int] = field(default_factory=dict)


def train(
    stage: Stage,
    feed: Feed,
    config: LoopConfig,
    run_dir: Path,
    *,
    resume: bool = True,
    device: Literal["auto", "cpu"] = "auto",
    recipe: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    validation: Validation | None = None,
) -> TrainResult:
    """Trains a stage for `config.steps` steps, or for those that remain after the newest checkpoint in `run_dir`.

    A resumed run takes the very steps that the uninterrupted one would have taken. SIGTERM and SIGINT finish the
    step, save, and leave through `SystemExit`. Writes history.jsonl, checkpoints/, quarantine.jsonl (rejected
    records), speed.jsonl, first_batch.png and the trackers' files. `recipe` holds JSON-able facts that must be the
    same when the run is resumed, `provenance` those by which a step that failed finds its settings and data again.
    `validation` scores the model where it says it is due; no step changes by it.

    Raises:
        NonFiniteLoss: after writing what takes the step again to `run_dir/nonfinite`.
        CheckpointError: the newest checkpoint is damaged, or of another recipe.
        FeedError: a sample could not be read or prepared.
        GranvitError: `resume` is off and `run_dir` holds a run; a tracker is unknown or not installed.
        ValueError: feed and config do not fit together, or nothing trains.
    """
    return _Run(stage, feed, config, Path(run_dir), device, recipe or {}, provenance or {}, validation).train(resume)


class _Run:
    """One call of `train`: everything that lives as long as the run."""

    def __init__(
        self,
        stage: Stage,
        feed: Feed,
        config: LoopConfig,
        run_dir: Path,
        device: str,
        recipe: Mapping[str, Any],
        provenance: Mapping[str, Any],
        validation: Validation | None,
    ):
        config.check(stage.name)
        self.accelerator = Accelerator(
            cpu=on_cpu(device),
            mixed_precision="no",  # autocast is entered below: Accelerate would patch the stage's forward
            log_with=list(config.trackers) or None,
            project_config=ProjectConfiguration(str(run_dir), logging_dir=str(run_dir / "tensorboard")),
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
        )
        check_feed(self.accelerator, feed, config)
        check_saved(stage)
        self.stage, self.feed, self.config, self.run_dir, self.provenance = stage, feed, config, run_dir, provenance
        set_seed(config.seed, device_specific=True)
        self.device = self.accelerator.device
        bf16 = config.precision == "bf16" or (config.precision == "auto" and _cuda_bf16(self.device))
        self.sharded = config.parallel == "fsdp" and self.accelerator.num_processes > 1
        if self.sharded and validation is not None and validation.every:
            raise GranvitError(
                "a model in shards (loop.parallel fsdp) answers no questions while it trains: choose ddp"
            )
        self.validation = validation if self.accelerator.is_main_process and not self.sharded else None
        self.validating = 0.0  # seconds
        if self.sharded:
            shard(stage, self.device, bf16)  # before there is an optimizer, which keeps its state for shards alone
        stage.to(self.device).train()
        multipliers = config.optimizer_groups
        self.optimizer = make_optimizer(
            stage, config.lr, config.weight_decay, config.betas, multipliers, config.optimizer
        )
        self.scheduler = make_schedule(self.optimizer, config.steps, config.warmup_steps, config.min_lr_ratio)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        # Of a sharded stage too: its weights are in bfloat16 already, but norms are to be computed in float32.
        self.autocast = torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext()
        self.recipe = {
            **decisive(config),
            **cut_of(config, self.accelerator.num_processes),
            "precision": "bf16" if bf16 else "fp32",
            "stage": stage.name,
            **recipe,
        }
        self.timing = Timing.on(self.device) if config.timing else None
        peak = peak_flops(self.device) if bf16 else None
        self.history = History(run_dir, config.steps, config.log_every, self.accelerator, self.timing, peak)
        self.wrapped: nn.Module = stage
        self.step = 0

    def train(self, resume: bool) -> TrainResult:
        self._begin(resume)
        start, total = time.perf_counter(), Speed()
        stop = 0
        try:
            with StopSignals() as signals, self.timing.running() if self.timing else nullcontext():
                if self.step:  # killed between a step and its scores
                    self._validate()
                while self.step < self.config.steps and not stop:
                    began, position = time.perf_counter(), self.feed.state()
                    with section("data"):
                        batches = [next(self.feed) for _ in range(self.config.accumulate)]
                    wait = time.perf_counter() - began
                    if self.step == 0 and self.config.first_batch:
                        self._show(batches[0])
                        began = time.perf_counter() - wait  # the drawing is no part of the step
                    metrics, counts, stop = self._take_step(batches, position, signals)
                    taken = self._speed(batches, counts, time.perf_counter() - began, wait)
                    self.history.add(self.step, metrics, taken)
                    total.add(taken)
                    if not stop:
                        self._validate()
                    if stop or self.step == self.config.steps or self._due():
                        self._save()
        finally:
            self.history.close()
        if stop:
            if self.accelerator.is_main_process:
                way = "the same command goes on from there"
                message = f"stopped after step {self.step} of {self.config.steps}, saved in {self.run_dir}; {way}"
                print(message, file=sys.stderr)
            raise SystemExit(128 + stop)
        seconds = max(time.perf_counter() - start - self.validating, 1e-9)
        left_out: Counter[str] = Counter()
        for rejected in gather_object([dict(self.feed.rejected)]):
            left_out.update(rejected)
        speed = total.waited / seconds, total.regions / seconds
        return TrainResult(self.history.curves, seconds, *speed, dict(left_out))

    def _show(self, batch: Batch) -> None:
        """Draws the run's first batch: a wrong box is seen there before a day of training has learned it."""
        with section("drawing"):
            picture = self.stage.picture(batch) if self.accelerator.is_main_process else None
            if picture is not None:
                save_picture(picture, self.run_dir / "first_batch.png")
                self.history.show("first_batch", picture)

    def _validate(self) -> None:
        """Scores the model where that is due. Afterwards all is as before: weights, modes, random generators."""
        if self.validation is None or not self.validation.due(self.step, self.config.steps):
            return
        began, random_state = time.perf_counter(), rng.snapshot()
        self.stage.eval()
        try:
            # What was compiled is for the shapes of training.
            eager = torch.compiler.set_stance("force_eager") if self.config.compile else nullcontext()
            with section("validation"), eager:
                found = self.validation(self.stage, self.step, self.step == self.config.steps)
        finally:
            self.stage.train()
            rng.restore(rng.encode(random_state))
        if found is not None:
            self.history.validated(self.step, found)
        self.validating += time.perf_counter() - began

    def _speed(self, batches: list[Batch], counts: dict[str, int], seconds: float, waited: float) -> Speed:
        counted = [self.stage.flops(batch) for batch in batches]
        flops = math.fsum(n for n in counted if n is not None) if None not in counted else None
        return Speed(counts["branches"], counts["images"], counts["tokens"], flops, seconds, waited)

    def _begin(self, resume: bool) -> None:
        """Starts anew, or where the newest checkpoint ends."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.feed.quarantine = self.feed.quarantine or self.run_dir / _ranked("quarantine", self.feed.rank)
        newest = checkpoint.latest(self.run_dir)
        if newest is not None and not resume:
            raise GranvitError(f"{newest}: this folder holds a run; resume it or choose another folder")
        kept: dict[str, Any] = {}
        if newest is not None:
            progress = checkpoint.load(newest, self.stage, self.optimizer, self.scheduler, self.recipe)
            self.step, kept = progress.step, progress.history
            try:
                self.feed.restore_from([rank["feed"] for rank in progress.ranks])
            except ValueError as error:
                raise checkpoint.CheckpointError(f"{newest / checkpoint.STATE}: feed: {error}") from error
        self.history.open(self.step, kept)
        if self.validation is not None:
            self.validation.begin(self.run_dir.name, self.step)
        self.history.open_trackers(self.config.trackers, _flat(self.recipe), self.step)
        self.wrapped = self.stage if self.sharded else self.accelerator.prepare(self.stage)
        if newest is not None:
            if len(progress.ranks) == self.feed.world_size:
                rng.restore(progress.ranks[self.feed.rank]["rng"])
            else:
                rng.start(self.config.seed, self.step, self.feed.world_size, self.feed.rank)

    def _take_step(
        self, batches: list[Batch], position: dict[str, Any], signals: StopSignals
    ) -> tuple[dict[str, float], dict[str, int], int]:
        """One optimizer step on the micro-batches, which begin at `position` in the feed.

        Returns its metrics, the counts over all ranks, and the signal to stop.
        """
        random_state = rng.snapshot()
        counts = self._global_counts(batches)
        step = Step(self.wrapped, self.device, self.autocast, counts)
        for batch in batches[:-1]:
            # Gradients held back until the last micro-batch would be whole ones: sharded, each is sent off at once.
            with nullcontext() if self.sharded else self.accelerator.no_sync(self.wrapped):
                step.add(batch, self._backward)
        step.add(batches[-1], self._backward)
        with section("optimizer"):
            norm = clip_gradients(self.parameters, self.config.clip_norm or math.inf)
            metrics, stop = self._measure(step, norm, signals)
            if not all(math.isfinite(value) for value in metrics.values()):
                self._stop_at_nonfinite(batches, position, metrics, random_state)
            metrics["lr"] = float(self.scheduler.get_last_lr()[0])
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
            self.stage.after_step()
        self.step += 1
        return metrics, counts, stop

    def _global_counts(self, batches: list[Batch]) -> dict[str, int]:
        """What `Batch.counts` gives for all micro-batches of all ranks together."""
        counts = counts_of(batches)
        if self.accelerator.num_processes == 1:
            return counts
        summed = self.accelerator.reduce(torch.tensor(list(counts.values()), device=self.device), "sum")
        return dict(zip(counts, summed.tolist(), strict=True))

    def _backward(self, loss: Tensor) -> None:
        # DistributedDataParallel and FSDP average the gradients over the ranks, and the shares want their sum.
        self.accelerator.backward(loss * self.accelerator.num_processes)

    def _measure(self, step: Step, norm: Tensor, signals: StopSignals) -> tuple[dict[str, float], int]:
        """The step's metrics over all ranks, and the signal to stop; the one point where the device is waited for."""
        means = step.means()
        vector = torch.cat([means, means.new_tensor([signals.received])])
        if self.accelerator.num_processes > 1:
            vector = self.accelerator.reduce(vector, "sum")
        *values, stop, norm_value = torch.cat([vector, norm.detach().float()[None]]).tolist()
        signal_number = signals.received or (signal.SIGTERM if stop else 0)
        return step.metrics(values, norm_value), signal_number if stop else 0

    def _due(self) -> bool:
        return bool(self.config.save_every) and self.step % self.config.save_every == 0

    def _save(self) -> None:
        ranks = gather_object([{"rng": rng.encode(rng.snapshot()), "feed": self.feed.state()}])
        self.history.sync()
        if self.sharded or self.accelerator.is_main_process:
            progress = checkpoint.Progress(self.step, ranks, self.history.state())
            keep = self.config.save_keep
            checkpoint.save(self.run_dir, progress, self.stage, self.optimizer, self.scheduler, self.recipe, keep)
        self.accelerator.wait_for_everyone()

    def _stop_at_nonfinite(
        self, batches: list[Batch], position: dict[str, Any], metrics: dict[str, float], random_state: rng.Raw
    ) -> None:
        """Leaves what is needed to take the step again, and raises."""
        mine = {"ids": [batch.ids for batch in batches], "feed": position, "rng": rng.encode(random_state)}
        ranks = gather_object([mine])
        tensors = whole_tensors(self.stage.model.state_dict()), whole_tensors(self.stage.extra_state())
        if self.accelerator.is_main_process:
            facts = {
                "step": self.step + 1,
                "metrics": {name: repr(value) for name, value in metrics.items()},
                "precision": self.recipe["precision"],
                "device": self.device.type,
                "provenance": self.provenance,
            }
            nonfinite.save(self.run_dir, self.stage, *tensors, facts, ranks)
        self.accelerator.wait_for_everyone()
        ids = [id for rank in ranks for micro in rank["ids"] for id in micro]
        raise NonFiniteLoss.at(self.step + 1, metrics, ids, self.run_dir)


def _cuda_bf16(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def _ranked(name: str, rank: int) -> str:
    """The rank's own file: appending to one file from several machines loses lines."""
    return f"{name}.jsonl" if rank == 0 else f"{name}.{rank}.jsonl"


def _flat(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What trackers can show of a recipe."""
    return {k: v if isinstance(v, int | float | str | bool) else json.dumps(v) for k, v in recipe.items()}


def counts_of(batches: Sequence[Batch]) -> dict[str, int]:
    """What `Batch.counts` gives for several micro-batches together."""
    counted = [batch.counts for batch in batches]
    return {name: sum(counts[name] for counts in counted) for name in counted[0]}


class Step:
    """The micro-batches of a step, one after the other, every sum divided by the count of the whole step."""

    def __init__(
        self,
        stage: nn.Module,
        device: torch.device,
        autocast: AbstractContextManager[object],
        counts: Mapping[str, int],
    ):
        """`stage` may be wrapped, for several ranks; `counts` are those of all micro-batches of all ranks."""
        self.stage, self.device, self.autocast, self.counts = stage, device, autocast, counts
        self.weights: dict[str, float] = {}
        self._shares: list[Tensor] = []

    def add(self, batch: Batch, backward: Callable[[Tensor], object]) -> None:
        """Takes a micro-batch forward, and its share of the step's loss backward."""
        with section("data"):
            batch = batch.to(self.device)
        with self.autocast:
            terms = self.stage(batch)
        shares = {name: term.total.float() / max(1, self.counts[term.count]) for name, term in terms.items()}
        if self.weights and shares.keys() != self.weights.keys():
            raise ValueError(f"the stage gave the terms {list(shares)} after {list(self.weights)}")
        self.weights.update((name, term.weight) for name, term in terms.items())
        loss = torch.stack([self.weights[name] * share for name, share in shares.items()]).sum()
        with section("backward"):
            backward(loss)
        self._shares.append(torch.stack([shares[name].detach() for name in self.weights]))

    def means(self) -> Tensor:
        """This process's share of each term's mean, in the order of `weights`."""
        return torch.stack(self._shares).sum(0)

    def metrics(self, means: Sequence[float], norm: float) -> dict[str, float]:
        """The loss, its terms and the gradients' norm, by name; `means` are those of all processes together."""
        terms = dict(zip(self.weights, means, strict=True))
        loss = math.fsum(self.weights[name] * value for name, value in terms.items())
        return {"loss": loss, **terms, "grad_norm": norm}


def check_feed(accelerator: Accelerator, feed: Feed, config: LoopConfig) -> None:
    """Refuses what the loop can't do together, and a feed that is made for other ranks or batches.

    Raises:
        ValueError: one of these.
    """
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        raise GranvitError(
            f"the loop shards by itself (loop.parallel) and does not run on {accelerator.distributed_type}"
        )
    if (config.parallel, config.optimizer) == ("fsdp", "muon"):
        raise GranvitError(
            "loop.optimizer muon needs whole matrices, which loop.parallel fsdp spreads: choose ddp or adamw"
        )
    there, here = (feed.rank, feed.world_size), (accelerator.process_index, accelerator.num_processes)
    if there != here:
        raise ValueError(f"the feed is made for rank {there[0]} of {there[1]}, this is rank {here[0]} of {here[1]}")
    if feed.batch_size != config.batch_size:
        raise ValueError(f"the feed makes batches of {feed.batch_size}, the config asks for {config.batch_size}")


def check_saved(stage: Stage) -> None:
    """Refuses trainable weights that no checkpoint would hold.

    Raises:
        ValueError: there are some; the message names one.
    """
    saved = {t.data_ptr() for t in (*stage.model.state_dict().values(), *stage.extra_state().values())}
    for name, parameter in stage.named_parameters():
        if parameter.requires_grad and parameter.data_ptr() not in saved:
            raise ValueError(f"{name} trains, but is neither part of stage.model nor of stage.extra_state()")
