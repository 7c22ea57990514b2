"""The constraints that `make test-lowest` installs."""

import tomllib

import pytest
from helpers.paths import ROOT
from lowest import lowest

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_dependency_is_held_at_its_lower_bound():
    held = lowest(PROJECT, list(PROJECT["optional-dependencies"]))
    assert "tyro==0.9" in held and "transformers==5.16.1" in held and len(held) > 35
    assert len({line.partition("==")[0] for line in held}) == len(held)


def test_a_dependency_without_one_is_named():
    with pytest.raises(ValueError, match="tyro has no lower bound"):
        lowest({"dependencies": ["torch>=2.9", "tyro"]}, [])
