import json
from dataclasses import replace

import pytest
import torch
from helpers.tiny_recipe import save_parts, tiny_recipe
from safetensors.torch import load_file

from granvit.cli.recipes import RECIPES
from granvit.corpus.layout import CorpusError
from granvit.corpus.synthetic.synthesize import LazySynthetic, synthesize
from granvit.model.region_model import stock_weights
from granvit.train.build import build_model, earlier_folders, embedded_corpora, sources_of
from granvit.train.stages.config import RunContext


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return save_parts(tmp_path_factory.mktemp("parts"))


def changed(one, other) -> set[str]:
    """The parts of two models whose weights differ in any bit."""
    a, b = stock_weights(one.llava), stock_weights(other.llava)
    assert a.keys() == b.keys()
    return {name.split(".")[0] for name in a if not torch.equal(a[name], b[name])}


def test_the_seed_decides_the_fresh_weights(parts):
    recipe = replace(tiny_recipe(parts), encoder="nano-untrained")
    model = build_model(recipe)
    assert changed(model, build_model(recipe)) == set()
    assert changed(model, build_model(replace(recipe, seed=1))) == {"multi_modal_projector", "vision_tower"}


def test_a_recipe_says_at_which_canvas_its_encoder_looks(parts):
    model = build_model(replace(tiny_recipe(parts), canvas=96))
    assert (model.canvas, model.grid) == (96, 6)


def test_a_language_model_that_knows_other_places_is_refused(parts):
    recipe = replace(tiny_recipe(parts), language="nano", settings=RECIPES["nano"]().settings)
    with pytest.raises(ValueError, match="knows 100 places, .* has 16 patches"):
        build_model(recipe)


@pytest.mark.parametrize("name", ["nano", "nano-reader"])
def test_shipped_encoders_come_with_the_words_they_know(parts, name):
    nano = RECIPES["nano"]()
    model = build_model(replace(nano, encoder=name))
    words = RunContext(earlier=earlier_folders(replace(nano, encoder=name))).newest("words.safetensors")
    assert words is not None and load_file(words)["score.weight"].shape[1] == 160
    assert earlier_folders(tiny_recipe(parts)) == []
    other = build_model(replace(nano, encoder={"nano": "nano-reader", "nano-reader": "nano"}[name]))
    assert changed(model, other) == {"vision_tower", "multi_modal_projector"}


# --- what it trains on -----------------------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path):
    synthesize(tmp_path / "corpus", 30, 0, 32, workers=1, progress=False)
    return tmp_path / "corpus"


def test_sources_are_the_training_images_of_folders_with_weights(parts, corpus):
    sources = sources_of(tiny_recipe(parts), [str(corpus), f"{corpus}=2.5"])
    assert [weight for _, weight in sources] == [1.0, 2.5]
    assert len(sources[0][0]) == len(sources[1][0]) < 30  # some are held out


def test_a_folder_may_have_an_equals_sign_in_its_name(parts, corpus, tmp_path):
    corpus.rename(tmp_path / "day=1")
    sources = sources_of(tiny_recipe(parts), [f"{tmp_path / 'day=1'}=3", f"{tmp_path / 'day=1'}"])
    assert [weight for _, weight in sources] == [3.0, 1.0]


@pytest.mark.parametrize("weight", ["much", "1,5", "0", "-1", "nan", "inf"])
def test_a_weight_that_is_no_positive_number_is_refused(parts, corpus, weight):
    with pytest.raises(ValueError, match="weight"):
        sources_of(tiny_recipe(parts), [f"{corpus}={weight}"])


def test_a_folder_that_is_no_corpus_is_named(parts, tmp_path):
    with pytest.raises(CorpusError, match=str(tmp_path / "nowhere")):
        sources_of(tiny_recipe(parts), [str(tmp_path / "nowhere")])


def test_without_corpora_the_embedded_one_is_drawn_once(parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [(records, weight)] = sources_of(tiny_recipe(parts), [])
    assert (len(records), weight, records[0].split) == (8, 1.0, "train")
    train, held_out = embedded_corpora(tiny_recipe(parts).corpus)
    assert train.path == records.path and len(held_out) == 4 and {r.split for r in held_out} == {"val"}
    assert {r.image for r in train}.isdisjoint(r.image for r in held_out)


def test_symbolic_images_alone_are_never_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [(records, _)] = sources_of(RECIPES["nano-language"](), [])
    assert isinstance(records, LazySynthetic) and not list(tmp_path.iterdir())


# --- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_an_object_that_prints_as_json(name, tmp_path):
    recipe = RECIPES[name]()
    assert recipe.name == name and RECIPES[name].__doc__ and RECIPES[name]() == recipe
    recipe.resolved(images=10_000, processes=4).save(tmp_path / "new" / "recipe.json", processes=4)
    facts = json.loads((tmp_path / "new" / "recipe.json").read_text())
    assert [s["kind"] for s in facts["stages"]] == [s.kind for s in recipe.stages]
    assert facts["processes"] == 4
    assert all(s["loop"]["steps"] > 0 for s in facts["stages"])
