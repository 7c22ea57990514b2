import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from granvit import geometry
from granvit.geometry import View, area, as_boxes, clip, clip_box, hull, intersection, iou, rotated_back, whole_pixels

CANVAS = 224
sides = st.integers(1, 5000)
canvases = st.sampled_from([64, 224, 384, 512])


@st.composite
def views(draw):
    """Any view of any image: letterbox, squash or window."""
    width, height, canvas = draw(sides), draw(sides), draw(canvases)
    kind = draw(st.sampled_from(["letterbox", "squash", "window"]))
    if kind != "window":
        return View.fit(kind, (width, height), canvas)
    x1, y1 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    x2, y2 = draw(st.integers(x1 + 1, width)), draw(st.integers(y1 + 1, height))
    return View.window((x1, y1, x2, y2), canvas)


@st.composite
def views_and_boxes(draw):
    """A view and a box of positive size inside its source rectangle, in image pixels."""
    view = draw(views())
    x1, y1, x2, y2 = view.source
    a, c = sorted([draw(st.floats(0, 1)), draw(st.floats(0, 1))])
    b, d = sorted([draw(st.floats(0, 1)), draw(st.floats(0, 1))])
    w, h = x2 - x1, y2 - y1
    return view, np.array([x1 + a * w, y1 + b * h, x1 + c * w, y1 + d * h])


