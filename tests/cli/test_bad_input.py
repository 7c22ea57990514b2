"""Every command with input that is wrong in every way people get it wrong: one line, and never a traceback.

What a command does with right input, and what each refusal says, is tested beside the command.
"""

from dataclasses import dataclass, field

import pytest
from helpers.tiny_model import make_model
from helpers.tiny_recipe import save_parts, shorten_answers, tiny_recipe
from PIL import Image

from granvit.cli.app import command_tree, main
from granvit.cli.recipes import RECIPES
from granvit.corpus.synthetic.synthesize import synthesize
from granvit.ranges import check_ranges


@dataclass
class Command:
    """A command line that works: `inputs` and `options` are places that are read, `outputs` are written to.

    An input that is not given is marked None: it is left out until its turn to be wrong comes.
    """

    words: str
    inputs: list[str] = field(default_factory=list)
    output: bool = True
    options: dict[str, str | None] = field(default_factory=dict)
    output_option: str | None = None
    numbers: tuple[str, ...] = ()


BOX = {"--box": "10,20,60,80"}
COMMANDS = [
    Command(
        "train tiny",
        [],
        False,
        {"--corpus": "more", "--init": None},
        "--out",
        ("--stages.0.loop.lr", "--seed", "--eval-every"),
    ),
    Command("assemble tiny", [], False, {}, "--out", ("--seed",)),
    Command("eval", ["model"], False, {"--corpus": "corpus"}, "--out", ("--limit", "--window", "--batch")),
    Command("loss", ["model"], False, {"--corpus": "corpus"}, "--out", ("--limit", "--batch")),
    Command("eval model", [], False, {"--bench": None, "--images": None}),
    Command("compare", ["corpus", "corpus"], False, {}, "--out"),
    Command("ap", ["corpus", "corpus"], False),
    Command("describe", ["photo.png"], False, {"--model": "model", **BOX}, "--draw", ("--min-confidence",)),
    Command("locate", ["photo.png"], False, {"--model": "model"}, "--draw", ("--min-confidence",)),
    Command("read", ["photo.png"], False, {"--model": "model", **BOX}, "--draw", ("--window",)),
    Command("caption", ["photo.png"], False, {"--model": "model"}, "--draw"),
    Command("ask", ["photo.png"], False, {"--model": "model", **BOX}, "--draw", ("--max-tokens",)),
    Command("export", ["model"], True, {"--metrics": None}),
    Command("transfer", ["model"], False, {"--corpus": "more", "--llm": "parts/language"}, "--out", ("--epochs",)),
    Command("attend", ["photo.png"], False, {"--model": "model", **BOX, "--point": None}, "--out"),
    Command("attention-mass", ["model"], False, {"--corpus": "corpus"}, "--out", ("--limit", "--examples")),
    Command("probe", ["model"], False, {"--corpus": "more", "--held-out": None}, "--out", ("--limit", "--seed")),
    Command("study paper", [], False, {"--corpus": "more", "--arms": None}, "--out", ("--seeds", "--processes")),
    Command("study nano-smollm2 --dry-run", [], False, {"--language": None}, "--out"),
    Command("debug replay", ["model"], False, {"--corpus": None}),
    Command("corpus import image_folder", ["pictures"], True, {"--captions": None}, None, ("--val-fraction",)),
    Command("corpus draw", [], True, {}, None, ("--count", "--seed", "--size", "--documents", "--prints")),
    Command("corpus verify", ["corpus"], False),
    Command("corpus export coco", ["corpus"], True),
    Command("corpus export llava", ["corpus"], True, {}, None, ("--questions-per-conversation",)),
    Command("corpus export webdataset", ["corpus"], True, {}, None, ("--samples-per-shard",)),
    Command("corpus curate", ["corpus"], True, {"--fingerprints": None}, None, ("--workers",)),
    Command("corpus leakage", ["corpus"], False, {"--against": "more"}, "--report", ("--similarity", "--workers")),
    Command("corpus audit", ["corpus"], True, {"--against": None, "--device": None}, None, ("--sample", "--seed")),
    Command("corpus stats", ["corpus"], False),
    Command("corpus head", ["corpus"], False, {}, None, ("--count", "--regions")),
    Command("corpus show", ["corpus"], False, {}, "--out", ("--count", "--seed")),
    Command("corpus merge", ["corpus", "more"]),
    Command("corpus split", ["corpus"], True, {}, None, ("--val", "--test")),
    Command("corpus sample", ["corpus"], True, {}, None, ("--count", "--seed")),
    Command("corpus tile", ["corpus"], True, {}, None, ("--side", "--overlap")),
    Command("corpus annotate", ["pictures"], True, {}, None, ("--batch", "--workers", "--image-seconds")),
]
BAD_INPUTS = ["nowhere", "empty", "void", "junk", "list.json", "photo.png/child", "", "x" * 300, "/dev/null"]
BAD_OUTPUTS = ["photo.png/child", "x" * 300, "/proc/nowhere/out"]
BAD_NUMBERS = ["-1", "nan", "inf", "999999999999999999999"]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shelf")
    make_model().save(folder / "model")
    synthesize(folder / "corpus", 4, 1, 64, 0.5, split="val", workers=1, progress=False)
    synthesize(folder / "more", 4, 2, 64, 0.5, workers=1, progress=False)
    save_parts(folder / "parts")
    (folder / "pictures").mkdir()
    for name in ("photo.png", "pictures/photo.png"):
        Image.effect_noise((200, 100), 90).convert("RGB").save(folder / name)
    (folder / "empty").mkdir()
    (folder / "void").write_text("")
    (folder / "junk").write_bytes(bytes(range(256)))
    (folder / "list.json").write_text("[1, null]")
    return folder


