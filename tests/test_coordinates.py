import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from granvit.coordinates import Cell, Decimal, Int1000, Loc, get_codec

SPECS = ["decimal", "int1000", "loc", "loc:64", "loc:2000", "loc:9999", "cell:24", "cell:7"]
# Half a step of the text; for tokens, half a bin, but a whole one where the outermost bins reach for the border.
STEP = {"decimal": 0.0005, "int1000": 0.0005}
unit = st.floats(0, 1)


@given(st.sampled_from(SPECS), st.tuples(unit, unit, unit, unit))
def test_round_trip_within_half_a_step(spec, corners):
    x1, x2 = sorted(corners[:2])
    y1, y2 = sorted(corners[2:])
    codec = get_codec(spec)
    step = STEP.get(spec) or (1.0 if spec.startswith("cell") else 0.5) / codec.bins
    assume(x2 - x1 > 2.1 * step and y2 - y1 > 2.1 * step)
    box = np.array([x1, y1, x2, y2])
    decoded = np.array(codec.decode(codec.encode(box)))
    inner = (decoded > 0) & (decoded < 1) if spec.startswith("loc") else np.ones(4, bool)
    assert np.abs(decoded - box)[inner].max(initial=0) <= step + 1e-9
    assert np.abs(decoded - box).max() <= 2 * step + 1e-9


@pytest.mark.parametrize("spec", SPECS)
def test_the_whole_image_survives_exactly(spec):
    codec = get_codec(spec)
    assert codec.decode(codec.encode([0, 0, 1, 1])) == (0, 0, 1, 1)


@pytest.mark.parametrize("spec", SPECS)
def test_encoding_what_was_decoded_changes_nothing(spec):
    codec = get_codec(spec)
    text = codec.encode([0.1, 0.3333, 0.777, 0.9])
    assert codec.encode(codec.decode(text)) == text


def test_texts_by_hand():
    box = [0.125, 0.25, 0.5, 0.75]
    assert Decimal().encode(box) == "[0.125, 0.250, 0.500, 0.750]"
    assert Int1000().encode(box) == "[125, 250, 500, 750]"
    assert Loc().encode(box) == "<loc0128><loc0256><loc0512><loc0768>"
    assert Loc(64).encode(box) == "<loc0008><loc0016><loc0032><loc0048>"
    # centre (0.3125, 0.5), in cell 5, 8 of 16; 0.375 wide, 0.5 high
    assert Cell(16).encode(box) == "<cell0133><wide06><high08>"
    assert Cell(16).decode("<cell0133><wide06><high08>") == (9 / 64, 17 / 64, 35 / 64, 51 / 64)


@pytest.mark.parametrize("spec", SPECS)
def test_values_outside_are_clipped(spec):
    codec = get_codec(spec)
    assert codec.encode([-0.2, 0, 1.7, 1]) == codec.encode([0, 0, 1, 1])


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("box", [[0, 0, 1], [0, 0, 1, np.nan], [0, 0, 1, np.inf], [[0, 0, 1, 1]]])
def test_what_is_no_box_is_refused(spec, box):
    with pytest.raises(ValueError, match="four finite numbers"):
        get_codec(spec).encode(box)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "the box is [0.1, 0.2, 0.3, 0.4]",
        "[0.1, 0.2, 0.3, 0.4].",
        "[0.1, 0.2, 0.3, 0.4] [0.1, 0.2, 0.3, 0.4]",
        "[0.1, 0.2, 0.3, 0.4",
        "0.1, 0.2, 0.3, 0.4",
        "[0.1, 0.2, 0.3]",
        "[0.1, 0.2, 0.3, 0.4, 0.5]",
        "[0.3, 0.2, 0.1, 0.4]",
        "[0.1, 0.4, 0.3, 0.2]",
        "[0.1, 0.2, 0.1, 0.4]",
        "[0.1, 0.2, 1.3, 0.4]",
        "[-0.1, 0.2, 0.3, 0.4]",
        "[100, 200, 300, 400]",
        "[0.1 0.2 0.3 0.4]",
    ],
)
def test_decimal_is_strict(text):
    assert Decimal().decode(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[100, 200, 300, 400] it is",
        "[100, 200, 300, 400",
        "[100, 200, 300]",
        "[300, 200, 100, 400]",
        "[100, 200, 100, 400]",
        "[100, 200, 300, 1001]",
        "[0.1, 0.2, 0.3, 0.4]",
        "[-1, 200, 300, 400]",
    ],
)
def test_int1000_is_strict(text):
    assert Int1000().decode(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<loc0001><loc0002><loc0003>",
        "<loc0001><loc0002><loc0003><loc0004><loc0005>",
        "<loc0001><loc0002><loc0003><loc0004> car",
        "<loc0003><loc0002><loc0001><loc0004>",
        "<loc0001><loc0002><loc0001><loc0004>",
        "<loc0001><loc0002><loc0003><loc1024>",
        "<loc1><loc2><loc3><loc4>",
        "[100, 200, 300, 400]",
    ],
)
def test_loc_is_strict(text):
    assert Loc().decode(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<cell0001><wide02>",
        "<cell0001><wide02><high03><high03>",
        "<cell0001><high02><wide03>",
        "<cell0001><wide02><high03> car",
        "<cell0576><wide02><high03>",
        "<cell0001><wide24><high03>",
        "<cell0001><wide02><high24>",
        "<cell1><wide2><high3>",
        "<loc0001><loc0002><loc0003><loc0004>",
        "[100, 200, 300, 400]",
    ],
)
def test_cell_is_strict(text):
    assert Cell(24).decode(text) is None


