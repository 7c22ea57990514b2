"""A run in a process of its own: killed by test_resume.py, or one of several ranks under torchrun."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tiny_stage import TinyStage, make_feed

from granvit.train.loop import LoopConfig, train


def main(run_dir: Path, options: dict) -> None:
    """`options` are those of `LoopConfig`; "dropout" is the stage's, "processes" the ranks of this run."""
    dropout = options.pop("dropout", 0.1)
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    config = LoopConfig(**{"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1, "trackers": (), **options})
    feed = make_feed(config.batch_size, rank=rank, world_size=world_size, prefetch=2)
    print("ready", flush=True)
    train(TinyStage(dropout=dropout), feed, config, run_dir, device="cpu")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
