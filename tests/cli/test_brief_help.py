"""A recipe's help: short enough to be read, a sentence for every setting, and settings of the recipe's stages alone."""

import os
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

from granvit.cli.app import command_tree, main, parse
from granvit.cli.brief_help import shortened
from granvit.cli.recipes import RECIPES

ROOT = Path(__file__).parents[2]
_FLAG = re.compile(r"│ (--[\w.-]+)(?:[ ,].*)?│$")


@lru_cache
def help_of(*words: str) -> list[str]:
    """As a terminal of 80 columns shows it."""
    environment = {**os.environ, "COLUMNS": "80", "PYTHONIOENCODING": "utf-8", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "granvit", *words]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment, check=True)
    return done.stdout.splitlines()


def settings(lines: list[str]) -> dict[str, str]:
    """What the help says of each setting, its default left out."""
    found: dict[str, list[str]] = {}
    for line in lines:
        if match := _FLAG.match(line):
            name = match[1]
            found[name] = []
        elif found and line.startswith("│       "):
            found[name].append(line.strip("│ "))
        elif line.startswith("╰"):
            name = ""
            found.setdefault("", [])
    found.pop("", None)
    return {name: re.sub(r"\(default:.*\)$", "", " ".join(said)).strip() for name, said in found.items()}


def test_the_help_of_nano_is_short():
    lines = help_of("train", "nano", "--help")
    assert len(lines) <= 150
    assert any("--help-all shows every one" in line for line in lines)
    assert {"--stages.0.loop.steps", "--stages.1.loop.lr", "--corpus", "--out"} <= settings(lines).keys()


@pytest.mark.parametrize("name", ["nano", "nano-own"])
def test_every_setting_has_a_sentence(name):
    said = settings(help_of("train", name, "--help-all"))
    silent = [setting for setting, sentence in said.items() if not sentence and ".questions." not in setting]
    assert silent == [] and len(said) > 80
    assert "--stages.0.loop.timing" in said and "--stages.0.loop.timing" not in settings(
        help_of("train", name, "--help")
    )


def test_a_setting_shows_with_the_stage_that_heeds_it_alone():
    said = settings(help_of("train", "nano-own", "--help-all"))
    stages = {"encoder": "0", "warmup": "1", "stage1": "2", "stage2": "3"}
    for setting, heeded in (
        ("alpha", {"stage1"}),
        ("distill-weight", {"stage1"}),
        ("noise", {"warmup"}),
        ("sample.crops", {"stage1"}),
        ("sample.word-map", {"encoder"}),
        ("loop.feature-cache", {"stage2"}),
        ("smoothing", {"warmup", "stage1", "stage2"}),
        ("loop.lr", set(stages)),
        ("train-encoder", set()),
        ("kind", set()),
    ):
        assert {kind for kind, n in stages.items() if f"--stages.{n}.{setting}" in said} == heeded, setting


@pytest.mark.parametrize("name", RECIPES)
def test_help_leaves_settings_as_they_are(name):
    shortened(command_tree()["train"].commands[name].load(), ["--help"])
    assert parse(["train", name]).recipe == RECIPES[name]()


def test_factors_on_the_learning_rate_are_replaced():
    groups = ["--stages.0.loop.optimizer-groups"]
    assert parse(["train", "nano"]).recipe.stages[0].loop.optimizer_groups == {"multi_modal_projector": 0.3}
    for words, expected in ((["layers\\.0", "2", "head", "0.5"], {"layers\\.0": 2.0, "head": 0.5}), ([], {})):
        assert parse(["train", "nano", *groups, *words]).recipe.stages[0].loop.optimizer_groups == expected


@pytest.mark.parametrize("words", [["head"], ["head", "fast"]])
def test_a_factor_that_is_none_is_refused(capsys, words):
    with pytest.raises(SystemExit) as left:
        main(["train", "nano", "--stages.0.loop.optimizer-groups", *words])
    assert left.value.code == 2 and "optimizer-groups" in capsys.readouterr().err
