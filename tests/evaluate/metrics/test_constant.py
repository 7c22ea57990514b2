import numpy as np
import pytest

from granvit.evaluate.metrics import best_constant_box, box_scores, constant


def test_the_usual_place_is_found():
    usual = [(0.11, 0.12, 0.37, 0.41)] * 6
    elsewhere = [(0.5, 0.5, 1.0, 1.0), (0.6, 0.0, 1.0, 0.3)]
    scores = best_constant_box(usual + elsewhere, (0.5, 0.75))
    assert set(scores) == {"acc50", "acc75", "miou"} and scores["acc50"] == 0.75
    # The median is the usual place itself.
    assert scores["acc75"] == 0.75 and scores["miou"] == pytest.approx(0.75)


def test_the_grid_is_tried():
    # Only a box of quarters covers one of these wholly; their median and mean lie between them.
    boxes = [(0.74, 0.49, 0.99, 0.99), (0.76, 0.51, 1.0, 1.0), (0.0, 0.0, 0.1, 0.1)]
    grid = box_scores([(0.75, 0.5, 1.0, 1.0)] * 3, boxes)
    scores = best_constant_box(boxes)
    assert scores["acc50"] == grid["acc50"] == pytest.approx(2 / 3) and scores["miou"] >= grid["miou"] > 0.6


def test_many_references_are_compared_some_at_a_time(monkeypatch):
    corners = np.sort(np.random.default_rng(0).random((50, 2, 2)), axis=1)
    boxes = corners.reshape(50, 4)
    whole = best_constant_box(boxes)
    monkeypatch.setattr(constant, "_AT_ONCE", 7)
    assert best_constant_box(boxes) == pytest.approx(whole)


def test_no_references_are_an_error():
    with pytest.raises(ValueError, match="no references"):
        best_constant_box([])
