"""A run in a process of its own: killed by test_resume.py, or one of several ranks under torchrun."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from helpers.tiny_stage import TinyStage, make_feed

from granvit.train.loop import LoopConfig, train


class Broken(Exception):
    pass


class BreakingStage(TinyStage):
    """Fails once it has taken `steps` steps."""

    def __init__(self, dropout: float, steps: int):
        super().__init__(dropout=dropout)
        self.steps_left = steps

    def after_step(self) -> None:
        super().after_step()
        self.steps_left -= 1
        if self.steps_left == 0:
            raise Broken


def main(run_dir: Path, options: dict) -> None:
    """`options` are those of `LoopConfig`; "dropout" is the stage's, after "break_at" steps it fails and resumes."""
    dropout, break_at = options.pop("dropout", 0.1), options.pop("break_at", 0)
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    config = LoopConfig(**{"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1, "trackers": (), **options})

    def run(steps: int) -> None:
        with make_feed(config.batch_size, rank=rank, world_size=world_size, prefetch=2) as feed:
            train(BreakingStage(dropout, steps), feed, config, run_dir, device="cpu")

    print("ready", flush=True)
    try:
        run(break_at)
    except Broken:
        run(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
