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

FROZEN = Path(__file__).with_name("cli_options.txt")


def commands() -> Iterator[tuple[str, ...]]:
    """The words of every command: ("corpus", "import") and so on."""
    for name, command in command_tree().items():
        yield from [(name, one) for one in command.commands] if isinstance(command, Group) else [(name,)]


def options() -> str:
    """One line per command and option, as its help shows them."""
    lines = []
    for path in commands():
        told = io.StringIO()
        with mock.patch.dict("os.environ", {"COLUMNS": "100"}), contextlib.redirect_stdout(told):
            with contextlib.suppress(SystemExit):
                parse([*path, "--help"])
        flags = re.findall(r"^[ │]*(?:-\w, )?(--[a-z][\w.-]*)", told.getvalue(), re.MULTILINE)
        lines += [" ".join(path)] + [f"    {flag}" for flag in dict.fromkeys(flags)]
    return "\n".join(lines) + "\n"


def test_options_are_those_that_are_frozen() -> None:
    assert options() == FROZEN.read_text(), "see the head of this file"


if __name__ == "__main__":
    sys.stdout.write(options())
