import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from granvit.corpus.annotate.detect import nms, round_robin
from granvit.geometry import iou


def test_a_case_worked_out_by_hand():
    boxes = [
        [0, 0, 10, 10],  # 0.6
        [5, 0, 15, 10],  # 0.9; IoU with the first 50 / 150
        [6, 0, 16, 10],  # 0.8; IoU with the second 90 / 110, with the first 40 / 160
        [100, 100, 110, 110],  # 0.1, alone
    ]
    scores = [0.6, 0.9, 0.8, 0.1]
    assert nms(boxes, scores, 0.5).tolist() == [1, 0, 3]
    assert nms(boxes, scores, 0.3).tolist() == [1, 3]
    assert nms(boxes, scores, 0.9).tolist() == [1, 2, 0, 3]


def test_a_box_that_was_itself_suppressed_suppresses_nothing():
    """0 takes 1, which alone overlaps 2: 2 stays."""
    boxes = [[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]]  # neighbours: 60 / 140; ends: 20 / 180
    assert nms(boxes, [0.9, 0.8, 0.7], 0.4).tolist() == [0, 2]


def test_equal_boxes_of_equal_score_leave_the_first():
    assert nms([[0, 0, 4, 4]] * 3, [0.5] * 3, 0.5).tolist() == [0]


def test_nothing_to_suppress():
    assert nms([], [], 0.5).shape == (0,)


@given(st.integers(0, 10_000), st.integers(1, 40), st.floats(0.05, 0.95))
def test_what_stays_overlaps_little_and_what_goes_overlaps_a_better_one(seed, count, threshold):
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 30, (count, 2))
    boxes = np.concatenate([corners, corners + rng.integers(1, 20, (count, 2))], axis=1)
    scores = rng.integers(0, 10, count) / 10
    kept = nms(boxes, scores, threshold)
    overlaps = iou(boxes, boxes)
    assert all(overlaps[a, b] <= threshold for a in kept for b in kept if a != b)
    for gone in set(range(count)) - set(kept.tolist()):
        assert any(overlaps[gone, k] > threshold and scores[k] >= scores[gone] for k in kept)
    assert (np.diff(scores[kept]) <= 0).all()


@pytest.mark.parametrize(
    ("labels", "order"),
    [("aaab", [0, 3, 1, 2]), ("abab", [0, 1, 2, 3]), ("aabbc", [0, 2, 4, 1, 3]), ("", [])],
)
def test_classes_take_turns(labels, order):
    assert round_robin(list(labels)) == order
