import numpy as np
import pytest
from PIL import Image

from granvit.draw import PALETTE, colors_for, draw_boxes


def changed(before, after):
    """The bounding rectangle (x1, y1, x2, y2) of the pixels that differ."""
    different = (np.asarray(before.convert("RGB")) != np.asarray(after)).any(-1)
    rows, columns = np.flatnonzero(different.any(1)), np.flatnonzero(different.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def test_a_frame_without_label_covers_its_box_exactly():
    image = Image.new("RGB", (640, 480), "white")
    drawn = draw_boxes(image, [[100, 120, 300, 240]], [""], ["#ff0000"])
    assert changed(image, drawn) == (100, 120, 300, 240)
    assert drawn.getpixel((200, 180)) == (255, 255, 255)
    assert changed(image, draw_boxes(image, [[100, 120, 300, 240]], [""], ["#ff0000"], dashed=True))[:2] == (100, 120)


def test_dashes_leave_gaps():
    image = Image.new("RGB", (640, 480), "white")
    solid, dashed = (draw_boxes(image, [[50, 50, 600, 400]], [""], ["red"], dashed=d) for d in (False, True))
    inked = [(np.asarray(i) != 255).any(-1).sum() for i in (solid, dashed)]
    assert 0.3 < inked[1] / inked[0] < 0.7


def test_a_prediction_shows_even_on_top_of_its_true_box():
    image, box = Image.new("RGB", (640, 480), "black"), [50, 50, 600, 400]
    drawn = np.asarray(draw_boxes(image, [box, box], ["", ""], ["red", "red"], dashed=[False, True]))
    edge = drawn[50, 50:600]
    assert {tuple(c) for c in edge.tolist()} == {(255, 0, 0), (255, 255, 255)}


def test_the_given_picture_stays_as_it_is():
    image = Image.new("RGB", (640, 480), "white")
    draw_boxes(image, [[100, 120, 300, 240]], ["car"], ["red"])
    assert np.asarray(image).min() == 255


@pytest.mark.parametrize("size", [(40, 30), (320, 20), (224, 224), (640, 480), (4000, 3000)])
@pytest.mark.parametrize("corner", ["upper left", "lower right", "middle", "whole", "beyond"])
def test_a_label_is_legible_and_inside_the_picture(size, corner):
    width, height = size
    box = {
        "upper left": [0, 0, width / 8, height / 8],
        "lower right": [width * 7 / 8, height * 7 / 8, width, height],
        "middle": [width * 0.4, height * 0.5, width * 0.6, height * 0.6],
        "whole": [0, 0, width, height],
        "beyond": [width * 0.9, height * 0.9, width * 2, height * 2],
    }[corner]
    gray = Image.new("RGB", size, "gray")
    drawn = draw_boxes(gray, [box], ["HHHH"], ["black"])
    assert max(drawn.size) == max(320, *size)
    # Nothing else is white, and at the top there is room for every letter.
    top = draw_boxes(gray, [[width * 0.3, 0] * 2], ["HHHH"], ["black"])
    white, white_at_the_top = ((np.asarray(picture) > 200).sum() for picture in (drawn, top))
    assert white == white_at_the_top > 0


def test_long_labels_are_cut_to_the_picture():
    image = Image.new("RGB", (400, 300), "gray")
    drawn = draw_boxes(image, [[300, 100, 380, 200]], ["word " * 200], ["#123456"])
    assert drawn.size == (400, 300)
    letters = np.flatnonzero((np.asarray(drawn) > 200).all(-1).any(0))
    assert letters[0] < 20 and 360 < letters[-1] < 398


def test_small_pictures_are_enlarged_with_their_boxes():
    image = Image.new("RGB", (64, 32), "white")
    drawn = draw_boxes(image, [[16, 8, 48, 24]], [""], ["blue"])
    assert drawn.size == (320, 160)
    assert changed(Image.new("RGB", (320, 160), "white"), drawn) == (80, 40, 240, 120)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_any_mode(mode):
    assert draw_boxes(Image.new(mode, (64, 64)), [[1, 1, 9, 9]], ["x"], ["red"]).mode == "RGB"


def test_counts_must_agree():
    with pytest.raises(ValueError, match="2 boxes, 1 labels and 2 colors"):
        draw_boxes(Image.new("RGB", (9, 9)), [[0, 0, 1, 1]] * 2, ["a"], ["red", "red"])


def test_no_boxes_no_change():
    image = Image.new("RGB", (400, 300), "white")
    assert np.asarray(draw_boxes(image, [], [], [])).min() == 255


def test_colors():
    assert colors_for(2) == list(PALETTE[:2]) and len(colors_for(20)) == 20


def test_plates_hide_no_text_of_a_dense_page():
    """Lines in boxes that touch each other: the plates stand beside them, and each other."""
    image = Image.new("RGB", (720, 500), "white")
    boxes = [(60, 40 + 22 * i, 300, 60 + 22 * i) for i in range(18)]
    labels = [str(i + 1) for i in range(18)]
    plain = np.asarray(draw_boxes(image, boxes, [""] * 18, ["red"] * 18))
    labelled = np.asarray(draw_boxes(image, boxes, labels, ["red"] * 18))
    different = (plain != labelled).any(-1)
    assert different.any()
    for x1, y1, x2, y2 in boxes:
        assert not different[y1:y2, x1:x2].any()
