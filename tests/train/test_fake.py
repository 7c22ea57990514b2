"""The whole step of every stage on a device that is not there: nothing may lie, or be made, anywhere else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = Path(__file__).parent / "fake_child.py"


def run(*cases: str) -> dict[str, object]:
    """In a process of its own: a stand-in for a GPU, once it is registered, is there for all of torch."""
    done = subprocess.run([sys.executable, CHILD, *cases], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def steps() -> dict[str, object]:
    return run("nano", "paper", "cpu", "wrong", "eager")


@pytest.mark.parametrize("stage", ["pretrain", "pretrain without teacher", "adapt", "finetune", "no crop in the batch"])
@pytest.mark.parametrize("as_trained", ["nano fp32", "nano bf16", "paper bf16"])
def test_a_step_of_every_stage_lies_wholly_on_the_gpu(steps: dict[str, object], as_trained: str, stage: str) -> None:
    size, precision = as_trained.split()
    weights, between, peak = steps[f"{size} {stage} {precision}"]  # type: ignore[misc]
    assert 0 < weights < between < peak


def test_what_is_made_on_the_cpu_or_in_another_type_is_found(steps: dict[str, object]) -> None:
    assert "device" in str(steps["a tensor made on the CPU"])
    assert "same dtype" in str(steps["queries of another type"])
    assert "DataDependent" in str(steps["a number read back from the device"])


@pytest.mark.parametrize("stage", ["pretrain", "adapt"])
def test_memory_is_that_of_a_real_step_on_the_cpu(steps: dict[str, object], stage: str) -> None:
    told, real = steps[f"memory of {stage}"]  # type: ignore[misc]
    assert told == pytest.approx(real, rel=0.05)


@pytest.mark.parametrize("stage", ["pretrain", "adapt"])
def test_blocks_at_paper_width_are_compiled_whole_and_never_again_once_lengths_vary(
    steps: dict[str, object], stage: str
) -> None:
    # One graph for each kind of block (encoder, teacher, language model; stage 2 has no teacher), and one more
    # where the number of positions, or of pictures, is seen to vary.
    kinds, grown = {"pretrain": (3, 5), "adapt": (2, 4)}[stage]
    assert steps[stage] == [kinds, grown, grown, grown, grown]


def test_a_break_in_a_block_is_found(steps: dict[str, object]) -> None:
    assert "graph_break" in str(steps["a break"])


@pytest.mark.slow
def test_backward_passes_are_compiled_whole_too() -> None:
    made = run("aot_eager")
    assert "RecompileError" in str(made.pop("a mask of one length"))
    for name, graphs in made.items():
        assert isinstance(graphs, list) and len(set(graphs[1:])) == 1 < graphs[0], name


def test_weights_gradients_and_moments_of_a_model_are_counted_to_the_byte(steps: dict[str, object]) -> None:
    """Adapt at the paper's widths: float32 weights of all, two moments of what trains."""
    counted, everything, trained = steps["bytes of adapt"]  # type: ignore[misc]
    weights, between, _ = counted
    assert weights == pytest.approx(4 * everything, rel=1e-4)
    assert between == pytest.approx(4 * everything + 8 * trained, rel=0.01)
