"""Whether the memory that `granvit plan` tells is what torch's own trackers count.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/trackers.py [--quick]

Both go through a stage's step on fake tensors on the CPU, in bfloat16 at the paper's widths and float32 at nano size.
The plan counts one forward and backward pass and adds the optimizer's moments; the trackers see whole steps: clipping,
AdamW and the teacher's average too. On one rank that is `MemTracker`; on more `FSDPMemTracker`, over a group whose
other ranks are not there. The second step counts: in the first one DTensor works out the shapes of what the optimizer
does on whole tensors, which nobody allocates and the tracker counts. DistributedDataParallel takes no fake tensors:
there `MemTracker` sees real steps, of one rank over gloo, which has the buckets that each of many has.

`MemTracker` is used without its hooks on modules: they refuse weights that do not train, and make every operation look
at every module, which takes no end where there are a thousand. Its total is the same.
"""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from sizes import Size, machine, make_model, make_samples
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from granvit.model.forward import recomputed
from granvit.model.packing import Batch, pack
from granvit.train.fake import backward, device_of, fake_step, faked, grouped, tensors_of
from granvit.train.optimizer import make_optimizer
from granvit.train.parallel import clip_gradients, shard
from granvit.train.plan import peaks
from granvit.train.recipes.paper import adaptation, pretraining
from granvit.train.stages.adapt import Adapt
from granvit.train.stages.base import AnsweringStage
from granvit.train.stages.config import StageConfig
from granvit.train.stages.pretrain import Pretrain

TEXTS = ["a small red star", "a large blue ring"] * 20


@dataclass(frozen=True)
class Case:
    """A stage as one of `ranks` trains it; `blocks` is how many of each model's are left, 0 all."""

    size: Size
    stage: int
    ranks: int
    recomputed: bool = False
    accumulate: int = 1
    parallel: Literal["fsdp", "ddp"] = "fsdp"
    blocks: int = 0
    images: int = 4

    @property
    def config(self) -> StageConfig:
        config: StageConfig = (pretraining, adaptation)[self.stage - 1]()
        loop = replace(
            config.loop,
            accumulate=self.accumulate,
            parallel=self.parallel,
            gradient_checkpointing=("encoder", "language") if self.recomputed else (),
            precision="fp32" if self.size == "nano" else "bf16",
        )
        return replace(config, loop=loop)

    def make(self) -> tuple[AnsweringStage, Batch]:
        model = make_model(self.size, TEXTS, "cpu" if self.size == "nano" else "meta")
        crop = model.canvas if self.size == "paper" else 64
        crops = 2 if self.stage == 1 else 0
        samples = make_samples(model, TEXTS, self.images, 6, self.stage == 2, crops, crop)
        batch = pack(samples, model.dialog.prefix_ids, model.dialog.image_token, model.dialog.pad_token)
        stage = (Pretrain, Adapt)[self.stage - 1](model).train()
        if self.blocks:
            towers = [stage.tower, *([stage.teacher.tower] if isinstance(stage, Pretrain) and stage.teacher else [])]
            for body in (*(getattr(t, "vision_model", t).encoder for t in towers), stage.model.model.language_model):
                body.layers = body.layers[: self.blocks]
        return stage, batch


class Total(MemTracker):
    """The whole alone, without a share for each module."""

    def _ignore(self, *_: Any) -> None:
        pass

    _pre_fw_hook = _post_fw_hook = _pre_bw_hook = _post_bw_hook = _ignore  # type: ignore[assignment]


