"""What `mkdocs` makes beside Markdown: notebooks, the command line's reference, equations, links out of docs/."""

from __future__ import annotations

import contextlib
import html
import io
import json
import re
from pathlib import Path
from typing import Any
from unittest import mock

COMMANDS = "<!-- the commands, from the program itself -->"
_EQUATION = re.compile(r"^```math\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)]+)\)")


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Called once by mkdocs: a page for every notebook, beside the file itself."""
    from mkdocs.structure.files import File

    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        page = notebook_page(Path(notebook.abs_src_path))
        files.append(File.generated(config, notebook.src_uri.removesuffix("ipynb") + "md", content=page))
    return files


def notebook_page(path: Path) -> str:
    """A notebook as Markdown, with its code and without what it printed."""
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    title, rest = parts[0].split("\n", 1)
    return "\n\n".join([title, f"[{path.name}]({path.name}), to be opened in Jupyter.", rest, *parts[1:]]) + "\n"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called for every page by mkdocs."""
    markdown = _EQUATION.sub(lambda match: _mathml(match[1]), markdown)
    # What lies outside docs/ is no page of the site: its name stays, its address would lead nowhere.
    markdown = _OUTSIDE.sub(lambda match: f"{match[1]} (`{match[2]}` in the repository)", markdown)
    return markdown.replace(COMMANDS, command_reference()) if COMMANDS in markdown else markdown


def _mathml(equation: str) -> str:
    """Browsers draw MathML themselves, so equations need no script from elsewhere."""
    from latex2mathml.converter import convert

    return f"<p>{convert(equation, display='block')}</p>"


def command_reference() -> str:
    """The help of every command, as the program prints it."""
    from granvit.cli.app import parse

    parts = []
    for path in command_paths():
        output = io.StringIO()
        with mock.patch.dict("os.environ", {"COLUMNS": "100", "TERM": "dumb"}), contextlib.redirect_stdout(output):
            with contextlib.suppress(SystemExit):
                parse([*path, "--help"])
        parts.append(f"## granvit {' '.join(path)}\n\n<pre>{html.escape(output.getvalue().strip())}</pre>\n")
    return "\n".join(parts)


def command_paths() -> list[tuple[str, ...]]:
    """("corpus", "import") and so on, for every command."""
    from granvit.cli.app import Group, command_tree

    found: list[tuple[str, ...]] = []
    for name, command in command_tree().items():
        below = [(name, one) for one in command.commands] if isinstance(command, Group) else [(name,)]
        found += below
    return found