def photo(width, height, seed=0):
    """Smooth colours with noise, so that an offset of one pixel or another resampling filter shows."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 11)], -1) * 90 + 128
    return Image.fromarray((waves + rng.integers(-30, 30, waves.shape)).clip(0, 255).astype(np.uint8))


# --- boxes ---------------------------------------------------------------------------------------------------------


def test_as_boxes_shapes():
    assert as_boxes([1, 2, 3, 4]).shape == (1, 4)
    assert as_boxes([[1, 2, 3, 4]] * 3).shape == (3, 4)
    assert as_boxes([]).shape == (0, 4)


@pytest.mark.parametrize("wrong", [[1, 2, 3], [[1, 2], [3, 4]], np.zeros((2, 2, 4)), 5, None])
def test_as_boxes_refuses_other_shapes(wrong):
    with pytest.raises(ValueError, match="shape"):
        as_boxes(wrong)


def test_area_of_inverted_box_is_zero():
    assert area([[0, 0, 4, 5], [4, 0, 0, 5], [4, 5, 0, 0]]).tolist() == [20, 0, 0]


def test_clip_cuts_to_the_image():
    assert clip([-5, -5, 30, 30], 20, 10).tolist() == [[0, 0, 20, 10]]


@given(st.lists(st.floats(-1e4, 1e4), min_size=4, max_size=4), st.integers(1, 500), st.integers(1, 500))
def test_a_single_box_is_clipped_as_many_are(box, width, height):
    assert list(clip_box(box, width, height)) == clip(box, width, height)[0].tolist()


def test_whole_pixels_hold_the_box_and_stay_in_the_image():
    assert whole_pixels([9.5, 20.0, 110.1, 120.9], 300, 200) == (9, 20, 111, 121)
    assert whole_pixels([-20, 150.5, 80, 260], 300, 200) == (0, 150, 80, 200)
    x1, _, x2, _ = whole_pixels([310, 5, 320, 9], 300, 200)
    assert x1 == x2


def test_iou_by_hand():
    a = [[0, 0, 10, 10]]
    b = [[0, 0, 10, 10], [5, 0, 15, 10], [0, 0, 5, 10], [10, 0, 20, 10], [2, 2, 4, 4]]
    np.testing.assert_allclose(iou(a, b), [[1, 50 / 150, 0.5, 0, 0.04]])
    np.testing.assert_allclose(intersection(a, b), [[100, 50, 50, 0, 4]])


def test_iou_of_empty_boxes_is_zero_and_shapes_hold():
    assert iou([3, 3, 3, 3], [3, 3, 3, 3]).tolist() == [[0]]
    assert iou([], [[0, 0, 1, 1]]).shape == (0, 1)
    assert iou([[0, 0, 1, 1]] * 2, [[0, 0, 1, 1]] * 3).shape == (2, 3)


# --- views: boxes ----------------------------------------------------------------------------------------------------


@given(views_and_boxes())
def test_canvas_round_trip(case):
    view, box = case
    np.testing.assert_allclose(view.to_image(view.to_canvas(box))[0], box, rtol=0, atol=1e-6)


@given(views_and_boxes())
def test_whole_canvas_pixels_cost_at_most_half_a_canvas_pixel(case):
    view, box = case
    whole = np.round(view.to_canvas(box))
    again = view.to_canvas(view.to_image(whole))
    assert np.abs(again - view.to_canvas(box)).max() <= 0.5 + 1e-6


@given(views_and_boxes())
def test_boxes_of_the_source_lie_on_the_canvas(case):
    view, box = case
    on_canvas = view.to_canvas(box)[0]
    assert (on_canvas >= -1e-6).all() and (on_canvas <= view.canvas[0] + 1e-6).all()


@given(views_and_boxes(), st.sampled_from(["image", "canvas"]))
def test_relative_round_trip(case, frame):
    view, box = case
    relative = view.to_relative(box, frame)
    assert (relative >= 0).all() and (relative <= 1).all()
    np.testing.assert_allclose(view.from_relative(relative, frame)[0], box, rtol=0, atol=1e-6)


@given(views_and_boxes())
def test_canvas_frame_is_the_canvas_divided_by_its_side(case):
    view, box = case
    np.testing.assert_allclose(view.to_relative(box, "canvas"), view.to_canvas(box) / view.canvas[0], atol=1e-9)


@given(sides, sides, canvases)
def test_letterbox_keeps_the_aspect_ratio_and_squash_fills(width, height, canvas):
    whole = [0, 0, width, height]
    x1, y1, x2, y2 = View.letterbox((width, height), canvas).to_canvas(whole)[0]
    assert math.isclose((x2 - x1) * height, (y2 - y1) * width, rel_tol=1e-9)
    assert math.isclose(max(x2 - x1, y2 - y1), canvas)
    np.testing.assert_allclose(View.squash((width, height), canvas).to_canvas(whole), [[0, 0, canvas, canvas]])


def test_letterbox_by_hand():
    # 200x100 is padded by 50 above and below to 200x200, then halved.
    view = View.letterbox((200, 100), 100)
    assert view.to_canvas([20, 10, 60, 30]).tolist() == [[10, 30, 30, 40]]
    assert view.to_relative([20, 10, 60, 30], "image").tolist() == [[0.1, 0.1, 0.3, 0.3]]
    assert view.to_relative([20, 10, 60, 30], "canvas").tolist() == [[0.1, 0.3, 0.3, 0.4]]


def test_boxes_outside_the_frame_are_cut():
    view = View.window((10, 20, 110, 70), 100)
    assert view.to_relative([0, 0, 60, 45], "image").tolist() == [[0, 0, 0.5, 0.5]]
    # The padding above the window belongs to the canvas but not to the picture.
    assert view.from_relative([0, 0, 1, 1], "canvas").tolist() == [[10, 20, 110, 70]]


def test_visible_share():
    view = View.window((0, 0, 10, 10), 32)
    np.testing.assert_allclose(
        view.visible([[0, 0, 5, 5], [5, 0, 15, 10], [20, 20, 30, 30], [3, 3, 3, 3]]), [1, 0.5, 0, 0]
    )


def test_empty_window_is_refused():
    with pytest.raises(ValueError, match="empty"):
        View.window((10, 10, 10, 20), 64)


# --- views: pictures -------------------------------------------------------------------------------------------------

SIZES = [(640, 480), (480, 641), (301, 200), (100, 37), (224, 224), (90, 90), (5, 300)]


@pytest.mark.parametrize("size", SIZES)
def test_letterbox_is_the_stock_llava_picture(size):
    image = photo(*size)
    stock = LlavaImageProcessorPil(
        do_pad=True,
        do_center_crop=False,
        do_rescale=False,
        do_normalize=False,
        size={"shortest_edge": CANVAS},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    expected = np.asarray(stock(image)["pixel_values"][0]).transpose(1, 2, 0)
    np.testing.assert_array_equal(np.asarray(View.letterbox(size, CANVAS).apply(image)), expected)


@pytest.mark.parametrize("size", SIZES)
def test_squash_is_the_stock_siglip_picture(size):
    image = photo(*size)
    stock = SiglipImageProcessorPil(
        do_rescale=False,
        do_normalize=False,
        size={"height": CANVAS, "width": CANVAS},
        resample=Image.Resampling.BICUBIC,
    )
    expected = np.asarray(stock(image)["pixel_values"][0]).transpose(1, 2, 0)
    np.testing.assert_array_equal(np.asarray(View.squash(size, CANVAS).apply(image)), expected)


@pytest.mark.parametrize(
    ("size", "view"),
    [
        ((640, 480), View.letterbox((640, 480), 256)),
        ((333, 500), View.letterbox((333, 500), 256)),
        ((640, 480), View.squash((640, 480), 256)),
        ((640, 480), View.window((100, 50, 500, 450), 256)),
        ((640, 480), View.window((37, 120, 437, 260), 512)),
    ],
)
def test_a_drawn_rectangle_lands_where_its_box_says(size, view):
    box = np.array([150, 130, 300, 240])
    image = Image.new("RGB", size, "black")
    # PIL includes the right and bottom edge; boxes do not.
    ImageDraw.Draw(image).rectangle((150, 130, 299, 239), fill="white")
    canvas = np.asarray(view.apply(image, fill=(0, 0, 0)))[..., 0] > 127
    rows, columns = np.flatnonzero(canvas.any(1)), np.flatnonzero(canvas.any(0))
    found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    assert np.abs(found - view.to_canvas(box)[0]).max() <= 1


@pytest.mark.parametrize("size", [(700, 9), (9, 700), (640, 480), (301, 200), (CANVAS, 3)])
@pytest.mark.parametrize("largest", [1, 5_000, 40_000])
def test_a_strip_is_shown_pixel_for_pixel_without_its_square(monkeypatch, size, largest):
    view, image = View.letterbox(size, CANVAS), photo(*size)
    expected = np.asarray(view.apply(image, fill=(9, 80, 200)))
    monkeypatch.setattr(geometry, "_LARGEST_SQUARE", largest)
    np.testing.assert_array_equal(np.asarray(view.apply(image, fill=(9, 80, 200))), expected)


def test_a_strip_whose_square_is_larger_than_memory_is_shown():
    image = Image.new("RGB", (1_000_000, 2), "white")
    canvas = np.asarray(View.letterbox(image.size, 64).apply(image, fill=(9, 8, 7)))
    assert canvas.shape == (64, 64, 3) and canvas[0, 0].tolist() == canvas[63, 63].tolist() == [9, 8, 7]


def test_padding_takes_the_fill_colour():
    canvas = np.asarray(View.letterbox((200, 100), 100).apply(Image.new("RGB", (200, 100), "white"), fill=(9, 8, 7)))
    assert canvas[0, 0].tolist() == [9, 8, 7] and canvas[50, 50].tolist() == [255, 255, 255]


def test_a_view_of_another_image_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        View.letterbox((200, 100), 64).apply(Image.new("RGB", (100, 200)))


def test_window_covering_the_width_is_still_cropped():
    image = photo(100, 60)
    canvas = View.window((0, 10, 100, 60), 100).apply(image)
    np.testing.assert_array_equal(np.asarray(canvas)[25:75], np.asarray(image)[10:60])


# Outlines and lines of text


def test_the_hull_of_points_and_of_a_flat_polygon():
    assert geometry.hull([[3, 9], [1, 4], [7, 5]]) == (1, 4, 7, 9)
    assert geometry.hull([3, 9, 1, 4, 7, 5]) == (1, 4, 7, 9)


def test_a_stretch_of_a_line_by_hand():
    across = [[10, 20], [110, 20], [110, 40], [10, 40]]
    assert geometry.part_of_line(across, 0.2, 0.5).tolist() == [[30, 20], [60, 20], [60, 40], [30, 40]]
    down = [[20, 10], [40, 10], [40, 110], [20, 110]]
    assert geometry.part_of_line(down, 0.2, 0.5).tolist() == [[20, 30], [40, 30], [40, 60], [20, 60]]
    assert geometry.part_of_line(across, -1, 2).tolist() == across


@given(st.lists(st.tuples(*[st.integers(-3, 12)] * 4), max_size=6))
def test_the_covered_share_is_that_of_the_pixels(corners):
    boxes = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in corners]
    pixels = np.zeros((8, 10), bool)
    for x1, y1, x2, y2 in boxes:
        pixels[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = True
    assert geometry.covered_share(boxes, 10, 8) == pytest.approx(pixels.mean())


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_points_of_a_turned_picture_lie_on_it_as_it_was(turns):
    picture = np.zeros((30, 50), np.uint8)
    picture[4:10, 7:20] = 1
    turned = np.rot90(picture, turns)
    (top, bottom), (left, right) = ((found.min(), found.max() + 1) for found in np.nonzero(turned))
    corners = rotated_back([[left, top], [right, bottom]], turns, turned.shape[1], turned.shape[0])
    assert hull(corners) == (7, 4, 20, 10)


# --- boxes in pairs, in grids, elsewhere; views around a box --------------------------------------------------------


@given(st.lists(st.lists(st.floats(-50, 50), min_size=8, max_size=8), min_size=1, max_size=6))
def test_paired_iou_is_the_diagonal_of_all_pairs(rows):
    pairs = np.array(rows)
    a, b = pairs[:, :4], pairs[:, 4:]
    np.testing.assert_allclose(geometry.paired_iou(a, b), np.diag(iou(a, b)), atol=1e-12)


def test_centres_and_cells_by_hand():
    assert geometry.centres([[0, 2, 10, 8], [1, 1, 2, 4]]).tolist() == [[5, 5], [1.5, 2.5]]
    assert geometry.cells(2, 3).tolist() == [[0, 0, 3, 3], [3, 0, 6, 3], [0, 3, 3, 6], [3, 3, 6, 6]]
    assert geometry.cells(3, 1).tolist()[5] == [2, 1, 3, 2]


def test_a_box_elsewhere_overlaps_nothing_and_stays_in_the_image():
    rng, avoid = np.random.default_rng(0), [[0, 0, 60, 40], [70, 0, 100, 40]]
    boxes = np.array([geometry.free_box((3, 3, 23, 13), 100, 80, avoid, rng) for _ in range(200)])
    assert np.allclose(boxes[:, 2:] - boxes[:, :2], [20, 10])
    assert boxes[:, :2].min() >= 0 and (boxes[:, 2:] <= [100, 80]).all()
    assert not intersection(boxes, avoid).any()
    assert boxes[:, 0].min() < 10 and boxes[:, 2].max() > 90 and boxes[:, 3].max() > 75  # anywhere that is free
    assert geometry.free_box((0, 0, 20, 10), 100, 80, [[0, 0, 100, 80]], rng) is None


def test_a_line_is_written_downwards_where_its_longer_side_is_half_as_high_again_as_wide():
    narrowing = [[0, 0], [10, 0], [12, 18], [-2, 18]]  # 10 wide at the top, 14 at the bottom, 18 high
    assert geometry.part_of_line(narrowing, 0, 0.5).tolist() == [[0, 0], [5, 0], [5, 18], [-2, 18]]


def test_a_window_around_a_box_by_hand():
    assert View.window_around((40, 30, 60, 50), (200, 100), 40, 64).source == (30, 20, 70, 60)
    assert View.window_around((40, 30, 60, 50), (200, 100), 40, 64, (0.25, -0.1)).source == (40, 16, 80, 56)
    assert View.window_around((0, 0, 10, 10), (200, 100), 40, 64).source == (0, 0, 40, 40)  # cut at a corner
    assert View.window_around((190, 90, 200, 100), (200, 100), 40, 64).source == (160, 60, 200, 100)
    assert View.window_around((10, 10, 20, 20), (30, 100), 40, 64).source == (0, 0, 30, 40)  # a narrow image


def test_a_crop_fills_the_canvas_whatever_its_shape():
    view = View.crop((10, 20, 50, 30), 64)
    assert view.to_canvas([[10, 20, 50, 30], [20, 25, 30, 30]]).tolist() == [[0, 0, 64, 64], [16, 32, 32, 64]]


def test_a_fit_is_named():
    assert View.fit("letterbox", (40, 20), 64) == View.letterbox((40, 20), 64) != View.squash((40, 20), 64)
    assert View.fit("squash", (40, 20), 64) == View.squash((40, 20), 64)


def test_a_tiny_box_is_visible_too():
    view = View.window((10, 10, 20, 20), 64)
    assert view.visible([[11, 11, 11.5, 11.5], [9.5, 11, 10.5, 11.5], [1, 1, 1, 1]]).tolist() == [1, 0.5, 0]
