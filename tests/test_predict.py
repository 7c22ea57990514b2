import io

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import make_model

from granvit import predict
from granvit.errors import CheckpointError
from granvit.images import ImageError
from granvit.predict import Ask, GranViT
from granvit.questions import ask_box, ask_caption, ask_global

# Relative places of the tests lie on the borders of 16 bins; `loc` decodes to the centre of a bin.
HALF = 0.5 / 16


def photo(width=200, height=100, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


@pytest.fixture
def granvit():
    return GranViT(make_model())


@pytest.fixture
def scripted(monkeypatch):
    """Puts answers in the model's mouth; returns a function that does, and the record of what was asked."""
    asked = []

    def make(answers):
        script = iter(answers)

        def greedy(model, pixels, questions, longest):
            texts = [[model.dialog.tokenizer.decode(q) for q in rows] for rows in questions]
            asked.append((pixels.numpy(), texts))
            encode = model.dialog.tokenizer.encode
            return [[encode(next(script), add_special_tokens=False) for _ in rows] for rows in questions]

        monkeypatch.setattr(predict, "greedy", greedy)
        return asked

    return make


def as_asked(granvit, question):
    return granvit.model.dialog.tokenizer.decode(granvit.model.dialog.ask(question))


# --- the four calls --------------------------------------------------------------------------------------------------


def test_describe_asks_for_each_box_and_keeps_the_order(granvit, scripted):
    asked = scripted(["small red star", "tea", "ring"])
    boxes = [[100, 0, 200, 50], [0, 0, 200, 100], [25, 25, 50, 75]]
    assert granvit.describe(photo(), boxes) == ["small red star", "tea", "ring"]
    pixels, questions = asked[0]
    relative = [[0.5, 0, 1, 0.5], [0, 0, 1, 1], [0.125, 0.25, 0.25, 0.75]]
    assert questions == [[as_asked(granvit, ask_caption(box, granvit.model.codec)) for box in relative]]
    expected = granvit.model.view((200, 100)).apply(photo(), (127, 127, 127))
    np.testing.assert_array_equal(pixels, np.asarray(expected)[None])


def test_describe_no_box_and_one_box(granvit, scripted):
    scripted(["tea"])
    assert granvit.describe(photo(), []) == []
    assert granvit.describe(photo(), [10, 10, 50, 50]) == ["tea"]


@pytest.mark.parametrize(
    ("settings", "box"),
    [
        # 4, 8, 8, 12 of 16 bins, each decoded at its centre.
        (
            {"frame": "image"},
            [200 * (4 / 16 + HALF), 100 * (8 / 16 + HALF), 200 * (8 / 16 + HALF), 100 * (12 / 16 + HALF)],
        ),
        # The canvas stands for 200 x 200 pixels, with 50 of padding above the picture.
        ({"frame": "canvas"}, [200 * (4 / 16 + HALF), 200 * (8 / 16 + HALF) - 50, 200 * (8 / 16 + HALF), 100]),
        (
            {"fit": "squash"},
            [200 * (4 / 16 + HALF), 100 * (8 / 16 + HALF), 200 * (8 / 16 + HALF), 100 * (12 / 16 + HALF)],
        ),
    ],
)
def test_locate_gives_pixels_of_the_picture(scripted, settings, box):
    granvit = GranViT(make_model(**settings))
    asked = scripted(["<loc0004><loc0008><loc0008><loc0012>"])
    found = granvit.locate(photo(), ["small red star"])
    np.testing.assert_allclose(found, [box])
    assert asked[0][1] == [[as_asked(granvit, ask_box("small red star"))]]


def test_locate_gives_none_for_what_is_no_box(granvit, scripted):
    answers = [
        "tea",
        "<loc0004><loc0008><loc0008>",
        "<loc0008><loc0008><loc0004><loc0012>",
        "<loc0000><loc0000><loc0015><loc0015>",
        "",
        "<loc0000><loc0000><loc0015><loc0015> tea",
    ]
    scripted(answers)
    assert granvit.locate(photo(), ["a"] * 6) == [None, None, None, (0, 0, 200, 100), None, None]


def test_locate_gives_none_for_a_box_in_the_padding(scripted):
    granvit = GranViT(make_model(frame="canvas"))
    scripted(["<loc0000><loc0000><loc0015><loc0002>"])
    assert granvit.locate(photo(), ["tea"]) == [None]


def test_read_with_a_window_looks_at_each_box_from_near(granvit, scripted):
    asked = scripted(["one", "two"])
    picture = photo(400, 300)
    assert granvit.read(picture, [[300, 100, 332, 116], [0, 0, 16, 16]], window=64) == ["one", "two"]
    pixels, questions = asked[0]
    # Windows of 64 pixels, the canvas' own size: nothing is resampled.
    np.testing.assert_array_equal(pixels[0], np.asarray(picture)[76:140, 284:348])
    np.testing.assert_array_equal(pixels[1], np.asarray(picture)[:64, :64])
    relative = [[0.25, 24 / 64, 0.75, 40 / 64], [0, 0, 0.25, 0.25]]
    assert questions == [[as_asked(granvit, ask_caption(box, granvit.model.codec))] for box in relative]


def test_read_without_a_window_is_describe(granvit):
    boxes = [[10, 10, 90, 90], [100, 0, 150, 50]]
    assert granvit.read(photo(), boxes) == granvit.describe(photo(), boxes)


def test_caption_is_one_text(granvit, scripted):
    asked = scripted(["two green rings"])
    assert granvit.caption(photo()) == "two green rings"
    assert asked[0][1] == [[as_asked(granvit, ask_global())]]


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ([50, 10, 20, 40], "x1 < x2"),
        ([10, 10, 10, 40], "x1 < x2"),
        ([10, 10, float("nan"), 40], "x1 < x2"),
        ([10, 10, float("inf"), 40], "x1 < x2"),
        ([200, 10, 250, 40], "outside the picture of 200x100"),
        ([10, -50, 20, 0], "outside"),
        ([1, 2, 3], "shape"),
    ],
)
def test_bad_boxes_are_refused(granvit, box, said):
    with pytest.raises(ValueError, match=said):
        granvit.describe(photo(), box)
    with pytest.raises(ValueError, match=said):
        granvit.read(photo(), box, window=32)


