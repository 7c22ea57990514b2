import pytest
import torch
from helpers.tiny_recipe import save_parts, tiny_recipe

from granvit.cli import main
from granvit.cli.train import Assemble
from granvit.errors import GranvitError
from granvit.model.region_model import RegionModel
from granvit.train.build import build_model


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_parts(tmp_path / "parts")
    return tiny_recipe(tmp_path / "parts")


def test_what_is_written_is_what_a_run_starts_from(recipe, tmp_path, capsys):
    assert Assemble(recipe, tmp_path / "before").run() == 0
    assert capsys.readouterr().out == f"checkpoint: {tmp_path / 'before'}\n"
    written, start = RegionModel.load(tmp_path / "before"), build_model(recipe)
    assert written.settings == start.settings
    weights = start.llava.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in written.llava.state_dict().items())
    assert not list(tmp_path.glob("*.partial"))


def test_the_recipe_names_the_folder_and_nothing_is_written_over(recipe, tmp_path):
    Assemble(recipe).run()
    assert (tmp_path / "runs" / f"{recipe.name}-before" / "granvit.json").exists()
    with pytest.raises(GranvitError, match="before is there already"):
        Assemble(recipe).run()


def test_a_part_that_is_not_there_is_reported_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        main(["assemble", "nano", "--encoder", str(tmp_path / "none"), "--out", str(tmp_path / "before")])
    assert left.value.code == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(tmp_path / "none") in error
    assert not (tmp_path / "before").exists()
