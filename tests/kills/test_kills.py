"""A slice of the sweep (`make kills` is all of it), in a process of its own, since it forks."""

import os
import subprocess
import sys

import pytest
from helpers.paths import PYTHONPATH


def sweep(*args: str) -> str:
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    done = subprocess.run([sys.executable, "-m", "kills.sweep", *args], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_killed_and_given_again_a_command_leaves_the_same():
    said = sweep("import-over", "curate", "split", "annotate", "--points", "3")
    assert "4 commands, 12 kills, 4 pairs at once, 0 faults" in said


@pytest.mark.slow
def test_the_same_of_all_commands_at_every_file_operation():
    assert " 0 faults" in sweep().splitlines()[-1]
