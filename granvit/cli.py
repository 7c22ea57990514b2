"""`granvit ...`: one program; its commands are the typed dataclasses of `commands.py` and `corpus/commands/`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import field, make_dataclass
from typing import Annotated, Any

import tyro
from tyro.extras import SubcommandApp

from granvit import commands
from granvit.commands_assemble import Assemble
from granvit.commands_debug import Replay
from granvit.commands_eval import AveragePrecision, Benchmarks, Compare, Eval
from granvit.commands_export import Export
from granvit.commands_looking import Attend, AttentionMass, Probe
from granvit.commands_transfer import Transfer
from granvit.corpus.commands import COMMANDS as CORPUS_COMMANDS
from granvit.errors import GranvitError
from granvit.train.recipes import RECIPES
from granvit.train.recipes.base import Recipe


def build_app() -> SubcommandApp:
    """All commands: demo, train and assemble RECIPE, eval, describe, locate, read, caption, export, transfer, ..."""
    app = SubcommandApp()
    app.command(name="demo")(commands.Demo)
    for of_recipe, base, told in (
        ("train", commands.Train, "Train a recipe on the embedded corpus or on your own."),
        ("assemble", Assemble, "Write the model that a recipe starts from."),
    ):
        recipes = SubcommandApp()
        for name, make in RECIPES.items():
            recipes.command(name=name, help=(make.__doc__ or "").strip().splitlines()[0])(_with_recipe(base, make))
        app.command(recipes, name=of_recipe, help=told)
    for name, command in (
        ("eval", Eval),
        ("benchmarks", Benchmarks),
        ("compare", Compare),
        ("ap", AveragePrecision),
        ("describe", commands.Describe),
        ("locate", commands.Locate),
        ("read", commands.Read),
        ("caption", commands.Caption),
        ("export", Export),
        ("transfer", Transfer),
        ("attend", Attend),
        ("attention-mass", AttentionMass),
        ("probe", Probe),
    ):
        app.command(name=name)(command)
    debug = SubcommandApp()
    debug.command(name="replay")(Replay)
    app.command(debug, name="debug", help="Find out what went wrong in a run.")
    corpus = SubcommandApp()
    for name, made in CORPUS_COMMANDS.items():
        corpus.command(name=name)(made)
    app.command(corpus, name="corpus", help="Make and check region corpora.")
    return app


def _with_recipe(base: type, make: Callable[[], Recipe]) -> Any:
    """A command with one recipe as its default, so that every setting shows and can be overridden."""
    setting = (Annotated[Recipe, tyro.conf.arg(name="")], field(default_factory=make))
    command = make_dataclass(base.__name__, [("recipe", *setting)], bases=(base,))
    command.__doc__ = make.__doc__
    return command


def main(args: list[str] | None = None) -> None:
    """The program's entry point; exits with the command's status.

    What a user did wrong is told in one line; anything else is a bug and keeps its traceback.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        try:
            status = build_app().cli(prog="granvit", args=args).run()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # who reads our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor can the interpreter's last flush fail
        status = 128 + signal.SIGPIPE
    except (GranvitError, OSError) as error:
        print(f"granvit: {_in_one_line(error)}", file=sys.stderr)
        status = 1
    raise SystemExit(status)


def _in_one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())
