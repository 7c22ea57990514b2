from itertools import product

import numpy as np
import pytest

from granvit.evaluate.metrics import best_constant_box, box_scores, paired_iou
from granvit.evaluate.metrics import boxes as constant
from granvit.evaluate.metrics.boxes import average_precision
from granvit.regions import Region


def test_box_scores_by_hand():
    true = [(0.0, 0.0, 10.0, 10.0)] * 4
    # IoU 1, 0.5 (counts as a hit), 1/3, and an answer that could not be read.
    predicted = [(0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 5.0), (5.0, 0.0, 15.0, 10.0), None]
    scores = box_scores(predicted, true, thresholds=(0.3, 0.5, 0.75))
    assert scores == pytest.approx(
        {"acc30": 0.75, "acc50": 0.5, "acc75": 0.25, "miou": (1 + 0.5 + 1 / 3) / 4, "parse_rate": 0.75}
    )
    assert box_scores(predicted, true).keys() == {"acc50", "miou", "parse_rate"}


def test_unparsed_counts_as_a_miss_not_as_absent():
    true = [(0.0, 0.0, 1.0, 1.0)] * 4
    assert box_scores([true[0], None, None, None], true) == {"acc50": 0.25, "miou": 0.25, "parse_rate": 0.25}
    assert box_scores([None] * 4, true) == {"acc50": 0, "miou": 0, "parse_rate": 0}


def test_paired_iou_pairs_each_with_its_own():
    true = [(float(i), 0.0, i + 1.0, 1.0) for i in range(300)]
    predicted = [(i + (0.5 if i % 2 else 0.0), 0.0, i + 1.0, 1.0) for i in range(300)]
    assert paired_iou(predicted, true).tolist() == [0.5 if i % 2 else 1.0 for i in range(300)]


def test_nothing_to_score_is_an_error():
    with pytest.raises(ValueError, match="no references"):
        box_scores([], [])


def test_a_count_mismatch_is_an_error():
    with pytest.raises(ValueError, match="2 predictions for 1 references"):
        box_scores([None, None], [(0.0, 0.0, 1.0, 1.0)])


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


def test_the_most_frequent_box_in_eighths_is_tried():
    # Neither the median nor the mean nor a box of quarters comes near to the three that are nearly one.
    usual = [(0.63, 0.62, 0.87, 0.88), (0.62, 0.63, 0.88, 0.87), (0.625, 0.62, 0.87, 0.87)]
    rest = [(0.0, 0.0, 0.07, 0.07), (0.1, 0.0, 0.17, 0.07), (0.0, 0.1, 0.07, 0.17), (0.1, 0.1, 0.17, 0.17)]
    assert best_constant_box(usual + rest, (0.75,))["acc75"] == pytest.approx(3 / 7)


def test_all_boxes_of_quarters_are_tried():
    quarters = np.arange(5) / 4
    every = {(a, b, c, d) for a, b, c, d in product(quarters, repeat=4) if a < c and b < d}
    tried = {tuple(box) for box in constant._candidates(np.array([[0.01, 0.01, 0.02, 0.02]])).tolist()}
    assert len(every) == 100 and every <= tried


def test_a_box_at_the_threshold_is_right():
    assert best_constant_box([(0.0, 0.0, 0.5, 0.5)] * 2, (1.0,))["acc100"] == 1


pytest.importorskip("pycocotools")

BOX, FAR = (10.0, 10.0, 60.0, 60.0), (200.0, 200.0, 300.0, 300.0)


def found(box, score=None, text="cat"):
    return Region(box, text, score=score)


def test_the_true_boxes_have_ap_one():
    scores = average_precision([[found(BOX, 0.9)], [found(FAR, 0.8)]], [[found(BOX)], [found(FAR)]])
    assert scores.pop("ap_small") is None
    assert scores == pytest.approx({"ap": 1, "ap50": 1, "ap75": 1, "ap_medium": 1, "ap_large": 1})


def test_all_lines_of_a_page_count():
    lines = [found((0.0, 20.0 * n, 150.0, 20.0 * n + 15), text="line") for n in range(150)]
    scores = average_precision([lines], [lines])
    assert scores["ap"] == scores["ap50"] == scores["ap_medium"] == pytest.approx(1)


def test_ap_by_hand():
    # IoU 0.8: right up to the threshold 0.80, 7 of the 10 from 0.50 to 0.95.
    assert average_precision([[found((10, 10, 60, 50), 0.9)]], [[found(BOX)]])["ap"] == pytest.approx(0.7)
    # A false box above the right one halves the precision; below it costs nothing.
    assert average_precision([[found(FAR, 0.9), found(BOX, 0.5)]], [[found(BOX)]])["ap50"] == pytest.approx(0.5)
    assert average_precision([[found(FAR, 0.4), found(BOX, 0.5)]], [[found(BOX)]])["ap50"] == pytest.approx(1)
    # One of two is found: precision 1 up to recall 0.5, that is 51 of COCO's 101 points.
    assert average_precision([[found(BOX, 0.9)]], [[found(BOX), found(FAR)]])["ap50"] == pytest.approx(51 / 101)


def test_the_first_box_of_all_counts_too():
    """pycocotools takes the annotation id 0 for "not matched"."""
    assert average_precision([[found(BOX)]], [[found(BOX)]])["ap"] == pytest.approx(1)


def test_classes_count_only_where_asked():
    mine, true = [[found(BOX, 0.9, "dog")]], [[found(BOX, text="cat")]]
    assert average_precision(mine, true)["ap"] == pytest.approx(1)
    assert average_precision(mine, true, by_text=True)["ap"] == 0
    assert average_precision([[found(BOX, 0.9, "Cat")]], true, by_text=True)["ap"] == pytest.approx(1)


def test_ignored_boxes_are_neither_found_nor_missed():
    ignored = Region(FAR, "crowd", ignore=True)
    assert average_precision([[found(BOX, 0.5), found(FAR, 0.9)]], [[found(BOX), ignored]])["ap"] == pytest.approx(1)
    assert average_precision([[found(BOX, 0.5)]], [[found(BOX), ignored]])["ap"] == pytest.approx(1)


def test_nothing_found_is_zero_and_nothing_true_an_error():
    assert average_precision([[]], [[found(BOX)]])["ap"] == 0
    with pytest.raises(ValueError, match="no true box"):
        average_precision([[found(BOX)]], [[Region(BOX, "x", ignore=True)]])
    with pytest.raises(ValueError, match="1 predictions for 0"):
        average_precision([[]], [])


def test_scores_order_boxes_over_all_images():
    rng = np.random.default_rng(0)
    true = [[found((x, x, x + 40, x + 40))] for x in rng.uniform(0, 100, 20)]
    good = [[found(r.box, 0.9) for r in image] for image in true[:10]] + [[found(FAR, 0.1)] for _ in true[10:]]
    bad = [[found(r.box, 0.1) for r in image] for image in true[:10]] + [[found(FAR, 0.9)] for _ in true[10:]]
    assert average_precision(good, true)["ap50"] > average_precision(bad, true)["ap50"] > 0
