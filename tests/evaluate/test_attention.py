import numpy as np
import pytest
import torch
from helpers.tiny_model import make_model
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import LlavaForConditionalGeneration

from granvit.evaluate import attention
from granvit.evaluate.attention import (
    answer_attention,
    attend_box,
    attend_point,
    chance_inside,
    maps_of,
    point_query,
    share_inside,
    visible_part,
    words_of,
)
from granvit.evaluate.patch_encoder import EncoderOutput, PatchEncoder
from granvit.predict import GranViT


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def encoder(model):
    return PatchEncoder.of(model, "tiny")


def noise(size=(80, 50), seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def look_of(attention_pp, features_pd=None):
    """An encoder output with this attention in both heads of two layers."""
    weights = torch.tensor(attention_pp, dtype=torch.float32)
    features = torch.eye(len(weights)) if features_pd is None else torch.tensor(features_pd, dtype=torch.float32)
    return EncoderOutput(features[None], [weights.expand(1, 2, -1, -1)] * 2)


# --- maps ------------------------------------------------------------------------------------------------------------


def test_a_query_is_the_mean_of_its_patches_as_the_others_see_them():
    weights = [[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.0, 0.4, 0.6]]
    maps = maps_of(look_of(weights), np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.5, 0.0, 0.25]]))
    nan = np.nan
    expected = [[0.1, 0.3, 0.25], [nan, 0.3, 0.2], [0.0, (0.5 * 0.3 + 0.25 * 0.4) / 0.75, 0.2]]
    np.testing.assert_allclose(maps.attention, expected, atol=1e-6)
    np.testing.assert_allclose(maps.heads, np.broadcast_to(np.array(expected)[:, None, None], (3, 2, 2, 3)), atol=1e-6)


def test_the_last_layers_stand_for_the_encoder():
    one, two, three = (torch.full((1, 4, 3, 3), v) for v in (9.0, 0.2, 0.4))
    maps = maps_of(EncoderOutput(torch.eye(3)[None], [one, two, three]), np.ones((1, 3)))
    np.testing.assert_allclose(maps.attention, 0.3, atol=1e-6)
    np.testing.assert_allclose(maps.heads[0, :, 0, 0], [9.0, 0.2, 0.4], atol=1e-6)


def test_similarity_is_the_positive_cosine_and_contrast_that_of_the_differences():
    features = [[3.0, 0.0], [5.0, 0.0], [0.0, 2.0], [-1.0, 0.0]]
    maps = maps_of(look_of(np.full((4, 4), 0.25), features), np.array([[1.0, 0, 0, 0]]))
    np.testing.assert_allclose(maps.similarity[0, 1:], [1, 0, 0], atol=1e-6)
    shifted = maps_of(look_of(np.full((4, 4), 0.25), np.add(features, 100.0)), np.array([[1.0, 0, 0, 0]]))
    assert shifted.similarity[0, 1:].min() > 0.99  # what all share drowns the rest
    np.testing.assert_allclose(shifted.contrast, maps.contrast, atol=1e-4)


# --- the share of mass in the box ------------------------------------------------------------------------------------


@given(
    width=st.integers(16, 300),
    height=st.integers(16, 300),
    corners=st.lists(st.floats(0.0, 1.0), min_size=4, max_size=4),
    fit=st.sampled_from(["letterbox", "squash"]),
)
def test_an_even_map_has_its_share_of_area(width, height, corners, fit):
    encoder = EVEN[fit]
    x, y = np.sort(np.reshape(corners, (2, 2)), 1) * [[width], [height]]
    box = (x[0], y[0], x[1], y[1])
    inside, visible = encoder.coverage(encoder.view((width, height)), box), visible_part(encoder, (width, height))
    even = np.full((1, encoder.grid**2), 0.01)
    area = (x[1] - x[0]) * (y[1] - y[0]) / (width * height)
    np.testing.assert_allclose(share_inside(even, inside, visible), area, atol=1e-9)
    # With a patch's look at itself left out, the chance level follows.
    queried = maps_of(look_of(np.full((encoder.grid**2,) * 2, 0.01)), inside)
    share, chance = (f(queried.attention, inside, visible) for f in (share_inside, chance_inside))
    np.testing.assert_allclose(share, chance, atol=1e-6)


EVEN = {fit: PatchEncoder.of(make_model(fit=fit), fit) for fit in ("letterbox", "squash")}


