"""`granvit ...`: one program; its commands are the typed dataclasses of `commands.py` and `corpus/commands/`."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, make_dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.extras import SubcommandApp

from granvit.cli.brief_help import shortened
from granvit.errors import GranvitError, in_one_line
from granvit.ranges import check_ranges

if TYPE_CHECKING:
    from granvit.train.recipes.base import Recipe

# In place of a recipe's name: the recipe.json of a run.
CONFIG = "--config"


@dataclass(frozen=True)
class Command:
    """One command: its line in the help, and its class, whose module is imported when the command is given."""

    help: str
    load: Callable[[], Any]


@dataclass(frozen=True)
class Group:
    """Commands under one name, and what the help says of them."""

    help: str
    make: Callable[[], dict[str, Command]]

    @property
    def commands(self) -> dict[str, Command]:
        return self.make()


def command_tree() -> dict[str, Command | Group]:
    """All commands by name, a `Group` where several have a first word in common.

    A command's line is the first of its class's docstring (tested), here so that the help needs no import.
    """
    return {
        "demo": _command(
            "train.Demo", "Run the whole recipe at nano size and write an HTML report: a few minutes on two CPU cores."
        ),
        "train": Group(
            f"Train a recipe on the embedded corpus or on your own; {CONFIG} RUN/recipe.json takes that of a run.",
            lambda: _of_recipes("train.Train"),
        ),
        "plan": Group(
            "Say what training a recipe takes: parameters, memory, hours, price; without a GPU.",
            lambda: _of_recipes("plan.Plan"),
        ),
        "assemble": Group("Write the model that a recipe starts from.", lambda: _of_recipes("train.Assemble")),
        "eval": _command(
            "evaluate.Eval",
            "Score a checkpoint on the held-out images of a corpus, or on public benchmarks from local files.",
        ),
        "benchmarks": _command(
            "evaluate.Benchmarks",
            "List the benchmarks that `granvit eval --bench NAME=SRC` reads, and the files they expect.",
        ),
        "loss": _command(
            "evaluate.Loss",
            "Measure the loss on a corpus's held-out images: of each kind of question, and of conversations.",
        ),
        "compare": _command(
            "evaluate.Compare",
            "Compare two evaluations of the same questions: differences with intervals, paired image by image.",
        ),
        "ap": _command(
            "evaluate.AveragePrecision",
            "COCO's average precision of a corpus's boxes against human boxes on the same images (extra `eval`).",
        ),
        "describe": _command("ask.Describe", "Say what is in each box of pictures."),
        "locate": _command("ask.Locate", "Find the region that each phrase describes."),
        "read": _command("ask.Read", "Transcribe the text in each box of pictures."),
        "caption": _command("ask.Caption", "Describe whole pictures."),
        "ask": _command("ask.Ask", "Ask a question in your own words about pictures, or about boxes in them."),
        "app": _command(
            "ask.App",
            "Open a page to draw boxes on pictures and ask checkpoints about them; several answer side by side.",
        ),
        "export": _command(
            "export.Export",
            "Write a trained model in a form that other programs load without granvit, with a model card.",
        ),
        "transfer": _command(
            "train.Transfer",
            "Give a trained encoder another, larger language model: stage 2 with a fresh "
            "projector, the encoder frozen.",
        ),
        "attend": _command(
            "inspect.Attend",
            "Show where encoders look from a box or a point, what is alike to it, and what an answer's words look at.",
        ),
        "attention-mass": _command(
            "inspect.AttentionMass",
            "Measure how much of what encoders see from a region lies in that region, over a corpus.",
        ),
        "probe": _command(
            "inspect.Probe",
            "Compare frozen encoders without a language model: by small heads on the features of regions.",
        ),
        "study": _command(
            "study.Study",
            "Train arms and seeds, and answer with intervals which of the paper's claims hold: table, plots, page.",
        ),
        "debug": Group(
            "Find out what went wrong in a run.",
            lambda: {
                "replay": _command(
                    "train.Replay",
                    "Take a step again that ended in a loss or gradient that is not finite, and find where.",
                )
            },
        ),
        "corpus": Group("Make and check region corpora.", _of_corpora),
    }


def _of_corpora() -> dict[str, Command]:
    return {
        "import": _command("corpus_make.Import", "Make a corpus from images and regions in a public layout."),
        "annotate": _command(
            "corpus_make.Annotate", "Make a region corpus of images: text is read, objects are found and captioned."
        ),
        "draw": _command(
            "corpus_make.Draw",
            "Draw the embedded corpus: scenes, documents and rendered text with exact boxes and texts.",
        ),
        "verify": _command(
            "corpus_make.Verify",
            "Read a whole corpus and report whatever is wrong with it: checksums, counts, images, boxes, ids.",
        ),
        "export": _command("corpus_look.Export", "Write a corpus in a layout that other trainers read."),
        "curate": _command(
            "corpus_derive.Curate",
            "Write the part of a corpus that is worth training on, and an account of every drop, OUT/curation.json.",
        ),
        "leakage": _command(
            "corpus_derive.Leakage",
            "Look for benchmark images in a corpus: by name, by checksum, and by image similarity.",
        ),
        "audit": _command(
            "corpus_look.Audit",
            "Audit a corpus's annotations: statistics, agreement with human ones and other "
            "models, and pictures to look at.",
        ),
        "stats": _command(
            "corpus_look.Stats",
            "Count what is in a corpus, source by source: images, regions, sizes, texts, languages. Reads no picture.",
        ),
        "head": _command("corpus_look.Head", "Print the first records of a corpus. Reads no picture."),
        "show": _command("corpus_look.Show", "Draw some images with their boxes into one HTML page."),
        "merge": _command("corpus_derive.Merge", "Write several corpora as one."),
        "split": _command(
            "corpus_derive.Split", "Write each split of a corpus as a corpus of its own: OUT/train, OUT/val, OUT/test."
        ),
        "sample": _command("corpus_derive.Sample", "Write a reproducible sample of a corpus."),
        "tile": _command(
            "corpus_derive.Tile",
            "Write a corpus with its large images cut into tiles, for text and objects too "
            "small for an encoder's canvas.",
        ),
    }


def _command(place: str, help: str) -> Command:
    return Command(help, lambda: _class_at(place))


def _class_at(place: str) -> Any:
    """The class of a command: "train.Demo" is `Demo` in `granvit/cli/train.py`."""
    module, _, name = place.partition(".")
    return getattr(import_module(f"granvit.cli.{module}"), name)


def _of_recipes(place: str) -> dict[str, Command]:
    from granvit.cli.recipes import RECIPES

    def command(make: Callable[[], Recipe]) -> Command:
        return Command(_first_line(make), lambda: _with_recipe(_class_at(place), make))

    return {name: command(make) for name, make in RECIPES.items()}


def _first_line(documented: Any) -> str:
    return (documented.__doc__ or "").strip().splitlines()[0]


def _with_recipe(base: type, make: Callable[[], Recipe]) -> Any:
    """A command with one recipe as its default, so that every setting shows and can be overridden."""
    from granvit.train.recipes.base import Recipe

    setting = (Annotated[Recipe, tyro.conf.arg(name="")], field(default_factory=make))
    command = make_dataclass(base.__name__, [("recipe", *setting)], bases=(base,))
    command.__doc__ = make.__doc__
    return command


def _recipe_of(path: Path) -> Callable[[], Recipe]:
    from granvit.cli import recipes  # noqa: F401  (with it come the stages that a recipe may name)
    from granvit.train.recipes.saved import read_recipe

    recipe = read_recipe(path)

    def make() -> Recipe:
        return deepcopy(recipe)

    make.__doc__ = f"The recipe of {path}."
    return make


def parse(args: Sequence[str]) -> Any:
    """The command that the words name, with its settings.

    Only the command that was named is built, so that a mistyped flag is compared with that one's and no other's.
    """
    named, left = ["granvit"], list(args)
    found: Mapping[str, Command | Group] = command_tree()
    while left and (chosen := found.get(left[0].replace("_", "-"))) is not None:
        named.append(left.pop(0).replace("_", "-"))
        if isinstance(chosen, Command):
            return _parse_one(chosen.load(), named, left)
        found = chosen.commands
    if named[1:] in (["train"], ["assemble"], ["plan"]) and left[:1] == [CONFIG] and len(left) > 1:
        module = "plan" if named[1] == "plan" else "train"
        command = _with_recipe(_class_at(f"{module}.{named[1].capitalize()}"), _recipe_of(Path(left[1])))
        command.config = Path(left[1])
        return _parse_one(command, [*named, *left[:2]], left[2:])
    # Help is asked for, or there is no such command: which names there are is all that is needed.
    app = SubcommandApp()
    for name, inner in found.items():
        app.command(name=name, help=inner.help)(_unnamed)
    return app.cli(prog=" ".join(named), args=left)


def _parse_one(command: Any, named: Sequence[str], args: Sequence[str]) -> Any:
    if named[1] in ("train", "assemble", "plan"):
        command, args = shortened(command, args)
    return tyro.cli(command, prog=" ".join(named), args=list(args))


def _unnamed() -> None:
    raise AssertionError("a command that is named is found before")


def main(args: Sequence[str] | None = None) -> None:
    """The program's entry point; exits with the command's status.

    What a user did wrong is printed in one line; anything else is a bug and keeps its traceback.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # What a terminal's encoding cannot show is shown as an escape.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    args = sys.argv[1:] if args is None else args
    if list(args) == ["--version"]:
        from importlib.metadata import version

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
        print(f"granvit: {in_one_line(error)}", file=sys.stderr)
        status = 1
    raise SystemExit(status)
