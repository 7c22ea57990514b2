"""The stages that make the presets' own parts: what they teach, what they leave alone, and where they begin."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.tiny_model import collate, make_model, make_samples
from safetensors.torch import load_file

from granvit.cli.recipes import RECIPES
from granvit.corpus.synthetic.synthesize import LazySynthetic, make
from granvit.model.locations import patch_fourier_features
from granvit.nano.encoder_warmup import EncoderWarmup, present_tokens, word_maps
from granvit.nano.language_warmup import LanguageWarmup
from granvit.nano.models import PLACES
from granvit.nano.projector import fit_projector, start_projector, word_scores
from granvit.nano.symbolic import SymbolicPrepare, WordMapPrepare
from granvit.train.config import SampleConfig
from granvit.train.prepare import Prepare
from granvit.train.recipes.base import Recipe
from granvit.train.stages.config import RunContext

PICTURES = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
QUESTIONS = {"bbox2caption": 1.0, "caption2bbox": 1.0}


@pytest.fixture
def model():
    return make_model("qwen2")


def symbolic_batch(model, rng):
    prepare = SymbolicPrepare(model, SampleConfig(QUESTIONS))
    corpus = LazySynthetic(4, seed=0, size=64, documents=0.0)
    return prepare.collate([prepare(corpus[i], rng) for i in range(4)])


def drawn_batch(model, rng):
    prepare = Prepare(model, SampleConfig({"bbox2caption": 1.0}))
    return prepare.collate([prepare(make(i, 0, 64, 0.0), rng) for i in range(3)])


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_the_encoder_warmup_trains_the_encoder_and_its_head_alone(model, rng):
    stage = EncoderWarmup(model)
    batch = drawn_batch(model, rng)
    term = stage(batch)["tags"]
    (term.total / batch.counts[term.count]).backward()
    touched = {name.split(".")[1] for name, p in stage.model.named_parameters() if p.grad is not None}
    assert touched == {"vision_tower"}
    assert stage.head["score"].weight.grad.abs().sum() > 0


def test_the_language_warmup_takes_pictures_without_regions(model, rng):
    prepare = SymbolicPrepare(model, SampleConfig({"global": 1.0}))
    corpus = LazySynthetic(2, seed=0, size=64, documents=0.0)
    batch = prepare.collate([prepare(dataclasses.replace(corpus[i], regions=[]), rng) for i in range(2)])
    (term,) = LanguageWarmup(model, noise=0.3, blur=1.0)(batch).values()
    assert torch.isfinite(term.total) and batch.counts[term.count] > 0


def test_a_second_encoder_warmup_goes_on_from_the_first_ones_head(model, tmp_path):
    first = EncoderWarmup(model)
    first.finish(tmp_path, write=True)
    second = EncoderWarmup(model, RunContext(earlier=(tmp_path, tmp_path / "of a stage that left nothing")))
    assert all(torch.equal(tensor, first.extra_state()[name]) for name, tensor in second.extra_state().items())
    fresh = EncoderWarmup(model).extra_state()["score.weight"]
    assert not torch.equal(fresh, first.extra_state()["score.weight"])


def test_the_encoder_warmup_knows_words_and_no_places(model, rng):
    batch = drawn_batch(model, rng)
    moved = dataclasses.replace(batch, position_ids=batch.position_ids + 1, branch_ids=batch.branch_ids * 0)
    stage = EncoderWarmup(model)
    assert torch.equal(stage(batch)["tags"].total, stage(moved)["tags"].total)
    present = present_tokens(batch, len(model.dialog.tokenizer))
    for row in range(3):
        said = {int(t) for t in batch.labels[row] if t >= 0}
        assert set(present[row].nonzero()[:, 0].tolist()) == said


def word_map_batch(model, rng):
    prepare = WordMapPrepare(model, SampleConfig({"bbox2caption": 1.0}))
    return prepare.collate([prepare(make(i, 0, 64, 0.0), rng) for i in range(3)])


def test_word_maps_say_how_much_of_a_patch_a_word_covers(model, rng):
    batch = word_map_batch(model, rng)
    tokens = len(model.dialog.tokenizer)
    maps = word_maps(batch, 16, tokens)
    assert maps.shape == (3, 16, tokens) and maps.max() <= 1
    expected = torch.zeros(48, tokens)
    grids = batch.extra
    for patch, word, weight in zip(grids.patches, grids.words, grids.weights, strict=True):
        expected[patch, word] += weight
    assert torch.equal(maps.flatten(0, 1), expected.clamp(max=1))


def test_with_word_maps_every_patch_learns_its_own_words(model, rng):
    batch = word_map_batch(model, rng)
    stage = EncoderWarmup(model).train()
    maps = word_maps(batch, 16, len(model.dialog.tokenizer))
    optimizer = torch.optim.Adam([p for p in stage.parameters() if p.requires_grad], 3e-3)
    for _ in range(120):
        term = stage(batch)["words"]
        optimizer.zero_grad()
        (term.total / batch.counts[term.count]).backward()
        optimizer.step()
    with torch.no_grad():
        scores = word_scores(model.patches(model.features(batch.pixels)), dict(stage.head.named_parameters()))
        errors = F.binary_cross_entropy_with_logits(scores, maps, reduction="none").sum((1, 2))
        assert stage(batch)["words"].total.item() == pytest.approx((errors / maps.sum((1, 2))).sum().item(), rel=1e-5)
    covered = maps.amax(-1) > 0.9
    right = maps.gather(-1, scores.argmax(-1, keepdim=True))[..., 0]
    assert covered.sum() > 5 and right[covered].mean() > 0.9


def test_words_stay_with_their_image_where_images_share_rows(model):
    samples = make_samples(model, (3, 1, 2, 1, 2))
    tokens = len(model.dialog.tokenizer)
    alone, shared = collate(model, samples), collate(model, samples, max_tokens=130)
    assert len(shared.input_ids) < 5
    order = [alone.ids.index(name) for name in shared.ids]
    assert order != sorted(order)
    assert torch.equal(present_tokens(shared, tokens), present_tokens(alone, tokens)[order])


def test_blur_leaves_a_clear_image_clear_and_mixes_an_unclear_one(model, rng):
    batch = symbolic_batch(model, rng)
    clear = LanguageWarmup(model, noise=0.0, blur=0.0)
    assert torch.equal(clear.symbolic_embeds(batch), clear.symbolic_embeds(batch))
    blurred = LanguageWarmup(model, noise=0.0, blur=1.0)
    blurred.place.load_state_dict(clear.place.state_dict())
    torch.manual_seed(0)
    apart = (blurred.symbolic_embeds(batch) - clear.symbolic_embeds(batch)).abs().amax(-1)
    covered = torch.zeros(apart.numel(), dtype=torch.bool)
    covered[batch.extra.patches] = True
    assert (apart.flatten()[covered] > 1e-6).any()
    assert torch.equal(apart.flatten()[~covered], torch.zeros(int((~covered).sum())))  # nothing is there to blur


def test_a_fresh_projector_says_what_it_is_fitted_to(model):
    torch.manual_seed(0)
    code = patch_fourier_features(model.grid)
    with torch.no_grad():
        model.llava.model.vision_tower.embeddings.position_embedding.weight.copy_(code @ torch.randn(code.shape[1], 32))
    places = code @ torch.randn(code.shape[1], 32) / 5
    pictures = torch.rand(64, 3, 64, 64) * 0.2
    fit_projector(model.llava, pictures, places.expand(64, -1, -1))
    with torch.no_grad():
        said = model.embed(((pictures * 0.5 + 0.5) * 255).permute(0, 2, 3, 1).to(torch.uint8))
    assert (said - places).square().mean() < 0.2 * places.var()


def test_a_projector_starts_with_places_and_the_words_found_there(model):
    size, width = len(model.dialog.tokenizer), 32
    places = torch.randn(16, 32) * 0.1
    start_projector(model, places)
    without = model.embed(PICTURES).detach()
    torch.manual_seed(0)
    words = {
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
        "score.weight": torch.randn(size, width),
        "score.bias": torch.zeros(size),
    }
    start_projector(model, places, words)
    assert (model.embed(PICTURES).detach() - without).abs().mean() > 0.01


def test_a_projector_is_fitted_on_other_pictures_where_some_are_given(model):
    places = torch.randn(16, 32) * 0.1
    flat = torch.stack([torch.full_like(PICTURES[0], grey) for grey in (0, 127, 255)])
    start_projector(model, places)
    drawn = model.embed(PICTURES).detach()
    start_projector(model, places, canvases=flat)
    assert (model.embed(PICTURES).detach() - drawn).abs().mean() > 0.01
    # Every one of these patches has been seen.
    assert (model.embed(flat).detach() - places).square().mean() < 0.2 * places.var()


def test_a_second_warmup_goes_on_from_the_first_ones_places(model, tmp_path):
    first = LanguageWarmup(model)
    places = first.places().detach().clone()
    first.finish(tmp_path, write=True)
    torch.testing.assert_close(load_file(tmp_path / PLACES)["places"], places, atol=0, rtol=0)
    second = LanguageWarmup(model, context=RunContext(earlier=(tmp_path,)))
    torch.testing.assert_close(second.places(), first.places(), atol=1e-4, rtol=1e-4)


def test_stages_of_a_recipe_have_folders_of_their_own():
    recipe = RECIPES["nano"]()
    with pytest.raises(ValueError, match="called the same"):
        Recipe("twice", "nano", "nano", recipe.settings, [recipe.stages[0], recipe.stages[0]])


def test_smearing_spreads_words_over_neighbouring_patches(model, rng):
    batch = symbolic_batch(model, rng)
    clear = LanguageWarmup(model, noise=0.0)
    smeared = LanguageWarmup(model, noise=0.0, smear=1.0)
    smeared.place.load_state_dict(clear.place.state_dict())
    torch.manual_seed(0)
    with torch.no_grad():
        before, after = (stage.symbolic_embeds(batch) - stage.places() for stage in (clear, smeared))
    empty = before.abs().sum(-1) < 1e-6
    assert empty.any() and (after[empty].abs().sum(-1) > 1e-4).any()
    assert after.norm() < before.norm()
