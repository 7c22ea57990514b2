"""What README and docs promise: their commands parse, their links lead somewhere, nothing in them is a placeholder."""

import json
import re
import shlex
from pathlib import Path

import pytest

from granvit.cli.app import parse

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")), *NOTEBOOKS]

_LINK = re.compile(r"\[[^\]\n]+\]\(([^)\s]+)\)")
_PROGRAM = re.compile(r"(?:^(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?granvit|^torchrun .*-m granvit|^\s*-m granvit)\s")
# A word of capitals that ends in _TABLE or is doubled in @ stands for something that was to be filled in.
_PLACEHOLDERS = re.compile(
    r"\b[A-Z]+_TABLE\b|@@|\bTODO\b|\bFIXME\b|\bXXX\b|lorem ipsum|not part of the project", re.IGNORECASE
)


def text_of(page: Path) -> str:
    """A page as Markdown; of a notebook what is no code."""
    if page.suffix != ".ipynb":
        return page.read_text()
    cells = json.loads(page.read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def code_lines(page: Path) -> list[tuple[int, str]]:
    """The lines of fenced and indented blocks with their numbers, continued lines joined."""
    lines, fenced, found, pending = text_of(page).splitlines(), False, [], None
    for number, line in enumerate(lines, start=1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
            continue
        if not fenced and not (line.startswith("    ") and not line.lstrip().startswith(("-", "*"))):
            pending = None
            continue
        if pending is not None:
            number, line = pending[0], pending[1] + " " + line.strip()
            pending = None
        # In an indented block a deeper line goes on with the command above it.
        if line.endswith("\\"):
            pending = (number, line[:-1].rstrip())
            continue
        found.append((number, line.strip()))
    return found


def commands() -> list[tuple[str, list[str]]]:
    """Every `granvit ...` of every page: where it stands, and its arguments."""
    found = []
    for page in PAGES:
        for number, line in code_lines(page):
            # Two commands stand side by side where four or more blanks part them.
            for part in re.split(r"\s{4,}(?=granvit )", line):
                match = _PROGRAM.search(part)
                if match:
                    arguments = shlex.split(part[match.end() :], comments=True)
                    end = next((i for i, word in enumerate(arguments) if word in ("&", "|", ">")), len(arguments))
                    found.append((f"{page.relative_to(ROOT)}:{number}", arguments[:end]))
    return found


COMMANDS = commands()


def test_commands_are_found() -> None:
    assert len(COMMANDS) > 60
    assert {where.split(":")[0] for where, _ in COMMANDS} >= {"README.md", "docs/corpus.md", "docs/export.md"}


@pytest.mark.parametrize(("where", "arguments"), COMMANDS, ids=[where for where, _ in COMMANDS])
def test_every_command_parses(where: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        parse(arguments)
    except SystemExit as end:
        if end.code not in (0, None):  # --help and the like end so
            pytest.fail(f"{where}: granvit {' '.join(arguments)}\n{capsys.readouterr().err[:600]}")


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(text_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target}"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "")).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_nothing_is_left_to_fill_in(page: Path) -> None:
    assert not (found := _PLACEHOLDERS.findall(text_of(page))), f"{page.name}: {found}"


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_files_that_a_page_names_are_there(page: Path) -> None:
    for name in re.findall(r"`((?:granvit|tests|benchmarks|docs)/[\w./-]+)`", text_of(page)):
        assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_every_page_is_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix not in (".md", ".ipynb") or not page.exists():
            continue
        reached.add(page)
        waiting += [(page.parent / link.partition("#")[0]).resolve() for link in _LINK.findall(text_of(page))]
    assert set(PAGES) <= reached, sorted(str(p) for p in set(PAGES) - reached)
