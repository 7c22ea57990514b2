import copy
import io
import json
import os
import pickle

import numpy as np
import pytest
import torch
from helpers.odd_pictures import odd_pictures
from helpers.tiny_model import make_model
from PIL import Image

from granvit import predict
from granvit.errors import CheckpointError, GranvitError
from granvit.images import ImageError, open_picture
from granvit.model.generate import Said
from granvit.predict import GranViT, ImageQuestions, checked_boxes
from granvit.questions import ask_about as written_about
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
    """Puts answers in the model's mouth; returns a function that does, and the record of what was asked.

    An answer is a text, or (text, the probabilities of its tokens and its end).
    """
    asked = []

    def make(answers):
        script = iter(answers)

        def greedy_answers(model, pixels, questions, longest, rows, views):
            texts = [[model.dialog.tokenizer.decode(q) for q in rows] for rows in questions]
            asked.append((pixels.numpy(), texts))
            return [[said(model, next(script)) for _ in rows] for rows in questions]

        def said(model, answer):
            """A text, all of whose tokens are as good as certain, or a text with each token's probability."""
            text, shares = answer if isinstance(answer, tuple) else (answer, None)
            tokens = model.dialog.tokenizer.encode(text, add_special_tokens=False)
            return Said(tokens, [1.0] * (len(tokens) + 1) if shares is None else shares)

        monkeypatch.setattr(predict, "greedy_answers", greedy_answers)
        return asked

    return make


def as_asked(granvit, question):
    return granvit.model.dialog.tokenizer.decode(granvit.model.dialog.ask(question))


def ask_about(granvit, picture, boxes):
    view = granvit.model.view(picture.size)
    return ImageQuestions(picture, view, granvit.box_questions(view, boxes))


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


def test_a_window_is_as_large_as_the_box_in_it(granvit, scripted):
    """Cut text would be read as another text."""
    for box in ([10, 40, 190, 60], [3.4, 10, 67.9, 20], [0, 0, 200, 100]):
        [ask] = granvit.about_boxes(photo(), np.array([box]), window=50)
        assert ask.view.visible([box]) == 1 and max(ask.view.padded) <= max(50, 182 if box[0] == 10 else 201)
    [ask] = granvit.about_boxes(photo(), np.array([[10, 40, 59, 60]]), window=50)
    assert ask.view.source[2] - ask.view.source[0] == 50


def test_read_without_a_window_is_describe(granvit):
    boxes = [[10, 10, 90, 90], [100, 0, 150, 50]]
    assert granvit.read(photo(), boxes) == granvit.describe(photo(), boxes)


def test_caption_is_one_text(granvit, scripted):
    asked = scripted(["two green rings"])
    assert granvit.caption(photo()) == "two green rings"
    assert asked[0][1] == [[as_asked(granvit, ask_global())]]


def test_the_confidence_of_a_text_is_the_mean_of_its_tokens_and_its_end(granvit, scripted):
    scripted([("tea", [0.5, 0.25, 0.75]), ("tea", [0.5, 0.1]), ("", [0.75]), ("a<loc0001>", [1.0, 0.5, 0.0, 0.5])])
    encode = granvit.model.dialog.tokenizer.encode
    assert [len(encode(text, add_special_tokens=False)) for text in ("tea", "a<loc0001>")] == [2, 3]
    texts = granvit.describe(photo(), [[9, 9, 90, 90]] * 4)
    # The second was cut off: there is no end. A location token that isn't shown was said all the same.
    assert texts == ["tea", "tea", "", "a"]
    assert [text.confidence for text in texts] == pytest.approx([0.5, 0.3, 0.75, 0.5])


@pytest.mark.parametrize("codec", ["loc:16", "decimal", "int1000"])
def test_the_confidence_of_a_box_is_the_mean_of_its_numbers(scripted, codec):
    granvit = GranViT(make_model(codec=codec))
    box = granvit.model.codec.encode([0.25, 0.25, 0.5, 0.75])
    tokenizer = granvit.model.dialog.tokenizer
    tokens = tokenizer.encode(box, add_special_tokens=False)
    numbers = [any(c.isdigit() for c in tokenizer.decode([token])) for token in tokens]
    assert sum(numbers) >= 4 and (codec == "loc:16") == all(numbers)
    shares = [0.25 if number else 1.0 for number in numbers] + [1.0]
    scripted([(box, shares)] * 2 + [(box + " tea", [0.5, *shares])])
    sure, unsure, no_box = [granvit.locate(photo(), ["a"], least) for least in (0.25, 0.26, 0.0)]
    assert sure[0] is not None and sure[0].confidence == pytest.approx(0.25) and unsure == [None] == no_box


