"""The notebooks run from top to bottom, at a tiny size, and hold no outputs."""

import ast
import json
from pathlib import Path

import pytest
from helpers.paths import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
# In place of the cell of parameters.
TINY = {
    "images-to-encoder": "PICTURES, SIDE, STEPS = 24, 64, 2",
    "what-it-sees": "BEFORE, AFTER, PICTURES, SIDE = None, None, 80, 160",
}


def cells(notebook: Path, kind: str) -> list[tuple[str, list[str]]]:
    """The sources of a notebook's cells of one kind, with their tags."""
    found = json.loads(notebook.read_text())["cells"]
    return [("".join(c["source"]), c["metadata"].get("tags", [])) for c in found if c["cell_type"] == kind]


def run(source: str, space: dict) -> object:
    """Runs a cell as Jupyter does; returns the value of a last line that is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), space)
    return None if last is None else eval(compile(ast.Expression(last.value), "<cell>", "eval"), space)


def executed(name: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> tuple[list, dict]:
    """What the cells of a notebook gave, run in an empty folder, and its names at the end."""
    monkeypatch.chdir(folder)
    space: dict = {"__name__": "__main__"}
    code = cells(ROOT / "docs" / "notebooks" / f"{name}.ipynb", "code")
    return [run(TINY[name] if "parameters" in tags else source, space) for source, tags in code], space


def test_every_notebook_is_run():
    assert {notebook.stem for notebook in NOTEBOOKS} == TINY.keys()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[n.stem for n in NOTEBOOKS])
def test_nothing_of_an_earlier_run_is_left_in_it(notebook):
    whole = json.loads(notebook.read_text())
    assert (whole["nbformat"], whole["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in whole["cells"]}) == len(whole["cells"])
    for cell in whole["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
    assert sum("parameters" in tags for _, tags in cells(notebook, "code")) == 1


def test_pictures_become_an_encoder(monkeypatch, tmp_path):
    values, space = executed("images-to-encoder", monkeypatch, tmp_path)
    assert [value.size for value in values if hasattr(value, "size")] == [(320, 320)], "a picture with its boxes"
    assert set(space["scores"].metrics) == {"before", "baseline", "stage1", "stage2"}
    assert (tmp_path / "runs/mine/report.html").exists() and (tmp_path / "encoder" / "config.json").exists()
    assert type(space["encoder"]).__name__ == "SiglipVisionModel"


def test_what_two_encoders_see_is_shown(monkeypatch, tmp_path):
    monkeypatch.setattr("granvit.evaluate.probes._STEPS", 20)
    values, space = executed("what-it-sees", monkeypatch, tmp_path)
    assert ["nano-encoder", "nano-reader"] in values
    figure = next(value for value in values if hasattr(value, "convert"))
    assert figure.width > 400 and len(space["seen"]) == 2
    assert space["report"].shares["object"]