def cases(command: Command) -> list[list[str]]:
    """The command with one thing wrong at a time."""
    words = command.words.split()
    output = ["out"] if command.output else []
    options = [part for name, value in command.options.items() if value is not None for part in (name, value)]
    made = []
    for place in range(len(command.inputs)):
        for bad in BAD_INPUTS:
            made.append([*words, *command.inputs[:place], bad, *command.inputs[place + 1 :], *output, *options])
    rest = [*words, *command.inputs, *output]
    for name in command.options:
        others = {k: v for k, v in command.options.items() if k != name and v is not None}
        given = [part for pair in others.items() for part in pair]
        made += [[*rest, *given, name, bad] for bad in BAD_INPUTS]
        if name in ("--bench", "--images"):
            made += [[*rest, *given, "--bench", f"docvqa={bad}"] for bad in BAD_INPUTS]
    for bad in BAD_OUTPUTS:
        if command.output:
            made.append([*words, *command.inputs, bad, *options])
        if command.output_option is not None:
            made.append([*rest, *options, command.output_option, bad])
    made += [[*rest, *options, name, bad] for name in command.numbers for bad in BAD_NUMBERS]
    return made


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.words)
def test_bad_input_is_one_line(shelf, monkeypatch, capfd, command):
    monkeypatch.chdir(shelf)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setitem(RECIPES, "tiny", lambda: tiny_recipe(shelf / "parts", steps=1))
    RECIPES["tiny"].__doc__ = "Seconds."
    shorten_answers(monkeypatch)
    for args in cases(command):
        with pytest.raises(SystemExit) as left:
            main(args)
        err = capfd.readouterr().err
        assert "Traceback" not in err, (args, err)
        if left.value.code == 1:
            reported = [line for line in err.splitlines() if line.startswith("granvit: ")]
            assert len(reported) == 1 or "problem(s)" in err or not err, (args, err)
        else:
            assert left.value.code in (0, 2, None), (args, left.value.code, err)


def test_every_command_is_in_the_table():
    def names(tree, first=()):
        for name, command in tree.items():
            inner = getattr(command, "commands", None)
            yield from names(inner, (*first, name)) if inner else [" ".join((*first, name))]

    tested = {command.words for command in COMMANDS}
    recipes = {f"{of} {name}" for of in ("train", "assemble", "plan") for name in RECIPES}
    missing = {name for name in names(command_tree()) if not any(words.startswith(name) for words in tested)} - recipes
    assert missing == {"demo", "benchmarks", "app"}  # no input; a page of its own


def test_the_defaults_of_every_command_are_in_range():
    def walk(tree):
        for command in tree.values():
            inner = getattr(command, "commands", None)
            yield from walk(inner) if inner else [command.load()]

    for command in walk(command_tree()):
        check_ranges({f.name: f.default for f in command.__dataclass_fields__.values()})
