"""The shipped weights are what their recipes make: beside each lie the settings of the run that made it."""

import json

import pytest
from safetensors.torch import load_file

from granvit.cli.recipes import RECIPES
from granvit.nano.models import ASSETS, ENCODERS, LANGUAGE, PLACES, WORDS
from granvit.train import identity
from granvit.train.recipes.base import Recipe
from granvit.train.recipes.saved import read_run

MADE_BY = {LANGUAGE.name: "nano-language", **{folder.name: folder.name for folder in ENCODERS.values()}}


def decisive(recipe: Recipe) -> dict:
    """Of the corpus too, which a run keeps beside; not the precision, which is the machine's."""
    found = identity.of_stages(recipe, [stage.folder for stage in recipe.stages], 1)
    found = {name: value for name, value in found.items() if not name.endswith("loop.precision")}
    return {**found, **identity.decisive(recipe.corpus, "corpus.")}


@pytest.mark.parametrize("name", MADE_BY)
def test_shipped_weights_are_what_their_recipe_makes(name):
    made, processes = read_run(ASSETS / name / "recipe.json")
    recipe = RECIPES[MADE_BY[name]]()
    assert processes == 1 and made.name == recipe.name
    assert decisive(made) == decisive(recipe)


def test_every_shipped_weight_has_a_recipe():
    assert {path.parent.name for path in ASSETS.rglob("*.safetensors")} == set(MADE_BY)
    readme = (ASSETS / "README.md").read_text()
    assert all(f"`granvit train {recipe}`" in readme for recipe in MADE_BY.values())


def test_shapes_are_those_of_the_recipes_models():
    """Sizes are no settings, so they are held here: of the configs, and of what lies beside the stock files."""
    language = json.loads((LANGUAGE / "config.json").read_text())
    assert (language["hidden_size"], language["num_hidden_layers"]) == (128, 4)
    assert load_file(LANGUAGE / PLACES)["places"].shape == (100, 128)
    for folder in ENCODERS.values():
        tower = json.loads((folder / "config.json").read_text())
        assert (tower["image_size"], tower["hidden_size"], tower["num_hidden_layers"]) == (160, 160, 5)
        assert load_file(folder / WORDS)["score.weight"].shape == (language["vocab_size"], 160)
