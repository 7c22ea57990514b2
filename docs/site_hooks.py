"""What `mkdocs` makes of the pages beside Markdown: the command line's reference, equations, links out of docs/."""

from __future__ import annotations

import contextlib
import html
import io
import re
from collections.abc import Iterator
from typing import Any
from unittest import mock

COMMANDS = "<!-- the commands, from the program itself -->"
_EQUATION = re.compile(r"^```math\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)]+)\)")


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
    from granvit.cli import build_app

    app, parts = build_app(), []
    for path in command_paths(app):
        told = io.StringIO()
        with mock.patch.dict("os.environ", {"COLUMNS": "100", "TERM": "dumb"}), contextlib.redirect_stdout(told):
            with contextlib.suppress(SystemExit):
                app.cli(prog="granvit", args=[*path, "--help"])
        name = " ".join(path)
        parts.append(f"## granvit {name}\n\n<pre>{html.escape(told.getvalue().strip())}</pre>\n")
    return "\n".join(parts)


def command_paths(app: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """("corpus", "import") and so on, for every command below a tyro app."""
    for name, command in app._subcommands.items():
        if hasattr(command.target, "_subcommands"):
            yield from command_paths(command.target, (*path, name))
        else:
            yield (*path, name)
