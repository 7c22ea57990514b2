"""Memory as a plan tells it, against torch's `MemTracker` and `FSDPMemTracker` (`benchmarks/trackers.py`)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CHILD = Path(__file__).parent / "tracker_child.py"


@pytest.fixture(scope="module")
def told() -> dict[str, list[float]]:
    """In a process of its own: a group of ranks that are not there is a matter of the whole process."""
    done = subprocess.run([sys.executable, CHILD], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", ["stage 1", "stage 2"])
def test_a_step_on_one_gpu_takes_what_torch_counts(told: dict[str, list[float]], name: str) -> None:
    """Up to blocks of 512 bytes, to which the tracker rounds on CUDA alone."""
    plan, tracker, step = told[name]
    assert step == pytest.approx(tracker, rel=0.02)
    assert plan == pytest.approx(tracker, rel=0.02)


@pytest.mark.parametrize(
    "name", ["stage 1 of 8", "stage 2 of 32, recomputed and accumulated", "stage 2 of 8 by ddp, accumulated"]
)
def test_a_rank_of_many_takes_what_torch_counts(told: dict[str, list[float]], name: str) -> None:
    if "recomputed" in name and torch.__version__ < "2.12":
        pytest.skip("torch 2.11 counts 1.75 times as much for recomputed blocks in shards as 2.12 and later do")
    plan, tracker, _ = told[name]
    assert plan == pytest.approx(tracker, rel=0.02)
