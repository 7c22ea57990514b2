"""`granvit ...`: one program; its commands are the typed dataclasses of `commands.py` and `corpus/commands/`."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, make_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.extras import SubcommandApp

from granvit import commands
from granvit.brief_help import shortened
from granvit.commands_app import App
from granvit.commands_assemble import Assemble
from granvit.commands_debug import Replay
from granvit.commands_eval import AveragePrecision, Benchmarks, Compare, Eval
from granvit.commands_export import Export
from granvit.commands_looking import Attend, AttentionMass, Probe
from granvit.commands_transfer import Transfer
from granvit.corpus.commands import COMMANDS as CORPUS_COMMANDS
from granvit.errors import GranvitError
from granvit.ranges import check_ranges
from granvit.recipes import RECIPES
from granvit.train.recipes.base import Recipe
from granvit.train.recipes.saved import read_recipe

# Commands that a recipe's name follows, or this option with the recipe.json of a run.
OF_RECIPES = {"train": commands.Train, "assemble": Assemble}
CONFIG = "--config"


@dataclass
class Group:
    """Commands under one name, and what the help says of them."""

    told: str
    commands: dict[str, Any]


def command_tree() -> dict[str, Any]:
    """All commands by name, a `Group` where several have a first word in common."""
    return {
        "demo": commands.Demo,
        "train": Group(
            f"Train a recipe on the embedded corpus or on your own; {CONFIG} RUN/recipe.json takes that of a run.",
            _of_recipes(commands.Train),
        ),
        "assemble": Group("Write the model that a recipe starts from.", _of_recipes(Assemble)),
        "eval": Eval,
        "benchmarks": Benchmarks,
        "compare": Compare,
        "ap": AveragePrecision,
        "describe": commands.Describe,
        "locate": commands.Locate,
        "read": commands.Read,
        "caption": commands.Caption,
        "app": App,
        "export": Export,
        "transfer": Transfer,
        "attend": Attend,
        "attention-mass": AttentionMass,
        "probe": Probe,
        "debug": Group("Find out what went wrong in a run.", {"replay": Replay}),
        "corpus": Group("Make and check region corpora.", dict(CORPUS_COMMANDS)),
    }


def _of_recipes(base: type) -> dict[str, Any]:
    return {name: _with_recipe(base, make) for name, make in RECIPES.items()}


def _with_recipe(base: type, make: Callable[[], Recipe]) -> Any:
    """A command with one recipe as its default, so that every setting shows and can be overridden."""
    setting = (Annotated[Recipe, tyro.conf.arg(name="")], field(default_factory=make))
    command = make_dataclass(base.__name__, [("recipe", *setting)], bases=(base,))
    command.__doc__ = make.__doc__
    return command


def _recipe_of(path: Path) -> Callable[[], Recipe]:
    recipe = read_recipe(path)

    def make() -> Recipe:
        return deepcopy(recipe)

    make.__doc__ = f"The recipe of {path}."
    return make


def parse(args: Sequence[str]) -> Any:
    """The command that the words name, with its settings.

    Only the command that was named is built, so that a mistyped flag is compared with that one's and no other's.
    """
    named, found, left = ["granvit"], command_tree(), list(args)
    while isinstance(found, dict) and left and left[0] in found:
        named.append(left.pop(0))
        found = found[named[-1]]
        found = found.commands if isinstance(found, Group) else found
    of_recipe = len(named) > 1 and named[1] in OF_RECIPES
    if of_recipe and isinstance(found, dict) and left[:1] == [CONFIG] and len(left) > 1:
        found = _with_recipe(OF_RECIPES[named[1]], _recipe_of(Path(left[1])))
        named, left = [*named, *left[:2]], left[2:]
    prog = " ".join(named)
    if isinstance(found, dict):
        return _app(found).cli(prog=prog, args=left)
    if of_recipe:
        found, left = shortened(found, left)
    return tyro.cli(found, prog=prog, args=left)


def _app(commands_by_name: dict[str, Any]) -> SubcommandApp:
    app = SubcommandApp()
    for name, command in commands_by_name.items():
        if isinstance(command, Group):
            app.command(_app(command.commands), name=name, help=command.told)
        else:
            app.command(command, name=name, help=(command.__doc__ or "").strip().splitlines()[0])
    return app


def main(args: Sequence[str] | None = None) -> None:
    """The program's entry point; exits with the command's status.

    What a user did wrong is told in one line; anything else is a bug and keeps its traceback.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # What a terminal's encoding cannot show is shown as an escape.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    args = sys.argv[1:] if args is None else args
    if list(args) == ["--version"]:
        print(f"granvit {version('granvit')}")
        raise SystemExit(0)
    command = None
    try:
        try:
            command = parse(args)
            check_ranges(command)
            status = command.run()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # who reads our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor can the interpreter's last flush fail
        status = 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        way = "; the same command goes on from where it was" if getattr(command, "resumes", False) else ""
        print(f"granvit: interrupted{way}", file=sys.stderr)
        status = 128 + signal.SIGINT
    except (GranvitError, OSError) as error:
        print(f"granvit: {_in_one_line(error)}", file=sys.stderr)
        status = 1
    raise SystemExit(status)


def _in_one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())
