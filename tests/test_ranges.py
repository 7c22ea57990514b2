from dataclasses import replace

import pytest

from granvit.cli.app import main, parse
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
        (lambda r: setattr(r.stages[0].loop, "betas", (0.9, 1.0)), STAGE + "loop.betas 1.0: must be from 0 to"),
        (lambda r: setattr(r.stages[0].sample, "questions", {"global": 2}), "questions.global 2: must be from 0 to 1"),
        (lambda r: setattr(r.stages[0], "epochs", 0), STAGE + "epochs 0: must be above 0"),
        (lambda r: setattr(r.stages[0].loop, "optimizer_groups", {"a_b": -1}), STAGE + "loop.optimizer-groups a_b -1:"),
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


CURATE = "corpus curate in out"
TRANSFER = "transfer run --llm name --corpus in"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (f"{CURATE} --caps my_web -1", "--caps my_web -1: must be at least 0"),
        (f"{CURATE} --weights web nan", "--weights web nan: must be from 0 to"),
        (f"{CURATE} --similarity 0", "--similarity 0.0: must be above 0"),
        (f"{CURATE} --similarity 2", "--similarity 2.0: must be above 0 and at most 1"),
        (f"{CURATE} --filters.text-box.min-side -1", "--filters.text-box.min-side -1.0: must be at least 0"),
        (f"{CURATE} --seed -1", "--seed -1: must be at least 0"),
        ("corpus leakage in --against other --similarity 2", "--similarity 2.0: must be above 0 and at most 1"),
        ("corpus import coco in out --val-fraction 1", "--val-fraction 1.0: must be at least 0 and less than 1"),
        ("corpus tile in out --overlap 1", "--overlap 1.0: must be at least 0 and less than 1"),
        ("corpus export llava in out --questions-per-conversation 0", "--questions-per-conversation 0: must be at"),
        ("corpus annotate in out --batch 0", "--batch 0: must be at least 1"),
        ("corpus annotate in out --image-seconds 0", "--image-seconds 0.0: must be above 0"),
        ("corpus annotate in out --detect.nms-iou 2", "--detect.nms-iou 2.0: must be above 0 and at most 1"),
        ("corpus annotate in out --caption.longest-side 2", "--caption.longest-side 2: must be at least 28"),
        (f"{TRANSFER} --sample.questions.global 2", "--sample.questions.global 2.0: must be from 0 to 1"),
        (f"{TRANSFER} --loop.betas 0.9 1", "--loop.betas 1.0: must be from 0 to"),
        (f"{TRANSFER} --lora.rank 0", "--lora.rank 0: must be at least 1"),
        (f"{TRANSFER} --epochs 0", "--epochs 0.0: must be above 0"),
        (f"{TRANSFER} --eval-images -1", "--eval-images -1: must be at least 0"),
        ("train nano --stages.0.loop.betas 0.9 1", "--stages.0.loop.betas 1.0: must be from 0 to"),
        ("plan nano --images 9 --gpus -1", "--gpus -1: must be at least 0"),
    ],
)
def test_every_command_names_the_flag_that_was_typed(typed, said, capsys):
    with pytest.raises(SystemExit):
        main(typed.split())
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"granvit: {said}")


def test_the_defaults_of_every_command_are_in_range():
    for name in ("corpus annotate in out", "corpus audit in out", CURATE, "plan nano", "train paper"):
        check_ranges(parse(name.split()))