def test_an_encoder_that_sees_only_itself_does_not_see_the_region(encoder):
    inside, visible = encoder.coverage(encoder.view((64, 64)), (0, 0, 32, 32)), visible_part(encoder, (64, 64))
    assert share_inside(maps_of(look_of(np.eye(16)), inside).attention, inside, visible) == 0
    within = np.zeros((16, 16))
    within[:, [0, 1, 4, 5]] = 0.25
    assert share_inside(maps_of(look_of(within), inside).attention, inside, visible) == pytest.approx(1)


def test_what_falls_on_padding_does_not_count(encoder):
    """A picture of 64 x 32 lies in the two middle rows of the grid."""
    inside, visible = encoder.coverage(encoder.view((64, 32)), (0, 0, 32, 32)), visible_part(encoder, (64, 32))
    weights = np.ones((1, 16))
    weights[0, :4] = 50
    assert share_inside(weights, inside, visible) == pytest.approx(0.5)


@pytest.mark.parametrize(("point", "patch"), [((0, 0), 4), ((63.9, 0), 7), ((20, 31), 9), ((40, 17), 10)])
def test_a_point_lies_in_its_patch(encoder, point, patch):
    assert point_query(encoder, (64, 32), [point]).argmax(1).tolist() == [patch]


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_the_attention_of_an_answer_is_that_of_the_stock_model(kind, tmp_path):
    model = make_model(kind)
    model.save(tmp_path)
    stock = LlavaForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="eager").eval()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    canvas, dialog = model.show(picture), model.dialog
    questions = [dialog.ask("what is it"), dialog.ask("where is the small red star in this picture")]
    answers = [[11, 12, 13], [14, 15]]
    found = answer_attention(model, picture, questions, answers)
    assert model.llava.model.language_model.config._attn_implementation == "sdpa"
    for question, answer, weights in zip(questions, answers, found, strict=True):
        ids = torch.tensor([[*dialog.prefix_ids, *question, *answer]])
        with torch.inference_mode():
            layers = stock(input_ids=ids, pixel_values=model.normalise(canvas), output_attentions=True).attentions
        images = (ids[0] == dialog.image_token).nonzero()[:, 0]
        before = range(ids.shape[1] - len(answer) - 1, ids.shape[1] - 1)
        expected = torch.stack(layers)[:, 0][:, :, list(before)][..., images]
        np.testing.assert_allclose(weights, expected.numpy(), atol=1e-5)


def test_words_take_all_tokens_of_an_answer_once(model):
    tokenizer = model.processor.tokenizer
    answer = tokenizer.encode("large blue plain circle", add_special_tokens=False)
    words, spans = words_of(model, answer)
    assert words == ["large", "blue", "plain", "circle"]
    assert [t for a, b in spans for t in range(a, b)] == list(range(len(answer)))


def test_a_box_a_point_and_a_bare_encoder(model, encoder, monkeypatch):
    monkeypatch.setattr(attention, "LONGEST_DESCRIPTION", 5)
    picture = noise()
    seen = attend_box(encoder, picture, (10, 10, 50, 40))
    assert seen.maps.attention.shape == (1, 16) and seen.maps.heads.shape == (1, 2, 4, 16)
    assert set(seen.inside) == {"attention", "similarity", "contrast", "words"}
    assert seen.word_maps.shape == (len(seen.words), 16)
    [said] = GranViT(model).describe(picture, (10, 10, 50, 40))
    assert "".join(said.split()).startswith("".join("".join(seen.words).split()))
    bare = PatchEncoder("bare", encoder.tower, ([0.5] * 3, [0.5] * 3))
    alone = attend_box(bare, picture, (10, 10, 50, 40))
    assert alone.words == [] and alone.inside["attention"] == pytest.approx(seen.inside["attention"])
    point = attend_point(encoder, picture, (30, 25))
    assert point.inside == {} and np.isnan(point.maps.attention).sum() == 1


def test_attend_is_there_for_a_loaded_model_and_refuses_a_bad_box(model, encoder, monkeypatch):
    monkeypatch.setattr(attention, "LONGEST_DESCRIPTION", 5)
    seen = GranViT(model).attend(noise(), (10, 10, 50, 40))
    np.testing.assert_allclose(seen.maps.attention, attend_box(encoder, noise(), (10, 10, 50, 40)).maps.attention)
    with pytest.raises(ValueError, match="outside"):
        GranViT(model).attend(noise(), (100, 10, 150, 40))
