import numpy as np
import pytest

from granvit.evaluate.metrics.detection import average_precision
from granvit.regions import Region

pytest.importorskip("pycocotools")

BOX, FAR = (10.0, 10.0, 60.0, 60.0), (200.0, 200.0, 300.0, 300.0)


def found(box, score=None, text="cat"):
    return Region(box, text, score=score)


def test_the_true_boxes_have_ap_one():
    scores = average_precision([[found(BOX, 0.9)], [found(FAR, 0.8)]], [[found(BOX)], [found(FAR)]])
    assert scores.pop("ap_small") is None
    assert scores == pytest.approx({"ap": 1, "ap50": 1, "ap75": 1, "ap_medium": 1, "ap_large": 1})


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
