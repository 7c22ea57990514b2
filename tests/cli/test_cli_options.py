"""The command line is a promise: a flag that comes, goes or is renamed has to change `cli_options.txt` as well.

After a change that is meant: `python tests/cli/test_cli_options.py > tests/cli/cli_options.txt`
"""

import contextlib
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from granvit.cli.app import Group, command_tree, parse
from granvit.cli.brief_help import ALL

FROZEN = Path(__file__).with_name("cli_options.txt")


def commands() -> Iterator[tuple[str, ...]]:
    """The words of every command: ("corpus", "import") and so on."""
    for name, command in command_tree().items():
        yield from [(name, one) for one in command.commands] if isinstance(command, Group) else [(name,)]


def help_of(*args: str) -> str:
    text = io.StringIO()
    with mock.patch.dict("os.environ", {"COLUMNS": "100"}), contextlib.redirect_stdout(text):
        with contextlib.suppress(SystemExit):
            parse(list(args))
    return text.getvalue()


def options() -> str:
    """One line per command and option, as its help shows them; "(seldom)" for those that only `--help-all` shows."""
    lines = []
    for path in commands():
        shown = help_of(*path, "--help")
        brief = flags(shown)
        whole = flags(help_of(*path, ALL)) if ALL in shown else brief
        assert set(brief) <= set(whole), path
        lines += [" ".join(path)] + [f"    {flag}{'' if flag in brief else '  (seldom)'}" for flag in whole]
    return "\n".join(lines) + "\n"


def flags(text: str) -> list[str]:
    return list(dict.fromkeys(re.findall(r"^[ │]*(?:-\w, )?(--[a-z][\w.-]*)", text, re.MULTILINE)))


def test_options_are_those_that_are_frozen() -> None:
    assert options() == FROZEN.read_text(), "see the head of this file"


if __name__ == "__main__":
    sys.stdout.write(options())
