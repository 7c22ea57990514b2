import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from granvit.geometry import View
from granvit.nano.symbolic import symbolic_grid
from granvit.regions import Region, RegionImage

PATCHES, SIDE = 4, 64
VIEW = View.squash((SIDE, SIDE), SIDE)


def words(text):
    """A token per word: its length times ten, and its place."""
    return [10 * len(word) + i for i, word in enumerate(text.split())]


def weights(regions, view=VIEW, tokens=200):
    """The symbolic image as an array (patches, patches, tokens)."""
    record = RegionImage("r", None, view.source[2], view.source[3], regions)
    grid = symbolic_grid(record, view, PATCHES, lambda region: words(region.text))
    assert len(grid.patches) == len(grid.words) == len(grid.weights) and grid.weights.dtype == np.float32
    dense = np.zeros((PATCHES * PATCHES, tokens))
    np.add.at(dense, (grid.patches, grid.words), grid.weights)
    return dense.reshape(PATCHES, PATCHES, tokens)


def test_the_words_of_an_object_fill_its_box():
    # Columns 1 and half of 2, rows 0 to 2, of 16-pixel patches.
    dense = weights([Region((16, 0, 40, 48), "red ring")])
    cover = np.array([[0, 1, 0.5, 0]] * 3 + [[0] * 4])
    for token in words("red ring"):
        np.testing.assert_allclose(dense[..., token], cover)
    assert dense.sum() == pytest.approx(2 * cover.sum())


def test_the_tokens_of_a_text_stand_side_by_side():
    dense = weights([Region((0, 16, 64, 32), "a bc def ghij", "text")])
    for column, token in enumerate(words("a bc def ghij")):
        expected = np.zeros((4, 4))
        expected[1, column] = 1
        np.testing.assert_allclose(dense[..., token], expected)


def test_tokens_share_a_column_by_their_ink():
    dense = weights([Region((0, 0, 32, 8), "a bc def", "text")])
    # Borders between tokens at 10.7 and 21.3 pixels; the line is half a patch high.
    first, second, third = (dense[0, :, t] for t in words("a bc def"))
    np.testing.assert_allclose(first, [1 / 3, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(second, [1 / 6, 1 / 6, 0, 0], atol=1e-6)
    np.testing.assert_allclose(third, [0, 1 / 3, 0, 0], atol=1e-6)


def test_what_lies_in_front_hides_what_is_behind():
    behind, front = Region((0, 0, 32, 32), "red"), Region((16, 0, 64, 16), "ring")
    dense = weights([behind, front])
    assert dense[0, :, 30].tolist() == [1, 0, 0, 0] and dense[1, :, 30].tolist() == [1, 1, 0, 0]
    assert dense[0, :, 40].tolist() == [0, 1, 1, 1]
    assert weights([front, behind])[0, :, 40].tolist() == [0, 0, 1, 1]


def test_the_view_moves_the_symbolic_image():
    record = Region((0, 0, 64, 32), "red")
    letterboxed = weights([record], View.letterbox((64, 32), SIDE))
    assert letterboxed[..., 30].sum(1).tolist() == [0, 4, 4, 0]


def test_nothing_to_show():
    assert weights([]).sum() == 0
    assert weights([Region((0, 0, 1, 1), "red")]).sum() == 0  # a trace that no patch would show


boxes = st.tuples(*[st.integers(0, 31)] * 2, *[st.integers(33, 64)] * 2)


@given(st.lists(st.tuples(boxes, st.sampled_from(["object", "text"])), max_size=4))
def test_a_patch_holds_no_more_than_itself(made):
    texts = ("a", "bc", "def", "ghij")
    regions = [Region(box, text, kind) for (box, kind), text in zip(made, texts, strict=False)]
    dense = weights(regions)
    assert (dense >= 0).all() and dense.sum(-1).max() <= 1 + 1e-5
    if regions:  # the one in front is seen whole, but for traces
        x1, y1, x2, y2 = regions[-1].box
        area = (x2 - x1) * (y2 - y1) / 256
        token = words(regions[-1].text)[0]
        assert area - 16 * 0.02 <= dense[..., token].sum() <= area + 1e-5
