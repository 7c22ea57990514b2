"""Statistics: worked out by hand for a few records, the same however the stream is cut, small however long it is."""

import json

import numpy as np
import pytest

from granvit.corpus import stats
from granvit.corpus.quantiles import Quantiles
from granvit.corpus.stats import GRID, Frequent, Histogram, Statistics
from granvit.regions import Region, RegionImage


def record(number: int, source: str, regions: list[Region], **options) -> RegionImage:
    return RegionImage(f"{source}/{number}", None, 200, 100, regions, source=source, **options)


def three() -> list[RegionImage]:
    return [
        record(0, "a", [Region((0, 0, 20, 10), "a red Mug", score=0.9), Region((0, 0, 1, 1), "", ignore=True)]),
        record(1, "a", [Region((180, 90, 200, 100), "A RED MUG")], caption="two words", split="val"),
        record(2, "b", [Region((0, 0, 200, 10), "TOTAL 1", "text", box_by="ocr")]),
    ]


def test_figures_of_three_records():
    found = Statistics.of(iter(three()))
    assert list(found) == ["a", "b"]
    a, b = (found[name].to_json() for name in "ab")
    assert (a["images"], a["regions"], a["captioned"], a["splits"]) == (2, 3, 1, {"": 1, "val": 1})
    objects = a["kinds"]["object"]
    assert (objects["regions"], objects["ignored"], objects["unscored"]) == (3, 1, 1)
    assert objects["box_side"]["mean"] == pytest.approx(200**0.5, abs=1e-4)
    assert objects["box_share"]["mean"] == pytest.approx(0.01)
    assert objects["box_aspect"]["min"] == objects["box_aspect"]["max"] == 2
    assert objects["texts"]["top"] == [("a red mug", 2)]
    assert objects["vocabulary"]["distinct"] == 3
    assert objects["scores"]["count"] == 1 and objects["scores"]["counts"][18] == 1
    positions = np.array(objects["positions"])
    assert positions.sum() == 2 and positions[0, 0] == 1 and positions[GRID - 1, GRID - 1] == 1
    text = b["kinds"]["text"]
    assert text["box_by"] == {"ocr": 1} and text["scripts"] == {"latin": 1} and text["box_aspect"]["max"] == 20
    assert json.loads(json.dumps(a, allow_nan=False)) is not None


def test_a_source_without_regions_has_no_numbers_that_json_lacks():
    found = Statistics.of([record(0, "a", [])])["a"].to_json()
    assert found["empty"] == 1 and found["kinds"] == {}
    json.dumps(found, allow_nan=False)


def test_batches_do_not_show(monkeypatch):
    whole = {name: s.to_json() for name, s in Statistics.of(three() * 7).items()}
    monkeypatch.setattr(stats, "_BATCH", 2)
    assert {name: s.to_json() for name, s in Statistics.of(three() * 7).items()} == whole


def test_histogram_counts_edges_below_and_outside_into_the_last():
    histogram = Histogram((0, 1, 2, 4))
    histogram.add([-5, 0, 0.999, 1, 2, 3, 4, 100])
    assert histogram.counts.tolist() == [3, 1, 4]
    assert (histogram.min, histogram.max, histogram.total) == (-5, 100, 8)


def test_quantiles_are_close():
    histogram = Histogram(np.linspace(0, 1, 101))
    histogram.add(np.random.default_rng(0).random(50_000))
    assert histogram.quantile(0.5) == pytest.approx(0.5, abs=0.01)
    assert histogram.quantile(0.05) == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("skew", [0.2, 1.0, 3.0])
def test_quantiles_of_skewed_numbers_are_within_one_percent(share, skew):
    """Of numbers that lie in two or three of the bins, as sides of pictures and boxes do."""
    numbers = 500 * np.exp(skew * np.random.default_rng(1).standard_normal(50_000))
    histogram = Histogram(stats.SIDE_EDGES)
    for part in np.array_split(numbers, 7):
        histogram.add(part)
    true = float(np.quantile(numbers, share, method="inverted_cdf"))
    assert histogram.quantile(share) == pytest.approx(true, rel=0.01001)


def test_the_median_of_whole_numbers_is_exact_and_memory_is_bounded():
    histogram = Histogram(stats.SIDE_EDGES)
    histogram.add([640] * 60 + [1000] * 40)
    assert (histogram.quantile(0.05), histogram.quantile(0.5), histogram.quantile(0.95)) == (640, 640, 1000)
    counted = Quantiles()
    for exponent in range(-9, 9):
        counted.add(10.0**exponent * np.random.default_rng(exponent + 9).random(20_000))
    assert counted._exact is None and len(counted._bins) < 3_000


def test_quantiles_do_not_depend_on_the_order_and_know_zero_and_less():
    numbers = np.concatenate([[0.0] * 2_000, -np.geomspace(1, 100, 3_000), np.geomspace(1, 9, 5_000)])
    one, other = Quantiles(), Quantiles()
    one.add(numbers)
    for part in np.array_split(np.random.default_rng(0).permutation(numbers), 9):
        other.add(part)
    for share in (0.0, 0.1, 0.3, 0.4, 0.5, 0.9, 1.0):
        true = float(np.quantile(numbers, share, method="inverted_cdf"))
        assert one.at(share) == other.at(share) == pytest.approx(true, rel=0.01001, abs=0)


def test_frequent_texts_survive_a_flood_of_others():
    frequent = Frequent(capacity=100)
    for i in range(3_000):
        frequent.update([f"rare {i}", "common"])
    assert len(frequent.counts) <= 200 and not frequent.exact
    assert frequent.to_json(1)["top"] == [("common", 3_000)]
    assert frequent.total == 6_000 and 200 <= frequent.distinct <= 3_001