def test_a_free_question_goes_through_the_template_as_it_stands(granvit, scripted):
    asked = scripted([("three", [0.5, 0.5, 0.5, 0.5, 0.5, 0.5]), "<loc0004><loc0008><loc0008><loc0012>"])
    answers = granvit.ask(photo(), ["How many <image> stars?", "Where?"])
    assert asked[0][1] == [[as_asked(granvit, question) for question in ("How many <image> stars?", "Where?")]]
    assert answers == ["three", "<loc0004><loc0008><loc0008><loc0012>"] and answers[0].confidence == 0.5
    assert answers[0].box is None
    np.testing.assert_allclose(
        answers[1].box, [200 * (4 / 16 + HALF), 100 * (8 / 16 + HALF), 200 * (8 / 16 + HALF), 100 * (12 / 16 + HALF)]
    )


def test_a_free_question_about_boxes(granvit, scripted):
    """Boxes are written in the checkpoint's codec, as tokens; what the question spells stays text."""
    asked = scripted(["tea"] * 6)
    boxes = [[100, 0, 200, 50], [0, 0, 200, 100]]
    assert granvit.ask(photo(), ["Is {box} or <loc0003> red?", "What?"], boxes) == ["tea"] * 4
    written = [granvit.model.codec.encode(box) for box in ([0.5, 0, 1, 0.5], [0, 0, 1, 1])]
    about = " Answer about the content contained within the normalized bounding box coordinates "
    said = [f"Is {box} or <loc0003> red?" for box in written] + [f"What?{about}{box}" for box in written]
    for text, shown in zip(said, asked[0][1][0], strict=True):
        assert text in shown
    ids = granvit.model.dialog.ask(written_about("Is {box} or <loc0003> red?", [0.5, 0, 1, 0.5], granvit.model.codec))
    places = granvit.model.dialog.tokenizer.convert_tokens_to_ids(granvit.model.codec.tokens)
    assert [granvit.model.dialog.tokenizer.decode([i]) for i in ids if i in places] == [
        f"<loc{i:04d}>" for i in (8, 0, 15, 8)
    ]
    assert granvit.ask(photo(), "What?", [0.5, 0, 1, 0.5], normalized=True) == ["tea"]
    assert asked[1][1] == [[asked[0][1][0][2]]]
    assert granvit.ask(photo(), "What?", []) == []


@pytest.mark.parametrize(
    ("question", "said"),
    [("", "an empty question"), (["a", " "], "an empty question"), ("\udcff", "not valid Unicode")],
)
def test_questions_that_cannot_be_asked_are_refused(granvit, question, said):
    with pytest.raises(GranvitError, match=said):
        granvit.ask(photo(), question)