def tracked(case: Case) -> int:
    """The peak of the second step, in bytes, by torch's tracker."""
    stage, batch = case.make()
    if case.ranks > 1 and case.parallel == "ddp":
        return _tracked_real(stage, batch, case.accumulate)
    target, autocast = device_of("cpu", case.config.loop.precision == "bf16")
    again = [stage.tower, stage.model.model.language_model] if case.recomputed else []
    group = grouped(case.ranks, target) if case.ranks > 1 else nullcontext()
    with faked(stage, target) as fake_batch, group, recomputed(again):
        packed = fake_batch(batch)
        inputs = tuple(tensors_of(packed).values())
        tracker: MemTracker
        if case.ranks == 1:
            optimizer, tracker = _optimizer(stage), Total()
            tracker.track_external(stage, optimizer, *inputs)
        else:
            shard(stage, target, case.config.loop.precision == "bf16")
            optimizer = _optimizer(stage)
            tracker = of_shards = FSDPMemTracker(stage, optimizer)
            of_shards.track_inputs(inputs)
        for _ in range(2):
            with tracker:
                for _ in range(case.accumulate):
                    backward(stage, packed, autocast)
                    tracker.reset_mod_stats()  # or it refuses the second of several passes
                _update(stage, optimizer)
        return int(tracker.get_tracker_snapshot("peak")[target]["Total"])


def _tracked_real(stage: AnsweringStage, batch: Batch, accumulate: int) -> int:
    tracker, optimizer = Total(), _optimizer(stage)
    tracker.track_external(stage, *tensors_of(batch).values())
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with tracker:
            parallel = DistributedDataParallel(stage, broadcast_buffers=False, gradient_as_bucket_view=True)
        for _ in range(2):
            with tracker:
                for number in range(accumulate):
                    with parallel.no_sync() if number < accumulate - 1 else nullcontext():
                        backward(parallel, batch, None)
                _update(stage, optimizer)
    finally:
        dist.destroy_process_group()
    return int(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])


def _optimizer(stage: AnsweringStage) -> Optimizer:
    optimizer = make_optimizer(stage, 1e-5, 0.0, (0.9, 0.999), {})
    for settings in optimizer.param_groups:
        settings["fused"], settings["foreach"] = False, True  # the fused one looks for a device that it knows
    return optimizer


def _update(stage: AnsweringStage, optimizer: Optimizer) -> None:
    """What follows the backward pass of a step."""
    clip_gradients([p for settings in optimizer.param_groups for p in settings["params"]], 1.0)
    optimizer.step()
    optimizer.zero_grad()
    stage.after_step()


def planned(case: Case) -> float:
    stage, batch = case.make()
    return peaks(stage, case.config, [batch], case.ranks, "cpu")[0]


def stepped(case: Case) -> int:
    """The same of one rank by `fake_step`, which sees a whole step too."""
    stage, batch = case.make()
    return fake_step(stage, batch, "cpu", case.config.loop.precision == "bf16").peak


CASES = [
    *(Case("nano", stage, ranks) for stage in (1, 2) for ranks in (1, 8, 32)),
    *(Case("nano", stage, 8, recomputed=True) for stage in (1, 2)),
    *(Case("nano", stage, 8, accumulate=n, parallel="ddp") for stage in (1, 2) for n in (1, 2)),
    *(
        Case("paper", stage, ranks, again, blocks=4)
        for stage in (1, 2)
        for again in (False, True)
        for ranks in (1, 8, 32)
    ),
    *(Case("paper", stage, 8, True, accumulate=2, blocks=4) for stage in (1, 2)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="nano size alone")
    options = parser.parse_args()
    print(f"{machine('cpu')}; micro-batches of {CASES[0].images} images of 6 regions\n")
    print("| size, stage | ranks | shared by | recomputed | micro-batches | plan | torch's tracker | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    results = []
    for case in [case for case in CASES if case.size == "nano" or not options.quick]:
        said, counted = planned(case), tracked(case)
        blocks = f" ({case.blocks} blocks)" if case.blocks else ""
        print(
            f"| {case.size}{blocks}, {case.stage} | {case.ranks} | {'-' if case.ranks == 1 else case.parallel} "
            f"| {'yes' if case.recomputed else 'no'} "
            f"| {case.accumulate} | {said / 1e6:,.1f} MB | {counted / 1e6:,.1f} MB | {said / counted:.3f} |",
            flush=True,
        )
        results.append({**asdict(case), "plan": said, "tracker": counted})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
