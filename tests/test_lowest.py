"""The constraints that `make test-lowest` installs."""

import re
import tomllib

import pytest
from helpers.paths import ROOT
from lowest import lowest

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_dependency_is_held_at_its_lower_bound():
    held = lowest(PROJECT, list(PROJECT["optional-dependencies"]))
    bounds = [re.match(r"([\w.-]+)(?:\[.*\])?>=([\w.]+)", line) for line in PROJECT["dependencies"]]
    assert "transformers==5.18" in held
    assert bounds and {f"{bound[1]}=={bound[2]}" for bound in bounds} <= set(held) and len(held) > 35
    assert len({line.partition("==")[0] for line in held}) == len(held)


def test_a_dependency_without_one_is_named():
    with pytest.raises(ValueError, match="tyro has no lower bound"):
        lowest({"dependencies": ["torch>=2.9", "tyro"]}, [])
