"""Which box is which: worked out by hand, then against an exhaustive search."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from granvit.corpus.audit.agreement import covered, holding_several, match
from granvit.geometry import iou

A = (0, 0, 10, 10)


def test_pairs_false_missed():
    # IoU with A: 80 / 100 of the first; the second lies on nothing; the second true box is found by none.
    matching = match([(0, 0, 10, 8), (50, 50, 60, 60)], [A, (100, 0, 110, 10)])
    assert matching.pairs == [(0, 0, pytest.approx(0.8))]
    assert (matching.false, matching.missed, matching.ignored) == ([1], [1], [])


def test_half_an_overlap_is_a_match_and_less_is_none():
    assert match([(0, 0, 10, 5)], [A]).pairs == [(0, 0, 0.5)]
    assert match([(0, 0, 10, 4.9)], [A]).pairs == []


def test_one_true_box_is_found_once():
    matching = match([(0, 0, 10, 9), A], [A])
    assert matching.pairs == [(1, 0, 1.0)] and matching.false == [0]


def test_the_best_pair_of_all_comes_first():
    # Found 0 overlaps both true boxes; true 1 is all its own. Greedy by row would give it true 0.
    true = [(0, 0, 10, 10), (2, 0, 12, 10)]
    assert match([(2, 0, 12, 10), (0, 0, 10, 9)], true).pairs == [(0, 1, 1.0), (1, 0, pytest.approx(0.9))]


def test_what_lies_in_ignored_regions_is_neither_right_nor_wrong():
    # More than half inside, exactly half inside, outside.
    found = [(0, 0, 10, 10), (15, 0, 25, 10), (50, 0, 60, 10)]
    matching = match(found, [], [(0, 0, 20, 10)])
    assert matching.ignored == [0] and matching.false == [1, 2] and matching.missed == []


def test_several_ignored_regions_excuse_together():
    assert match([(0, 0, 20, 10)], [], [(0, 0, 8, 10), (10, 0, 18, 10)]).ignored == [0]


def test_a_true_box_may_be_found_inside_an_ignored_region():
    matching = match([A], [A], [(0, 0, 100, 100)])
    assert matching.pairs == [(0, 0, 1.0)] and matching.ignored == []


def test_nothing_at_all():
    assert match([], [], []) == match([], []) and match([], [A]).missed == [0] and match([A], []).false == [0]


boxes = st.lists(
    st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(1, 8)] * 2).map(
        lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
    ),
    max_size=6,
)


@settings(deadline=None)
@given(boxes, boxes, boxes)
def test_every_box_has_one_fate_and_no_pair_is_left(found, true, ignored):
    matching = match(found, true, ignored)
    rows, columns = [p[0] for p in matching.pairs], [p[1] for p in matching.pairs]
    assert sorted(rows + matching.false + matching.ignored) == list(range(len(found)))
    assert sorted(columns + matching.missed) == list(range(len(true)))
    overlap = iou(found, true)
    assert all(overlap[i, j] == value >= 0.5 for i, j, value in matching.pairs)
    rest = overlap[np.ix_(matching.false + matching.ignored, matching.missed)]
    assert not (rest >= 0.5).any()


def test_covered_adds_up_what_lies_in_several():
    by = [(0, 0, 3, 10), (5, 0, 10, 10)]
    assert covered([A, (20, 0, 30, 10)], by).tolist() == [0.8, 0.0]
    assert covered([A], [A, A]).tolist() == [1.0]
    assert covered([A], []).tolist() == [0.0]


def test_a_line_holds_its_words():
    line, words = (0, 0, 100, 10), [(0, 0, 30, 10), (40, 0, 60, 10), (95, 0, 120, 10)]
    assert holding_several([line, words[2]], words) == (1, 2)
    assert holding_several([words[0]], words) == (0, 0)
    assert holding_several([], words) == holding_several([line], []) == (0, 0)