def test_a_cell_keeps_most_of_a_box():
    rng = np.random.default_rng(0)
    sizes = rng.uniform(0.15, 0.5, (500, 2))
    corners = rng.uniform(0, 1 - sizes)
    for low, high in zip(corners, corners + sizes, strict=True):
        found = np.array(Cell(24).decode(Cell(24).encode([*low, *high])))
        overlap = np.prod(np.minimum(found[2:], high) - np.maximum(found[:2], low))
        assert overlap / (np.prod(found[2:] - found[:2]) + np.prod(high - low) - overlap) > 0.5


def test_a_side_as_long_as_the_picture_is_written_in_one_way():
    codec, whole = Cell(24), Cell(24).encode([0, 0, 1, 1])
    assert codec.encode([0, 0, 0.97, 0.98]) == codec.encode([0.03, 0.02, 1, 1]) == whole == "<cell0300><wide23><high23>"


def test_cells_are_counted_row_by_row():
    codec = Cell(5)
    for index, (column, row) in enumerate(codec.positions[:25].astype(int)):
        x, y = (column + 0.5) / 5, (row + 0.5) / 5
        assert codec.encode([x - 0.05, y - 0.05, x + 0.05, y + 0.05]).startswith(codec.tokens[index])


@pytest.mark.parametrize("spec", ["decimal", "int1000"])
@pytest.mark.parametrize(
    "text", ["[٠.١, ٠.٢, ٠.٣, ٠.٤]", "[١٠٠, ٢٠٠, ٣٠٠, ٤٠٠]", "<loc٠٠٠١><loc0002><loc0003><loc0004>"]
)
def test_digits_of_other_scripts_are_not_numbers(spec, text):
    assert get_codec(spec).decode(text) is None
    assert Loc().decode(text) is None


@pytest.mark.parametrize("spec", SPECS)
def test_white_space_around_the_answer_is_no_error(spec):
    codec = get_codec(spec)
    text = codec.encode([0.1, 0.2, 0.3, 0.4])
    assert codec.decode(f" {text}\n") == codec.decode(text) is not None


@pytest.mark.parametrize("spec", SPECS)
def test_a_codec_is_found_again_by_its_spec(spec):
    codec = get_codec(spec)
    assert codec.spec == spec and get_codec(codec.spec) == codec


@pytest.mark.parametrize("spec", ["", "decimals", "loc:", "loc:1", "loc:10000", "loc:x", "LOC"])
def test_unknown_specs_are_refused(spec):
    with pytest.raises(ValueError, match="unknown coordinate codec"):
        get_codec(spec)


def test_tokens():
    assert Decimal().tokens == Int1000().tokens == []
    assert len(Loc().tokens) == 1024 and Loc().tokens[7] == "<loc0007>"
    codec = Loc(64)
    assert set(codec.encode([0, 0.3, 0.6, 1]).replace("><", "> <").split()) <= set(codec.tokens)


@pytest.mark.parametrize("codec", [Decimal(), Int1000(), Loc()])
def test_a_box_without_height_is_none(codec):
    assert codec.decode(codec.encode([0.1, 0.2, 0.3, 0.2])) is None
    assert codec.decode(codec.encode([0.1, 0.4, 0.3, 0.2])) is None


def test_the_fewest_and_the_most_bins():
    assert get_codec("loc:2") == Loc(2) and get_codec("loc:9999") == Loc(9999)
