from dataclasses import replace

import pytest

from granvit.cli.recipes import RECIPES
from granvit.errors import GranvitError
from granvit.ranges import OF_RECIPES, check_ranges

STAGE = "--stages.0."


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: setattr(r.stages[0].loop, "lr", float("nan")), STAGE + "loop.lr nan: must be from 0 to"),
        (lambda r: setattr(r.stages[0].loop, "lr", -1e-3), STAGE + "loop.lr -0.001: must be at least 0"),
        (lambda r: setattr(r.stages[0].loop, "batch_size", 0), STAGE + "loop.batch-size 0: must be at least 1"),
        (lambda r: setattr(r.stages[0].loop, "steps", 10**20), STAGE + "loop.steps 1000"),
        (lambda r: setattr(r.stages[0].loop, "workers", -1), STAGE + "loop.workers -1: must be at least 0"),
        (lambda r: setattr(r.stages[0].loop, "betas", (0.9, 1.0)), STAGE + "loop.betas.1 1.0: must be from 0 to"),
        (lambda r: setattr(r.stages[0].sample, "questions", {"global": 2}), "questions.global 2: must be from 0 to 1"),
        (lambda r: setattr(r.stages[0], "epochs", 0), STAGE + "epochs 0: must be at least"),
        (lambda r: setattr(r, "seed", 2**32), "--seed 4294967296: must be from 0 to"),
        (lambda r: setattr(r.corpus, "size", 4), "--corpus.size 4: must be at least 32"),
    ],
)
def test_a_number_out_of_range_is_refused_by_its_name_on_the_command_line(change, said):
    recipe = RECIPES["nano"]()
    change(recipe)
    with pytest.raises(GranvitError) as error:
        check_ranges(recipe, OF_RECIPES)
    assert said in str(error.value)
    with pytest.raises(GranvitError):
        replace(recipe)  # as every recipe is checked that is made


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_in_range(name):
    check_ranges(RECIPES[name](), OF_RECIPES)
