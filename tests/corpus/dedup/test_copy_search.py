"""The alignment behind the comparison of copies, on a picture that is known at every point."""

import numpy as np
import pytest

from granvit.corpus.dedup.copy_search import agreement
from granvit.corpus.dedup.perceptual_hash import SIDE


def sampled(rows: tuple[float, float], columns: tuple[float, float], seed: int = 0) -> np.ndarray:
    """A window (shares of height and width) of a smooth picture made of waves, SIDE x SIDE points."""
    rng = np.random.default_rng(seed)
    at = (np.arange(SIDE) + 0.5) / SIDE
    y, x = np.meshgrid(*(low + at * (high - low) for low, high in (rows, columns)), indexing="ij")
    picture = np.zeros((SIDE, SIDE))
    for _ in range(24):
        down, right, phase = rng.uniform(-9, 9), rng.uniform(-9, 9), rng.uniform(0, 7)
        picture += np.sin(2 * np.pi * (down * y + right * x) + phase)
    return (picture * 18 + 128).clip(0, 255).astype(np.float32)


def agreement_from(start_rows, start_columns, copy) -> float:
    original = sampled((0, 1), (0, 1))
    return float(agreement(original[None], copy[None], np.array([start_rows]), np.array([start_columns]))[0])


@pytest.mark.parametrize("shift", [(0.0, 0.0), (1.5, 0.0), (0.0, -1.5), (-1.0, 1.0)])
@pytest.mark.parametrize("stretch", [0.0, 0.03])
def test_a_window_is_found_from_beside_it(shift, stretch):
    rows, columns = np.array([0.1, 0.9]), np.array([0.05, 0.85])
    copy = sampled(tuple(rows), tuple(columns))
    widened = np.array([-stretch, stretch])
    found = agreement_from(rows + shift[0] / SIDE + widened, columns + shift[1] / SIDE - widened, copy)
    assert found > 0.9
    # Another picture agrees from nowhere.
    assert agreement_from(rows, columns, sampled(tuple(rows), tuple(columns), seed=1)) < 0.3


def test_brightness_and_contrast_do_not_matter():
    copy = sampled((0.1, 0.9), (0.1, 0.9))
    assert agreement_from([0.1, 0.9], [0.1, 0.9], copy * 0.5 + 60) > 0.9
    assert agreement_from([0.1, 0.9], [0.1, 0.9], 255 - copy) < 0
