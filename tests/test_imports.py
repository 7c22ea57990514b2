"""Who imports whom: no circles, and the core nothing of what presets from random weights need."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from granvit.model.region_model import RegionModel

PACKAGE = Path(__file__).parents[1] / "granvit"


def modules() -> dict[str, Path]:
    named = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


MODULES = modules()
# They bring all parts together, and are imported by none of them.
TOGETHER = {"granvit.__main__", *(name for name in MODULES if name.startswith("granvit.cli"))}


def imported(tree: ast.AST, within_functions: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports that are run: with the module, or also those of its functions; never those for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not within_functions:
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        yield from imported(node, within_functions)


def targets(name: str, within_functions: bool) -> set[str]:
    """The modules of the package that a module imports."""
    found = set()
    for node in imported(ast.parse(MODULES[name].read_text()), within_functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            assert node.level == 0, f"{name}: a relative import"
            inner = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {full if full in MODULES else node.module for full in inner.values()}
    return {target for target in found if target in MODULES and target != name}


def graph(within_functions: bool) -> dict[str, set[str]]:
    return {name: targets(name, within_functions) for name in MODULES}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import each other, directly or by way of others (Tarjan's strongly connected components)."""
    number, low, stack, found = {}, {}, [], []

    def visit(name: str) -> None:
        number[name] = low[name] = len(number)
        stack.append(name)
        for other in graph[name]:
            if other not in number:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], number[other])
        if low[name] == number[name]:
            together = [stack.pop()]
            while together[-1] != name:
                together.append(stack.pop())
            if len(together) > 1:
                found.append(sorted(together))

    for name in graph:
        if name not in number:
            visit(name)
    return found


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_modules_import_each_other():
    assert circles(graph(within_functions=False)) == []


def test_no_modules_import_each_other_within_functions_either():
    assert circles(graph(within_functions=True)) == []


@pytest.mark.parametrize("name", sorted(set(MODULES) - TOGETHER))
def test_the_core_imports_nothing_of_nano(name):
    if not name.startswith("granvit.nano"):
        assert not [target for target in targets(name, True) if target.startswith("granvit.nano")]


# Where they stand for what the first version wrote down, or say what needs no picture.
ALLOWED = {"granvit.train.identity", "granvit.corpus.synthetic.scenes", "granvit.corpus.synthetic.synthesize"}


@pytest.mark.parametrize("name", sorted(set(MODULES) - ALLOWED))
def test_the_core_speaks_of_no_warm_up(name):
    """Samples, batches and the model know nothing of symbolic images, of places and of words."""
    if not name.startswith("granvit.nano"):
        assert not re.findall(r"symbolic|word_map\b|LanguageWarmup|EncoderWarmup|grid_words", MODULES[name].read_text())


def test_a_model_has_nothing_but_its_own_parts():
    assert set(vars(RegionModel(None, None, None))) == {"llava", "processor", "settings", "sources", "new_tokens"}