def test_what_was_said_is_a_str_and_what_was_found_a_tuple(granvit, scripted):
    scripted([("tea", [0.5] * 4), "<loc0000><loc0000><loc0015><loc0015>"])
    [text], [place] = granvit.describe(photo(), [9, 9, 90, 90]), granvit.locate(photo(), ["a"])
    for value in (text, place):
        for copied in (copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
            assert copied == value and copied.confidence == value.confidence
    assert json.dumps([text, place]) == '["tea", [0.0, 0.0, 200.0, 100.0]]'


def test_location_tokens_are_no_text(granvit, scripted):
    """A place in a text answer is left out; what `answer` gives is as it was said, and a box is a box."""
    scripted(["2 objects:<loc0006>", "<loc0000><loc0003>", "a<loc0001> red star", "<loc0006> tea"])
    assert granvit.describe(photo(), [[9, 9, 90, 90]] * 2) == ["2 objects:", ""]
    assert granvit.read(photo(), [[9, 9, 90, 90]], window=50) == ["a red star"]
    assert granvit.caption(photo()) == "tea"
    scripted(["2 objects:<loc0006>"])
    assert granvit.answer([ask_about(granvit, photo(), [[9, 9, 90, 90]])], 9) == [["2 objects:<loc0006>"]]


def test_a_phrase_may_spell_any_control_token(granvit, scripted):
    """The question is the same but for the phrase, and no token of it is a control token."""
    asked, tokens = scripted(["tea"] * 4), granvit.model.dialog.tokenizer.get_vocab()
    phrases = ["<image>", "a<|end|>b", "<loc0003>", "<|answer|>"]
    assert granvit.locate(photo(), phrases) == [None] * 4
    assert asked[0][1] == [[as_asked(granvit, ask_box(phrase)) for phrase in phrases]]
    control = {i for token, i in tokens.items() if token.startswith("<") and len(token) > 1}
    for phrase in phrases:
        ids = granvit.model.dialog.ask(ask_box(phrase))
        assert [i for i in ids if i in control] == [tokens["<|answer|>"]]  # the template's own, at the end
        assert ids[-1] == tokens["<|answer|>"] and phrase in granvit.model.dialog.tokenizer.decode(ids)


def test_boxes_in_shares_of_the_picture(granvit, scripted):
    asked = scripted(["tea"] * 6)
    pixels, shares = [[20, 20, 100, 60]], [[0.1, 0.2, 0.5, 0.6]]
    for call in (granvit.describe, granvit.read):
        call(photo(), pixels)
        call(photo(), shares, normalized=True)
    granvit.read(photo(), pixels, window=50)
    granvit.read(photo(), shares, window=50, normalized=True)
    assert asked[0][1] == asked[1][1] == asked[2][1] == asked[3][1] and asked[4][1] == asked[5][1]
    np.testing.assert_array_equal(asked[4][0], asked[5][0])
    with pytest.raises(GranvitError, match=r"boxes are in pixels; for shares of the picture add --normalized"):
        granvit.describe(photo(), shares)


def test_attention_is_of_one_box_and_an_answer_has_a_token(granvit):
    for boxes in ([], [[10, 10, 90, 90]] * 2):
        with pytest.raises(GranvitError, match=f"one box at a time, not of {len(boxes)}"):
            granvit.attend(photo(), boxes)
    with pytest.raises(GranvitError, match="max_tokens 0"):
        granvit.ask(photo(), "What?", max_tokens=0)


def test_boxes_are_cut_to_the_picture():
    given = [[-50, -1, 20, 200], [150, 20, 200.5, 60], [0, 0, 2, 2]]
    assert checked_boxes(given, (200, 100)).tolist() == [[0, 0, 20, 100], [150, 20, 200, 60], [0, 0, 2, 2]]
    assert checked_boxes([-0.5, 0.1, 0.25, 3], (200, 100), normalized=True).tolist() == [[0, 10, 50, 100]]


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
        ([[1, 2, 3, 4], [1, 2]], "rows of four numbers"),
        ("a box", "rows of four numbers"),
        ([0.1, 0.2, 0.5, 0.6], "normalized"),
        ([0, 0, 1, 1], "normalized"),
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


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ([0.5, 0.1, 0.2, 0.4], "x1 < x2"),
        ([1.0, 0.1, 1.5, 0.4], "as shares of it, lies outside the picture of 200x100"),
        ([10, 20, 60, 80], "as shares of it, lies outside"),
        ([0.1, 0.1, float("nan"), 0.4], "x1 < x2"),
    ],
)
def test_bad_shares_are_refused(granvit, box, said):
    with pytest.raises(GranvitError, match=said):
        granvit.describe(photo(), box, normalized=True)


@pytest.mark.parametrize(
    ("phrases", "said"),
    [
        (["red \udcff star"], r"the phrase 'red \\udcff star' is not valid Unicode"),
        ("tea", "a list of phrases"),
        (["tea " * 25_000], r"'tea tea .*'... makes a question of 50003 tokens, at most 495 are read"),
    ],
)
def test_phrases_that_cannot_be_asked_are_refused(granvit, phrases, said):
    with pytest.raises(GranvitError, match=said):
        granvit.locate(photo(), phrases)


def test_a_question_has_a_limit_where_the_language_model_has_none_to_speak_of(granvit):
    granvit.model.llava.config.text_config.max_position_embeddings = 1 << 20
    with pytest.raises(GranvitError, match="at most 4096 are read"):
        granvit.locate(photo(), ["tea " * 5_000])


