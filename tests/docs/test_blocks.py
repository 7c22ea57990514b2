"""Every code block of README and docs is what it says: shell that parses and names what there is, Python, JSON."""

import ast
import inspect
import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from helpers.paths import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What no test reads: equations are drawn by the site's test, text is what a program printed.
UNREAD = {"math", "text"}


def blocks() -> Iterator[tuple[str, str, str]]:
    """Where each fenced block is, its language, and what it holds."""
    for page in PAGES:
        text = page.read_text()
        for found in _FENCED.finditer(text):
            line = text[: found.start()].count("\n") + 1
            yield f"{page.relative_to(ROOT)}:{line}", found[1], found[2]


BLOCKS = list(blocks())


def of(*languages: str) -> list[Any]:
    return [pytest.param(text, id=where) for where, language, text in BLOCKS if language in languages]


def test_every_block_is_of_a_language_that_is_read():
    assert len(BLOCKS) > 50
    assert {language for _, language, _ in BLOCKS} <= {"", "bash", "python", "json", *UNREAD}


@pytest.mark.parametrize("text", of("bash"))
def test_shell_parses(text):
    # <this repository> stands for an address that is not known here.
    checked = subprocess.run(
        ["bash", "-n"], input=text.replace("<this repository>", "URL"), capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("text", of("bash", ""))
def test_shell_names_targets_extras_and_files_that_there_are(text):
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|&& )make ([a-z-]+)", text, re.MULTILINE)) <= targets
    named = {extra for group in re.findall(r"\.\[([a-z,]+)\]", text) for extra in group.split(",")}
    assert named <= PROJECT["optional-dependencies"].keys()
    for file in re.findall(r"(?:^|[\s/])python3? ((?:benchmarks|docs|tests)/[\w/]+\.py)", text):
        assert (ROOT / file).exists(), file
    for module in re.findall(r"python3? -m ((?:granvit|tests|kills|fuzz|helpers)[\w.]*)", text):
        assert import_module(module.partition(".")[0])


@pytest.mark.parametrize("text", of("json"))
def test_json_is_json(text):
    try:
        json.loads(text)
    except ValueError:
        for line in text.splitlines():
            json.loads(line)


@pytest.mark.parametrize("text", of("python"))
def test_python_names_what_there_is(text):
    """Imports resolve, attributes of what is imported exist, and calls have the keywords that they are given."""
    tree = ast.parse(text)
    names: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if node.module == "gradio_client":  # of another environment, see docs/app.md
                continue
            module = import_module(str(node.module))
            names |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.partition(".")[0]: import_module(alias.name) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (owner := _resolved(node.value, names)) is not None:
            assert hasattr(owner, node.attr), ast.unparse(node)
        if isinstance(node, ast.Call) and (function := _resolved(node.func, names)) is not None:
            _check_keywords(function, node)


def _resolved(node: ast.expr, names: dict[str, Any]) -> Any:
    """The object that a dotted name of imported things means; None for all else."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _resolved(node.value, names)
        return None if owner is None else getattr(owner, node.attr, None)
    return None


def _check_keywords(function: Any, call: ast.Call) -> None:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # of C
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    given = {keyword.arg for keyword in call.keywords if keyword.arg}
    assert given <= parameters.keys(), f"{ast.unparse(call)}: {given - parameters.keys()}"


def test_a_wrong_block_is_found():
    """The checks can fail."""
    for text in ("from granvit.predict import GranVit", "from granvit.predict import GranViT\nGranViT.lode('a')"):
        with pytest.raises((AttributeError, AssertionError)):
            test_python_names_what_there_is(text)
    with pytest.raises(AssertionError, match="devise"):
        test_python_names_what_there_is("from granvit.predict import GranViT\nGranViT.load('a', devise='cpu')")
    with pytest.raises(AssertionError):
        test_shell_names_targets_extras_and_files_that_there_are("make demmo")


def test_makefile_targets_are_told_at_its_top():
    text = Path(ROOT / "Makefile").read_text()
    told = set(re.findall(r"^# make ([a-z-]+)", text, re.MULTILINE))
    phony = set(text.partition(".PHONY:")[2].split("\n")[0].split())
    assert phony - {"clean", "lint"} <= told
