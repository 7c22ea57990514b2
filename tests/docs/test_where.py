"""CONTRIBUTING.md's tables of where things are: every file and every name in them exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "CONTRIBUTING.md").read_text().partition("## Where things are\n")[2].partition("\n## ")[0]
ROWS = re.findall(r"^\| (?!of the |---)(.+?) \| (.+) \|$", SECTION, re.MULTILINE)
# The steps of the method and the commands, in the words of the paper and the README: each has a row.
NAMED = (
    *("Global, Bbox2Caption, Caption2Bbox", "caption loss", "self-distillation loss", "EMA teacher", "ROIAlign"),
    *("stage 1", "stage 2", "transfer", "filters", "demo", "annotation", "replay", "export", "probes", "compare"),
)


def test_there_is_a_row_for_each():
    assert len(ROWS) >= 40
    what = "\n".join(row for row, _ in ROWS)
    assert not [name for name in NAMED if name not in what]


@pytest.mark.parametrize(("what", "where"), ROWS, ids=[what for what, _ in ROWS])
def test_the_names_are_in_the_file(what, where):
    for place in where.split("; "):
        file, *names = re.findall(r"`([^`]+)`", place)
        tree = ast.parse((ROOT / file).read_text())
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert not set(names) - defined, f"{what}: {file}"