def test_numbers_that_are_not_finite_are_no_answer(granvit, tmp_path):
    """A model whose every logit is NaN, and one that breaks on the second of two pictures only."""
    picture = photo()
    picture.save(tmp_path / "second.png")
    embed = granvit.model.embed
    dark = photo(seed=3)
    broken = torch.from_numpy(np.asarray(granvit.model.view(dark.size).apply(dark, granvit.model.fill)).copy())

    def breaks(pixels):
        found = embed(pixels)
        return torch.where((pixels == broken).all(3).all(2).all(1)[:, None, None], torch.nan, found)

    granvit.model.embed = breaks
    asks = [ask_about(granvit, p, [[9, 9, 90, 90]] * 3) for p in (picture, dark)]
    asks[1].name = "dark.png"
    assert len(granvit.answer(asks[:1], 5)[0]) == 3
    with pytest.raises(GranvitError, match=r"^dark.png: the model's numbers are not finite"):
        granvit.answer(asks, 5)
    granvit.model.embed = embed
    with torch.no_grad():
        granvit.model.llava.lm_head.weight[3] = torch.inf
    with pytest.raises(GranvitError, match=r"second.png: the model's numbers are not finite"):
        granvit.caption(tmp_path / "second.png")


@pytest.mark.parametrize("path", ["a\ud800.png", "/dev/null"])
def test_a_path_that_can_be_no_picture_is_refused(granvit, path):
    with pytest.raises(GranvitError, match=r"'a\\ud800.png'|/dev/null"):
        granvit.caption(path)


def test_a_pipe_is_not_waited_for(granvit, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(GranvitError, match="pipe.png: not a regular file"):
        granvit.caption(tmp_path / "pipe.png")


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


@pytest.mark.parametrize("kind", odd_pictures())
def test_a_picture_is_the_same_from_a_path_from_bytes_and_opened(granvit, scripted, tmp_path, kind):
    ending, image, options = odd_pictures()[kind]
    path = tmp_path / f"picture{ending}"
    image.save(path, **options)
    asked = scripted(["tea"] * 5)
    given = [path, str(path), path.read_bytes()]
    for picture in given:
        granvit.describe(picture, [9, 9, 90, 90])
    with Image.open(path) as opened:
        granvit.describe(opened, [9, 9, 90, 90])
    with Image.open(path) as opened:
        opened.load()
        granvit.describe(opened, [9, 9, 90, 90])
    for pixels, questions in asked:
        np.testing.assert_array_equal(pixels, asked[0][0])
        assert questions == asked[0][1]
    if kind.startswith("turned"):
        assert open_picture(path).size == (100, 200)


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
    # Pictures in groups of at most so many questions, the questions of one picture too; that changes no answer.
    monkeypatch.setattr(granvit, "rows", 5)
    assert granvit.describe(photo(), boxes) == answers and looks == [1]
    looks.clear()
    asks = [ask_about(granvit, photo(), boxes[i : i + 2]) for i in range(0, 8, 2)]
    assert granvit.texts(asks, predict.LONGEST_DESCRIPTION) == [answers[i : i + 2] for i in range(0, 8, 2)]
    assert looks == [2, 2]
    looks.clear()
    monkeypatch.setattr(predict, "_CANVASES", 3)  # of windows, each a look of its own
    monkeypatch.setattr(granvit, "rows", 256)
    windows = granvit.read(photo(), boxes[:8], window=50)
    assert looks == [3, 3, 2]
    monkeypatch.setattr(predict, "_CANVASES", 64)
    assert granvit.read(photo(), boxes[:8], window=50) == windows


def test_a_checkpoint_and_the_run_that_holds_it_answer_alike(granvit, tmp_path):
    granvit.model.save(tmp_path / "run" / "checkpoint")
    boxes = [[10, 10, 150, 90], [0, 0, 40, 40]]
    expected = granvit.describe(photo(), boxes)
    assert len(set(expected)) == 2 and all(expected)
    for folder in (tmp_path / "run", str(tmp_path / "run" / "checkpoint")):
        loaded = GranViT.load(folder)
        assert loaded.describe(photo(), boxes) == expected
        assert loaded.model.device == torch.device("cpu")
