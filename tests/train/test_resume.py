import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.paths import PYTHONPATH
from helpers.resume_child import main
from safetensors.torch import load_file

from granvit.train import checkpoint

OPTIONS = {"steps": 36, "batch_size": 4, "accumulate": 2, "save_every": 3, "log_every": 1}


def start(run_dir: Path, options: dict, *launcher: str) -> subprocess.Popen:
    command = [sys.executable, *launcher, "-m", "helpers.resume_child", str(run_dir), json.dumps(options)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": PYTHONPATH}
    )


def rows(run_dir: Path) -> list[dict]:
    path = run_dir / "history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def weights(run_dir: Path) -> dict:
    newest = checkpoint.latest(run_dir)
    assert newest is not None
    return load_file(newest / checkpoint.STUDENT)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole")
    main(run_dir, dict(OPTIONS))
    return run_dir


def kill_and_resume(run_dir: Path, options: dict, kills: int, seed: int) -> list[int]:
    """Runs until the end, killed `kills` times at random moments; the steps that each killed part reached."""
    rng = random.Random(seed)
    reached: list[int] = []
    while True:
        child = start(run_dir, options)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n", child.communicate()[1]
        if len(reached) == kills:
            assert child.wait(60) == 0, child.communicate()[1]
            return reached
        # Wait until it writes, then strike: a delay from the start alone would mostly strike before or after the run.
        before = len(rows(run_dir))
        while len(rows(run_dir)) <= before + rng.randrange(2) and child.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        child.send_signal(signal.SIGKILL)
        child.wait()
        reached.append(len(rows(run_dir)))


def check_kills(run_dir: Path, uninterrupted: Path, kills: int, seed: int) -> None:
    reached = kill_and_resume(run_dir, OPTIONS, kills, seed)
    assert any(0 < step < OPTIONS["steps"] for step in reached), reached
    assert rows(run_dir) == rows(uninterrupted), reached
    assert [row["step"] for row in rows(run_dir)] == list(range(1, OPTIONS["steps"] + 1))
    ours, theirs = weights(run_dir), weights(uninterrupted)
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_three_kills_change_no_bit(tmp_path, uninterrupted):
    check_kills(tmp_path, uninterrupted, kills=3, seed=0)


@pytest.mark.slow
def test_ten_kills_change_no_bit(tmp_path, uninterrupted):
    check_kills(tmp_path, uninterrupted, kills=10, seed=1)


def test_a_signal_finishes_the_step_saves_and_exits(tmp_path, uninterrupted):
    options = {**OPTIONS, "save_every": 0}
    child = start(tmp_path, options)
    while len(rows(tmp_path)) < 5 and child.poll() is None:
        time.sleep(0.005)
    child.send_signal(signal.SIGTERM)
    assert child.wait(30) == 128 + signal.SIGTERM
    newest = checkpoint.latest(tmp_path)
    assert newest is not None and int(newest.name[-2:]) == len(rows(tmp_path)) < OPTIONS["steps"]
    main(tmp_path, dict(options))
    assert rows(tmp_path) == rows(uninterrupted)


def test_two_processes_take_the_steps_of_one_even_when_resumed(tmp_path):
    options = {"steps": 12, "log_every": 1, "save_every": 5, "dropout": 0.0}
    main(tmp_path / "one", {**options, "batch_size": 4, "accumulate": 2})
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    two = start(tmp_path / "two", {**options, "batch_size": 2, "accumulate": 2, "break_at": 8}, *launcher)
    try:
        _, errors = two.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        two.terminate()  # torchrun then ends its ranks
        raise
    assert two.returncode == 0, errors
    one, two_rows = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert [r["step"] for r in two_rows] == [r["step"] for r in one]
    for expected, found in zip(one, two_rows, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    ours, theirs = weights(tmp_path / "two"), weights(tmp_path / "one")
    for name in theirs:
        assert ours[name].sub(theirs[name]).abs().max() < 1e-5


@pytest.mark.slow
def test_torchrun_ends_a_run_whose_rank_is_killed_and_it_goes_on(tmp_path):
    options = {"steps": 60, "log_every": 1, "save_every": 4, "dropout": 0.0, "accumulate": 2}
    main(tmp_path / "one", {**options, "batch_size": 4})
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    two = start(tmp_path / "two", {**options, "batch_size": 2}, *launcher)
    while len(rows(tmp_path / "two")) < 12 and two.poll() is None:
        time.sleep(0.005)
    children = Path(f"/proc/{two.pid}/task/{two.pid}/children").read_text().split()
    killed = time.monotonic()
    os.kill(int(children[1]), signal.SIGKILL)
    _, errors = two.communicate(timeout=60)
    assert two.returncode != 0 and time.monotonic() - killed < 60
    assert 12 <= len(rows(tmp_path / "two")) < 60, errors
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    again = start(tmp_path / "two", {**options, "batch_size": 2}, *launcher)
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    for expected, found in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
