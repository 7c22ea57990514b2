"""Ranks on the CPU: processes that train a tiny stage 1, forked from one that has imported everything already."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from helpers.tiny_model import collate, make_model, make_samples, whole_mask

from granvit.model.packing import Sample
from granvit.regions import RegionImage
from granvit.train.config import LoopConfig
from granvit.train.feed import Feed

# What every rank would import for itself otherwise, seconds each.
IMPORTED = ["granvit.train.run", *(f"transformers.models.{kind}.modeling_{kind}" for kind in ("siglip", "qwen2"))]
CONFIG = LoopConfig(
    steps=6, batch_size=4, accumulate=2, lr=1e-3, clip_norm=0.5, weight_decay=0.1, precision="fp32", log_every=1
)
CONFIG = replace(CONFIG, save_every=3, save_keep=9, trackers=())


class Numbers:
    """`size` records without a picture, named by their index."""

    def __init__(self, size: int = 64):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> RegionImage:
        return RegionImage(str(index), None, 8, 8, [])


@whole_mask()
def train_stage1(run_dir: Path, config: LoopConfig, kill: tuple[int, int] = (-1, -1), recompute: bool = False) -> None:
    """Trains stage 1 as this process's part of a run. Every second picture has no region to distil.

    `kill` is a rank and after which step it ends without a word; with `recompute` blocks keep their inputs alone.
    """
    from granvit.model.forward import recomputed
    from granvit.train.loop import train
    from granvit.train.stages.pretrain import Pretrain

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    model = make_model()

    def prepare(record: RegionImage, rng: np.random.Generator) -> Sample:
        index = int(record.id)
        (sample,) = make_samples(model, (1 + index % 3,), seed=int(rng.integers(1 << 30)), crops=index % 2)
        return replace(sample, id=record.id)

    class Killed(Pretrain):
        steps = 0

        def after_step(self) -> None:
            super().after_step()
            self.steps += 1
            if kill == (rank, self.steps):
                os._exit(9)

    feed = Feed([(Numbers(), 1.0)], prepare, lambda s: collate(model, s), config.batch_size, 0, rank, world, prefetch=0)
    stage = Killed(model)
    with recomputed([stage.tower, stage.model.model.language_model] if recompute else []):
        train(stage, feed, config, run_dir, device="cpu")


def run_ranks(world: int, target: Callable[..., object], *arguments: object, timeout: float = 300) -> list[int]:
    """Runs `target(*arguments)` on so many ranks; their exit codes. Those that wait for a dead one are ended."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [context.Process(target=_be, args=(rank, world, port, target, arguments)) for rank in range(world)]
    for process in ranks:
        process.start()
    deadline = time.monotonic() + timeout
    while any(p.exitcode is None for p in ranks) and time.monotonic() < deadline:
        if any(p.exitcode for p in ranks):  # as torchrun does
            deadline = min(deadline, time.monotonic() + 10)
        time.sleep(0.02)
    for process in ranks:
        process.kill()
        process.join()
    return [p.exitcode for p in ranks if p.exitcode is not None]


def _be(rank: int, world: int, port: int, target: Callable[..., object], arguments: tuple) -> None:
    torch.set_num_threads(1)
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in places.items()}, MASTER_ADDR="127.0.0.1")
    target(*arguments)
    torch.distributed.destroy_process_group()