@pytest.mark.parametrize("phrase", ["", "  "])
def test_an_empty_phrase_is_refused(granvit, phrase):
    with pytest.raises(ValueError, match="empty phrase"):
        granvit.locate(photo(), ["tea", phrase])


def test_what_is_no_picture_is_refused(granvit, tmp_path):
    with pytest.raises(ImageError):
        granvit.caption(b"not a picture")
    with pytest.raises(FileNotFoundError):
        granvit.caption(tmp_path / "nowhere.png")


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        GranViT.load(tmp_path)


# --- the model behind ------------------------------------------------------------------------------------------------


def test_paths_bytes_and_pictures_of_any_mode_are_the_same_picture(granvit, tmp_path):
    picture = photo()
    picture.save(tmp_path / "picture.png")
    boxes = [[10, 10, 150, 90]]
    expected = granvit.describe(picture, boxes)
    given = [tmp_path / "picture.png", str(tmp_path / "picture.png"), (tmp_path / "picture.png").read_bytes()]
    assert all(granvit.describe(g, boxes) == expected for g in [*given, picture.convert("RGBA")])


def test_boxes_are_pixels_of_the_upright_picture(granvit, scripted):
    asked = scripted(["tea"])
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: the upright picture is 100 wide and 200 high
    photo().save(file, "JPEG", exif=exif)
    granvit.describe(file.getvalue(), [0, 100, 50, 200])
    relative = [0, 0.5, 0.5, 1]
    assert asked[0][1] == [[as_asked(granvit, ask_caption(relative, granvit.model.codec))]]


def test_many_boxes_share_one_look_at_the_picture(granvit, monkeypatch):
    looks = []
    tower = granvit.model.llava.model.vision_tower
    tower.get_submodule("embeddings").register_forward_hook(lambda m, args, out: looks.append(len(args[0])))
    boxes = [[i, i, i + 30, i + 20] for i in range(40)]
    answers = granvit.describe(photo(), boxes)
    assert len(answers) == 40 and looks == [1]
    looks.clear()
    # Pictures in groups of at most so many questions; the groups change no answer.
    monkeypatch.setattr(granvit, "rows", 5)
    view = granvit.model.view((200, 100))
    asks = [Ask(photo(), view, granvit.box_questions(view, boxes[i : i + 2])) for i in range(0, 8, 2)]
    assert sum(granvit.answer(asks, predict.LONGEST_DESCRIPTION), []) == answers[:8]
    assert looks == [2, 2]


def test_a_checkpoint_and_the_run_that_holds_it_answer_alike(granvit, tmp_path):
    granvit.model.save(tmp_path / "run" / "checkpoint")
    boxes = [[10, 10, 150, 90], [0, 0, 40, 40]]
    expected = granvit.describe(photo(), boxes)
    assert len(set(expected)) == 2 and all(expected)
    for folder in (tmp_path / "run", str(tmp_path / "run" / "checkpoint")):
        loaded = GranViT.load(folder)
        assert loaded.describe(photo(), boxes) == expected
        assert loaded.model.device == torch.device("cpu")
