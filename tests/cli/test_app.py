import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.tiny_model import make_model
from helpers.tiny_recipe import save_parts, shorten_answers, tiny_recipe
from PIL import Image
from transformers.utils.logging import enable_progress_bar

from granvit.cli import main
from granvit.cli.app import Group, command_tree
from granvit.cli.evaluate import Benchmarks
from granvit.cli.recipes import RECIPES
from granvit.cli.train import Demo, Train
from granvit.corpus.store import Corpus
from granvit.corpus.synthetic.scenes import SOURCES
from granvit.corpus.synthetic.synthesize import synthesize
from granvit.model.region_model import RegionModel
from granvit.nano.recipes import nano
from granvit.predict import GranViT, Text

COMMANDS = [
    "demo",
    "train",
    "eval",
    "benchmarks",
    "compare",
    "ap",
    "describe",
    "locate",
    "read",
    "caption",
    "ask",
    "corpus",
]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder with a checkpoint "model", a corpus "corpus", "parts" of a recipe, a picture and what is none."""
    folder = tmp_path_factory.mktemp("shelf")
    make_model().save(folder / "model")
    synthesize(folder / "corpus", 6, 1, 64, 0.5, split="val", workers=1, progress=False)
    synthesize(folder / "more", 6, 2, 64, 0.5, workers=1, progress=False)
    synthesize(folder / "alone", 1, 2, 64, 0.0, workers=1, progress=False)
    save_parts(folder / "parts")
    Image.effect_noise((200, 100), 90).convert("RGB").save(folder / "photo.png")
    (folder / "note.png").write_text("not a picture")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture
def granvit(shelf, monkeypatch, capsys):
    """Runs a command in the shelf's folder: (exit status, standard output, standard error)."""
    monkeypatch.chdir(shelf)
    shorten_answers(monkeypatch)
    enable_progress_bar()  # as in a fresh process

    def run(*args: str):
        with pytest.raises(SystemExit) as left:
            main([str(a) for a in args])
        out, err = capsys.readouterr()
        return left.value.code or 0, out, err

    return run


# --- help ------------------------------------------------------------------------------------------------------------


def test_help_names_every_command(granvit):
    status, out, _ = granvit("--help")
    assert status == 0 and all(name in out for name in COMMANDS)


@pytest.mark.parametrize(
    ("command", "shows"),
    [
        ("demo", "--corpus"),
        ("train", "nano-paper"),
        ("eval", "--tasks"),
        ("compare", "paired image by image"),
        ("ap", "--by-text"),
        ("describe", "X1,Y1,X2,Y2"),
        ("locate", "phrases"),
        ("read", "--window"),
        ("caption", "--draw"),
        ("corpus", "verify"),
        ("corpus import", "jsonl"),
        ("corpus verify", "corpus folder"),
        ("corpus draw", "--documents"),
        *((f"train {name}", "--stages.0.loop.steps") for name in RECIPES),
    ],
)
def test_help_of_every_command(granvit, command, shows):
    status, out, err = granvit(*command.split(), "--help")
    assert status == 0 and shows in out and not err


def every_command(tree):
    for command in tree.values():
        yield from every_command(command.commands) if isinstance(command, Group) else [command]


def test_the_line_of_a_command_is_the_first_of_its_docstring():
    found = list(every_command(command_tree()))
    assert len(found) > 40
    for command in found:
        assert command.help == command.load().__doc__.strip().splitlines()[0]


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["corpus", "--help"]])
def test_help_waits_for_no_library(args):
    heavy = ("torch", "transformers", "pyarrow", "numpy", "PIL")
    script = f"""
import sys
from granvit.cli import main
try:
    main({args!r})
except SystemExit as end:
    assert not end.code
assert not [name for name in {heavy!r} if name in sys.modules]
"""
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


def test_a_reader_that_has_seen_enough_is_no_error():
    program = subprocess.Popen(
        [sys.executable, "-m", "granvit", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    program.stdout.close()
    assert program.stderr.read() == b"" and program.wait() == 128 + 13


def test_a_mistyped_flag_names_the_nearest_ones_of_its_command_alone(granvit):
    status, _, err = granvit("train", "nano", "--corpis", "x")
    assert status == 2 and "--corpus" in err and len(err.splitlines()) < 12 and "nano-own" not in err
    status, _, err = granvit("train", "paper", "--lr", "1")
    assert status == 2 and "--stages.0.loop.lr" in err and "train paper --help" in err
    status, _, err = granvit("corpus", "curate", "a", "b", "--overwrit")
    assert status == 2 and "--overwrit" in err and "corpus curate --help" in err and "nano" not in err


def test_the_version(granvit):
    assert granvit("--version") == (0, f"granvit {version('granvit')}\n", "")


@pytest.mark.parametrize(
    ("command", "way"), [(["demo"], "; the same command goes on from where it was"), (["benchmarks"], "")]
)
def test_an_interrupted_command_is_one_line(granvit, monkeypatch, command, way):
    def interrupted(self):
        raise KeyboardInterrupt

    for kind in (Demo, Benchmarks):
        monkeypatch.setattr(kind, "run", interrupted)
    assert granvit(*command) == (130, "", f"granvit: interrupted{way}\n")


def test_an_unknown_command_is_refused(granvit):
    status, _, err = granvit("descibe", "photo.png")
    assert status == 2 and "descibe" in err and "describe" in err


# --- corpora ---------------------------------------------------------------------------------------------------------


def test_corpus_draw_and_verify(granvit, tmp_path):
    status, out, _ = granvit("corpus", "draw", tmp_path / "drawn", "--count", "3", "--size", "64", "--split", "val")
    assert status == 0 and "3 pictures" in out
    assert [r.split for r in Corpus(tmp_path / "drawn")] == ["val"] * 3
    assert granvit("corpus", "verify", tmp_path / "drawn") == (0, f"{tmp_path / 'drawn'}: in order\n", "")
    shard = tmp_path / "drawn" / "part-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    status, out, _ = granvit("corpus", "verify", tmp_path / "drawn")
    assert status == 1 and "part-00000.parquet" in out and "problem(s)" in out


def test_corpus_import(granvit, tmp_path):
    (tmp_path / "pack").mkdir()
    shutil.copy("photo.png", tmp_path / "pack")
    row = {"image": "photo.png", "width": 200, "height": 100, "source": "mine", "split": "train"}
    row["regions"] = [{"bbox": [0, 0, 50, 50], "kind": "object", "caption": "noise"}, {"bbox": [9, 9, 1, 1]}]
    (tmp_path / "pack" / "annotations.jsonl").write_text(json.dumps(row) + "\n")
    status, out, _ = granvit("corpus", "import", "jsonl", tmp_path / "pack", tmp_path / "out")
    assert status == 0 and "1 of 1" in out and "1 of 2" in out and "quarantine.jsonl" in out
    assert [region.text for region in Corpus(tmp_path / "out")[0].regions] == ["noise"]


# --- training and scores ---------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch, shelf):
    monkeypatch.setitem(RECIPES, "tiny", lambda: tiny_recipe(shelf / "parts", steps=1))
    RECIPES["tiny"].__doc__ = "Seconds."


def test_train_a_recipe_with_overrides_on_mixed_corpora(granvit, tiny, tmp_path):
    options = ["--stages.0.loop.lr", "0.01", "--stages.1.sample.max-regions", "3", "--device", "cpu"]
    synthesize(tmp_path / "a", 5, 3, 64, 0.5, workers=1, progress=False)
    corpora = [f"{tmp_path / 'a'}=0.5", "more"]
    command = ["train", "tiny", "--out", tmp_path / "run", "--corpus", *corpora, *options]
    status, out, err = granvit(*command)
    assert status == 0 and f"checkpoint: {tmp_path / 'run' / 'checkpoint'}" in out and "Loading" not in err
    facts = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert facts["stages"][0]["loop"]["lr"] == 0.01 and facts["stages"][1]["sample"]["max_regions"] == 3
    assert facts["stages"][1]["loop"]["lr"] == 0.001
    GranViT.load(tmp_path / "run")

    assert granvit(*command)[0] == 0  # nothing is left to do
    status, _, err = granvit(*command, "--no-resume")
    assert status == 1 and err.startswith("granvit: ") and "holds a run" in err
    status, _, err = granvit(*command, "--seed", "3")
    assert status == 1 and err.endswith("seed was 0 there and is 3 in this run (choose another --out to train anew)\n")


def test_a_recipe_given_back_wants_the_corpora_that_it_does_not_name(granvit, tiny, tmp_path):
    status, _, _ = granvit("train", "tiny", "--corpus", "more", "--out", tmp_path / "run")
    again = ["train", "--config", tmp_path / "run/recipe.json", "--out", tmp_path / "again"]
    status, _, err = granvit(*again)
    assert status == 1 and "name them with --corpus DIR" in err and err.count("\n") == 1
    assert not (tmp_path / "again").exists()
    assert granvit(*again, "--corpus", "more")[0] == 0
    assert stored_weights(tmp_path / "again") == stored_weights(tmp_path / "run")


def test_init_keeps_its_own_settings_and_parts(granvit, tiny, tmp_path):
    assert granvit("train", "tiny", "--corpus", "more", "--out", tmp_path / "run")[0] == 0
    command = ["train", "tiny", "--init", tmp_path / "run", "--corpus", "more", "--out", tmp_path / "next"]
    for flag, value in (("settings.codec", "int1000"), ("settings.fit", "squash"), ("canvas", "320"), ("encoder", "x")):
        status, _, err = granvit(*command, f"--{flag}", value)
        assert status == 1 and f"--{flag} {value}: a model that --init names keeps its own" in err
    assert not (tmp_path / "next").exists()
    assert granvit(*command)[0] == 0
    # Given back, the recipe may go on from a model with parts that nobody named on the command line.
    config = ["train", "--config", tmp_path / "run/recipe.json", "--init", tmp_path / "run"]
    assert granvit(*config, "--corpus", "more", "--out", tmp_path / "third")[0] == 0


def stored_weights(run):
    return (run / "checkpoint/model.safetensors").read_bytes()


def test_a_pretrained_model_learns_drawn_shapes_only_where_that_is_said(granvit, tiny, tmp_path):
    """The parts of `tiny` are somebody's checkpoints; so is any --init."""
    for args in (["tiny"], ["nano", "--init", "model"], ["paper"]):
        status, _, err = granvit("train", *args, "--out", tmp_path / "run")
        assert status == 1 and "--corpus DIR" in err and "--embedded-corpus" in err and err.count("\n") == 1
    status, _, err = granvit("train", "tiny", "--corpus", "more", "--embedded-corpus", "--out", tmp_path / "run")
    assert status == 1 and "exclude each other" in err
    assert not (tmp_path / "run").exists()
    status, out, _ = granvit("train", "tiny", "--embedded-corpus", "--out", tmp_path / "run")
    assert status == 0 and (tmp_path / "run" / "checkpoint").exists()
    assert Train(nano())._check_corpus() is None


def test_of_several_processes_the_first_alone_tells_the_checkpoint(granvit, tiny, monkeypatch):
    monkeypatch.setattr("granvit.train.run.run_recipe", lambda *args, **options: None)
    monkeypatch.setattr("granvit.evaluate.run_report.write_run_report", lambda out, *_, **__: out / "report.html")
    reported = []
    for rank in (0, 1):
        state = SimpleNamespace(is_main_process=rank == 0, num_processes=2)
        monkeypatch.setattr("accelerate.PartialState", lambda state=state, **_: state)
        reported.append(granvit("train", "tiny", "--corpus", "more", "--eval-images", "0"))
    assert reported == [(0, "checkpoint: runs/tiny/checkpoint\nreport: runs/tiny/report.html\n", ""), (0, "", "")]


def test_eval_prints_every_score_beside_the_best_constant(granvit, tmp_path):
    status, out, _ = granvit("eval", "model", "--corpus", "corpus", "--out", tmp_path / "new" / "folder")
    assert status == 0
    for name in ("describe", "locate", "read", "locate_text", "rouge_l", "cer", "parse_rate", "best constant answer"):
        assert name in out
    facts = json.loads((tmp_path / "new" / "folder" / "scores.json").read_text())
    assert {"scores", "baseline", "intervals", "tasks"} <= set(facts)
    assert granvit("eval", "model", "--corpus", "corpus", "--tasks", "read, ", "--limit", "3")[1].startswith("read: ")


def test_an_evaluation_goes_on_where_it_was_and_is_compared(granvit, tmp_path, monkeypatch):
    command = ("eval", "model", "--corpus", "corpus", "--out", tmp_path / "a")
    assert granvit(*command, "--limit", "2")[0] == 0
    asked = []
    answer = GranViT.answer
    monkeypatch.setattr(GranViT, "answer", lambda self, asks, most: asked.extend(asks) or answer(self, asks, most))
    first = granvit(*command, "--batch", "3")[1]
    questions = len((tmp_path / "a" / "items.jsonl").read_text().splitlines())
    assert 0 < sum(len(a.questions) for a in asked) < questions  # some were answered before
    asked.clear()
    assert granvit(*command)[1] == first and not asked
    status, out, _ = granvit("compare", tmp_path / "a", tmp_path / "a" / "scores.json", "--out", tmp_path / "c.json")
    assert status == 0 and "| read | cer |" in out and "| +0.0 | +0.0 to +0.0 | 1.000 |" in out
    reported = json.loads((tmp_path / "c.json").read_text())["differences"]
    assert {row["p"] for row in reported} == {1, None}  # of one image alone there is none
    assert (
        granvit("compare", tmp_path / "a", tmp_path / "a", "--out", tmp_path / "c.json")[0] == 0
    )  # its own is replaced
    scores = (tmp_path / "a/scores.json").read_bytes()
    status, _, err = granvit("compare", tmp_path / "a", tmp_path / "a", "--out", tmp_path / "a/scores.json")
    assert status == 1 and "scores.json: what is there is something else" in err
    assert (tmp_path / "a/scores.json").read_bytes() == scores
    # What one of the two was asked alone is said, whichever it is.
    assert granvit("eval", "model", "--corpus", "corpus", "--tasks", "read", "--out", tmp_path / "b")[0] == 0
    for pair in (("a", "b"), ("b", "a")):
        assert "note: describe: " in granvit("compare", *(tmp_path / name for name in pair))[1]


@pytest.mark.parametrize(
    ("command", "file", "said"),
    [
        (("corpus", "show", "corpus"), "annotations.jsonl", "the name must end in .html"),
        (("loss", "model", "--corpus", "corpus"), "recipe.json", "what is there is something else"),
        (("probe", "model", "--corpus", "corpus"), "recipe.json", "what is there is something else"),
        (("probe", "model", "--corpus", "corpus"), "notes.txt", "the name must end in .json"),
    ],
)
def test_what_somebody_else_wrote_is_not_written_over(granvit, tmp_path, command, file, said):
    (tmp_path / file).write_text('{"mine": 1}')
    status, out, err = granvit(*command, "--out", tmp_path / file)
    assert status == 1 and said in out + err
    assert (tmp_path / file).read_text() == '{"mine": 1}'


def test_average_precision_says_what_kind_there_is(granvit, tmp_path):
    pytest.importorskip("pycocotools")
    for name, documents in (("scenes", 0.0), ("pages", 1.0)):
        synthesize(tmp_path / name, 4, 1, 64, documents, workers=1, progress=False)
    status, out, err = granvit("ap", tmp_path / "pages", tmp_path / "pages")
    assert (status, out) == (1, "") and "no true box of kind object" in err and err.endswith("--kind text\n")
    assert granvit("ap", tmp_path / "pages", tmp_path / "pages", "--kind", "text")[1].splitlines()[1].split() == [
        "ap",
        "100.0%",
    ]
    assert "--kind object" in granvit("ap", tmp_path / "scenes", tmp_path / "scenes", "--kind", "text")[2]


# --- asking ----------------------------------------------------------------------------------------------------------


def test_describe_as_lines_json_and_picture(granvit, tmp_path):
    boxes = ["--box", "10,20,60,80", "--box", "100.5,0,200,50"]
    status, out, err = granvit("describe", "photo.png", "--model", "model", *boxes, "--json")
    assert status == 0 and err == ""
    answers = GranViT.load("model").describe("photo.png", [[10, 20, 60, 80], [100.5, 0, 200, 50]])
    assert json.loads(out) == [
        {"file": "photo.png", "box": box, "text": text, "confidence": pytest.approx(text.confidence, abs=1e-4)}
        for box, text in zip([[10, 20, 60, 80], [100.5, 0, 200, 50]], answers, strict=True)
    ]
    drawn = tmp_path / "new" / "drawn.png"
    status, out, _ = granvit("describe", "photo.png", "--model", "model", *boxes, "--draw", drawn)
    assert status == 0 and out.startswith("10,20,60,80\t")
    with Image.open(drawn) as picture, Image.open("photo.png") as photo:
        assert picture.width >= photo.width and picture.resize(photo.size).tobytes() != photo.tobytes()


def test_read_with_a_window(granvit):
    answers = GranViT.load("model").read("photo.png", [[10, 20, 60, 80]], window=64)
    asked = ["read", "photo.png", "--model", "model", "--box", "10,20,60,80", "--json"]
    [row] = json.loads(granvit(*asked, "--window", "64")[1])
    assert (row["box"], row["text"]) == ([10, 20, 60, 80], answers[0])


def test_boxes_in_shares_and_boxes_partly_outside_are_reported_in_pixels(granvit):
    for command in ("describe", "read"):
        asked = [command, "photo.png", "--model", "model", "--json"]
        status, out, _ = granvit(*asked, "--box=-5,20,60,400")
        assert status == 0 and json.loads(out)[0]["box"] == [0, 20, 60, 100]
        inside = granvit(*asked, "--box", "20,20,100,60")[1]
        assert granvit(*asked, "--box", "0.1,0.2,0.5,0.6", "--normalized") == (0, inside, "")
    # Less than a pixel, in shares, is what was asked for.
    assert granvit(*asked, "--box", "0,0,0.004,0.009", "--normalized")[0] == 0
    status, out, _ = granvit("attend", "photo.png", "--model", "model", "--box", "0.1,0.2,0.5,0.6", "--normalized")
    assert status == 0 and "attend.html" in out


def test_an_answer_that_the_terminal_cannot_show_is_shown_as_escapes(granvit, shelf, monkeypatch):
    monkeypatch.setattr(GranViT, "texts", lambda self, asks, most: [[Text("caf\xe9 \x1b[2J\nok", 0.5)]])
    assert granvit("caption", "photo.png", "--model", "model")[1] == "0,0,200,100\tcaf\xe9 \\x1b[2J\\nok\t0.50\n"
    assert json.loads(granvit("caption", "photo.png", "--model", "model", "--json")[1])[0]["text"].endswith("[2J\nok")
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii:strict", "PYTHONPATH": str(Path(__file__).parents[2])}
    said = "import sys; from granvit.cli import app; app.parse = lambda args: App(); app.main([])"
    class_ = "class App:\n def run(self): print('caf\xe9 \u661f'); return 0\n"
    program = subprocess.run([sys.executable, "-c", class_ + said], env=ascii_only, capture_output=True)
    assert program.returncode == 0 and program.stdout == b"caf\\xe9 \\u661f\n" and not program.stderr


def test_a_drawing_is_whole_and_never_the_picture_itself(granvit, tmp_path):
    shutil.copy("photo.png", tmp_path / "own.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "own.png")
    before = (tmp_path / "own.png").read_bytes()
    for name in ("own.png", "link.png"):
        asked = ["describe", tmp_path / "own.png", *BOX, *MODEL, "--draw", tmp_path / name]
        status, _, err = granvit(*asked)
        assert status == 1 and "is the picture itself" in err and (tmp_path / "own.png").read_bytes() == before
    Image.new("RGB", (20000, 10)).save(tmp_path / "wide.png")
    status, out, err = granvit("caption", tmp_path / "wide.png", *MODEL, "--draw", tmp_path / "drawn.webp")
    assert status == 1 and out.startswith("0,0,20000,10") and "drawn.webp: encoding error" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.png", "own.png", "wide.png"]


def test_a_model_whose_numbers_are_not_finite_has_no_answer(granvit, tmp_path, monkeypatch):
    load = GranViT.load.__func__

    def damaged(cls, *given):
        model = load(cls, *given)
        torch.nn.init.constant_(model.model.llava.lm_head.weight, torch.nan)
        return model

    monkeypatch.setattr(GranViT, "load", classmethod(damaged))
    for command in (["describe", "photo.png", *BOX], ["locate", "photo.png", "tea"], ["caption", "photo.png"]):
        status, out, err = granvit(*command, *MODEL)
        assert status == 1 and not out and err.startswith("granvit: photo.png: the model's numbers are not finite")
    status, out, err = granvit("eval", "model", "--corpus", "corpus")
    last = err.splitlines()[-1]
    assert status == 1 and last.startswith("granvit: ") and "-0000000: the model's numbers are not finite" in last


def test_locate_gives_pixels_or_no_box(granvit, monkeypatch, tmp_path):
    answers = iter([[Text("<loc0004><loc0004><loc0007><loc0015>", 0.75), Text("nowhere", 0.5)]] * 3)
    monkeypatch.setattr(GranViT, "answer", lambda self, asks, longest: [next(answers)])
    asked = ["locate", "photo.png", "red star", "tea", "--model", "model"]
    status, out, _ = granvit(*asked, "--json", "--draw", tmp_path / "drawn.jpg")
    box = [200 * 4.5 / 16, 100 * 4.5 / 16, 200 * 7.5 / 16, 100]
    assert json.loads(out) == [
        {"file": "photo.png", "box": pytest.approx(box, abs=0.01), "text": "red star", "confidence": 0.75},
        {"file": "photo.png", "box": None, "text": "tea", "confidence": 0.5},
    ]
    assert (tmp_path / "drawn.jpg").exists()
    assert granvit(*asked)[1] == "56,28,94,100\tred star\t0.75\nno box\ttea\t0.50\n"
    unsure = granvit(*asked, "--min-confidence", "0.76")[1]
    assert unsure == "no box\tred star\t0.75\nno box\ttea\t0.50\n"


def test_caption(granvit):
    text = GranViT.load("model").caption("photo.png")
    out = granvit("caption", "photo.png", "--model", "model", "--json")[1]
    [row] = json.loads(out)
    assert (row["box"], row["text"]) == ([0, 0, 200, 100], text)


def test_an_unsure_description_is_no_answer(granvit, monkeypatch, tmp_path):
    said = [Text("tea", 0.75), Text("a red star", 0.5)]
    monkeypatch.setattr(GranViT, "texts", lambda self, asks, most: [said])
    asked = ["describe", "photo.png", *MODEL, *BOX, "--box", "0,0,9,9", "--min-confidence", "0.6"]
    assert granvit(*asked)[1] == "10,20,60,80\ttea\t0.75\n0,0,9,9\tno answer\t0.50\n"
    assert [row["text"] for row in json.loads(granvit(*asked, "--json")[1])] == ["tea", None]
    assert granvit(*asked[:-1], "1.5")[2] == "granvit: --min-confidence 1.5: must be from 0 to 1\n"


def test_a_free_question(granvit):
    question = "What is <image> at {box}?"
    answers = GranViT.load("model").ask("photo.png", question, [[10, 20, 60, 80], [0, 0, 9, 9]], max_tokens=7)
    status, out, _ = granvit(
        "ask", "photo.png", question, *MODEL, *BOX, "--box", "0,0,9,9", "--max-tokens", "7", "--json"
    )
    assert status == 0 and [row["text"] for row in json.loads(out)] == answers
    assert [row["box"] for row in json.loads(out)] == [[10, 20, 60, 80], [0, 0, 9, 9]]


def test_a_box_that_answers_a_free_question_is_told_in_pixels(granvit, monkeypatch):
    said = Text("<loc0004><loc0004><loc0007><loc0015>", 0.75)
    monkeypatch.setattr(GranViT, "answer", lambda self, asks, longest: [[said]])
    asked = ["ask", "photo.png", "Where is it?", *MODEL]
    assert granvit(*asked)[1] == f"0,0,200,100\t{said} = 56,28,94,100\t0.75\n"
    assert json.loads(granvit(*asked, "--json")[1])[0]["stated"] == [56.25, 28.12, 93.75, 100]


@pytest.mark.parametrize(
    "command",
    [
        ["describe", "--box", "10,20,30,40"],
        ["read", "--box", "10,20,30,40", "--window", "30"],
        ["caption"],
        ["locate", "--phrase", "tea", "--phrase", "red star"],
        ["ask", "--box", "10,20,30,40"],
    ],
    ids=lambda command: command[0],
)
def test_several_pictures_of_which_one_is_bad(granvit, tmp_path, monkeypatch, command):
    """Each good one is answered as it is alone; the bad one is reported where it stands."""
    monkeypatch.setattr("granvit.cli.ask_pictures._PICTURES", 2)
    for name, size in (("a", (60, 50)), ("b", (90, 70)), ("small", (8, 8)), ("c", (50, 80))):
        Image.effect_noise(size, 90).convert("RGB").save(tmp_path / f"{name}.png")
    shutil.copy("note.png", tmp_path / "note.png")
    good = [str(tmp_path / f"{name}.png") for name in ("a", "b", "c")]
    words = [] if command[0] != "ask" else ["What is it?"]
    alone = [json.loads(granvit(command[0], file, *words, *command[1:], *MODEL, "--json")[1]) for file in good]
    bad = tmp_path / ("small.png" if "--box" in command else "note.png")
    files = [good[0], bad, good[1], tmp_path / "nowhere.png", good[2]]

    status, out, err = granvit(command[0], *files, *words, *command[1:], *MODEL, "--json")

    why = "lies outside" if "--box" in command else "not-an-image"
    assert status == 1 and [line.split(": ")[1] for line in err.splitlines()] == [str(bad), str(files[3])]
    rows = json.loads(out)
    assert [r for r in rows if "error" not in r] == [row for rows in alone for row in rows]
    assert [(r["file"], list(r)) for r in rows if "error" in r] == [(str(f), ["file", "error"]) for f in files[1::2]]
    assert why in err and [r["file"] for r in rows if "error" in r or r in [of[0] for of in alone]] == list(
        map(str, files)
    )
    lines = granvit(command[0], *files, *words, *command[1:], *MODEL, "--jsonl")[1].splitlines()
    assert [json.loads(line) for line in lines] == rows
    printed = granvit(command[0], *files, *words, *command[1:], *MODEL)[1].splitlines()
    assert [line.split("\t")[0] for line in printed] == [r["file"] for of_file in alone for r in of_file]


def test_a_model_of_drawn_pictures_alone_says_so(granvit, tmp_path):
    note = f"note: {tmp_path / 'drawn'} learned from drawn pictures alone: it names drawn shapes and texts, "
    for name, sources, said in (("drawn", SOURCES, note), ("real", SOURCES | {"photos"}, ""), ("old", None, "")):
        model = RegionModel.load("model")
        model.sources = sources
        model.save(tmp_path / name)
        status, out, err = granvit("caption", "photo.png", "--model", tmp_path / name)
        assert status == 0 and said in err and err.count("note: ") == bool(said)
        assert "learned" not in out
        looked = ("attend", "photo.png", "--model", tmp_path / name, "--box", "5,5,20,20", "--out", tmp_path / "look")
        status, out, err = granvit(*looked)
        assert status == 0 and said in err and err.count("note: ") == bool(said)


def test_of_several_pictures_each_is_drawn_into_a_folder(granvit, tmp_path):
    (tmp_path / "more").mkdir()
    for name in ("a.png", "b.png", "more/a.jpg"):
        Image.effect_noise((60, 50), 90).convert("RGB").save(tmp_path / name)
    a, b, other = (tmp_path / name for name in ("a.png", "b.png", "more/a.jpg"))
    out = tmp_path / "drawn"
    assert granvit("caption", a, b, *MODEL, "--draw", out)[0] == 0
    assert sorted(p.name for p in out.iterdir()) == ["a.png", "b.png"]
    assert granvit("caption", a, *MODEL, "--draw", out)[0] == 0  # a folder that is there is one
    for pictures, draw, said in (
        ([a, b], tmp_path / "all.png", "for 2 pictures name a folder"),
        ([a, b], a, "for 2 pictures name a folder"),
        ([a, other], out, "2 pictures would be drawn into"),
        ([b, other], tmp_path, "is the picture itself"),
    ):
        status, printed, err = granvit("caption", *pictures, *MODEL, "--draw", draw)
        assert (status, printed) == (1, "") and said in err, (err, said)


def test_a_picture_for_which_numbers_are_not_finite_costs_itself(granvit, tmp_path, monkeypatch):
    load = GranViT.load.__func__

    def damaged(cls, *given):
        model = load(cls, *given)
        embed = model.model.embed

        def breaks(pixels):
            return torch.where((pixels == 127).all(3).all(2).all(1)[:, None, None], torch.nan, embed(pixels))

        monkeypatch.setattr(model.model, "embed", breaks)
        return model

    monkeypatch.setattr(GranViT, "load", classmethod(damaged))
    Image.new("RGB", (50, 50), (127, 127, 127)).save(tmp_path / "grey.png")
    status, out, err = granvit("caption", "photo.png", tmp_path / "grey.png", "photo.png", *MODEL)
    assert status == 1 and err.startswith(f"granvit: {tmp_path / 'grey.png'}: the model's numbers are not finite")
    assert [line.split("\t")[0] for line in out.splitlines()] == ["photo.png", "photo.png"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "command",
    [
        ["describe", "photo.png", "--box", "1,2,30,40", "--model", "model"],
        ["read", "photo.png", "--box", "1,2,30,40", "--model", "model"],
        ["locate", "photo.png", "tea", "--model", "model"],
        ["caption", "photo.png", "--model", "model"],
        ["eval", "model", "--corpus", "corpus"],
        ["attend", "photo.png", "--point", "9,9", "--model", "model"],
        ["attention-mass", "model", "--corpus", "corpus"],
        ["probe", "model", "--corpus", "more", "--held-out", "corpus"],
        ["corpus", "audit", "corpus", "audited", "--detect.model", "any"],
    ],
)
def test_a_gpu_that_is_not_there_is_one_line(granvit, command):
    status, _, err = granvit(*command, "--device", "cuda")
    assert status == 1
    assert err == "granvit: --device cuda: torch sees no CUDA GPU here; use --device cpu, or auto\n"


# --- errors are one line ---------------------------------------------------------------------------------------------

BOX = ["--box", "10,20,60,80"]
MODEL = ["--model", "model"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["describe", "nowhere.png", *BOX, *MODEL], "nowhere.png: No such file or directory"),
        (["describe", "empty", *BOX, *MODEL], "empty: Is a directory"),
        (["caption", "note.png", *MODEL], "note.png: not-an-image: no known image format"),
        (["describe", "photo.png", "--box", "1,2,3", *MODEL], "--box '1,2,3' is not x1,y1,x2,y2"),
        (["describe", "photo.png", "--box", "1,2,3,x", *MODEL], "--box '1,2,3,x' is not x1,y1,x2,y2"),
        (["read", "photo.png", "--box", "60,20,10,80", *MODEL], "box [60.0, 20.0, 10.0, 80.0] is not x1 < x2"),
        (["describe", "photo.png", "--box", "200,0,300,9", *MODEL], "lies outside the picture of 200x100 pixels"),
        (["describe", "photo.png", "--box", "0.1,0.2,0.5,0.6", *MODEL], "for shares of the picture add --normalized"),
        (["read", "photo.png", *BOX, *MODEL, "--normalized"], "lies outside the picture of 200x100 pixels"),
        (["attend", "photo.png", "--box", "0.1,0.2,0.5,0.6", *MODEL], "for shares of the picture add --normalized"),
        (["locate", "photo.png", "red \udcff star", *MODEL], r"the phrase 'red \udcff star' is not valid Unicode"),
        (["locate", "photo.png", "tea " * 25_000, *MODEL], "makes a question of 50003 tokens, at most 495 are read"),
        (["caption", "photo.png", *MODEL, "--draw", "drawn.psd"], "--draw drawn.psd"),
        (["caption", "/dev/null", *MODEL], "/dev/null: not a regular file"),
        (["describe", "photo.png", *MODEL], "give at least one --box"),
        (["read", "photo.png", *MODEL], "give at least one --box"),
        (["read", "photo.png", *BOX, *MODEL, "--window", "0"], "--window 0"),
        (["locate", "photo.png", *MODEL], "give at least one phrase"),
        (["locate", "photo.png", " ", *MODEL], "an empty phrase"),
        (
            ["locate", "photo.png", "tea", "note.png", *MODEL],
            "note.png is a picture's name: pictures come before phrases",
        ),
        (["locate", "photo.png", "nowhere.jpg", *MODEL], "give at least one phrase"),
        (["describe", *MODEL, *BOX], "name at least one picture"),
        (["caption", "photo.png", *MODEL, "--json", "--jsonl"], "--json and --jsonl: choose one"),
        (["ask", "photo.png", *MODEL], "then the question in quotes"),
        (["ask", "photo.png", "photo.png", *MODEL], "then the question in quotes"),
        (["ask", "photo.png", "Is {box} red?", *MODEL], "the question says {box}: give at least one --box"),
        (["ask", "photo.png", " ", *MODEL], "an empty question"),
        (["ask", "photo.png", "Why?", *MODEL, "--max-tokens", "0"], "--max-tokens 0"),
        (["ask", "photo.png", "tea " * 25_000, *MODEL], "makes a question of 50002 tokens, at most 495 are read"),
        (["caption", "photo.png"], "runs/demo/checkpoint is not there yet: run `granvit demo`"),
        (["caption", "photo.png", "--model", "empty"], "empty/granvit.json: no such file"),
        (["caption", "photo.png", *MODEL, "--draw", "drawn.txt"], "--draw drawn.txt"),
        (["eval", "model", "--corpus", "empty"], "empty/manifest.json is missing"),
        (["eval", "model", "--corpus", "nowhere"], "nowhere is not a folder"),
        (["eval", "empty", "--corpus", "corpus"], "empty/granvit.json: no such file"),
        (["eval", "model", "--corpus", "alone"], "alone: no image is held out"),
        (["eval", "model", "--corpus", "corpus", "--tasks", "sing"], "unknown task(s) sing; known are describe"),
        (["eval", "model", "--corpus", "corpus", "--tasks", " ,"], "--tasks names no task"),
        (["eval", "model", "--corpus", "corpus", "--limit", "0"], "--limit 0"),
        (["eval", "model", "--corpus", "corpus", "--device", "cuda"], "--device cuda: torch sees no CUDA GPU"),
        (["caption", "photo.png", *MODEL, "--device", "cuda"], "--device cuda: torch sees no CUDA GPU"),
        (["attend", "photo.png", *MODEL, *BOX, "--device", "cuda"], "--device cuda: torch sees no CUDA GPU"),
        (["probe", "model", "--corpus", "more", "--device", "cuda"], "--device cuda: torch sees no CUDA GPU"),
        (["eval", "model"], "give --corpus, --bench, or both"),
        (["eval", "model", "--corpus", "corpus", "--batch", "0"], "--batch 0"),
        (["eval", "model", "--corpus", "corpus", "--out", "note.png"], "--out note.png is a file"),
        (["eval", "model", "--bench", "docvqa"], "--bench 'docvqa': NAME=PLACE"),
        (["eval", "model", "--bench", "docvqa=nowhere"], "nowhere does not exist"),
        (["eval", "model", "--bench", "chess=empty"], "unknown benchmark 'chess'"),
        (["eval", "model", "--corpus", "corpus", "--images", "pope=empty"], "--images pope=...: there is no --bench"),
        (["compare", "empty", "empty"], "empty: no evaluation; compared are the single answers"),
        (["compare", "before.json", "after.json"], "before.json: no such file or folder; give the folder that"),
        (["train", "tiny", "--corpus", "more=much"], "'more=much': the weight 'much'"),
        (["train", "tiny", "--corpus", "empty"], "empty/manifest.json is missing"),
        (["train", "tiny", "--corpus", "corpus"], "corpus: no image to train on"),
        (["train", "tiny", "--corpus", "more", "--init", "empty"], "empty/granvit.json: no such file"),
        (["train", "tiny", "--corpus", "more", "--encoder", "/no/such/place"], "/no/such/place: no such folder"),
        (
            ["train", "tiny", "--corpus", "more", "--language", "parts/encoder"],
            "of type 'siglip_vision_model', supported",
        ),
        (["demo", "--corpus", "nowhere"], "nowhere is not a folder"),
        (["corpus", "import", "jsonl", "nowhere", "out"], "nowhere does not exist"),
        (["corpus", "import", "jsonl", "out"], "give SRC and OUT"),
        (["corpus", "draw", "empty/new", "--count", "0"], "at least 1 picture"),
        (["corpus", "draw", "empty/new", "--size", "4"], "at least 32 pixels"),
        (["corpus", "draw", "note.png"], "note.png is a file"),
        (["corpus", "draw", "more"], "more is not empty"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_are_one_line(granvit, tiny, monkeypatch, command, said):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    status, out, err = granvit(*command)
    assert (status, out) == (1, "")
    assert err.startswith("granvit: ") and said in err and err.count("\n") == 1, err


def test_a_corpus_that_fits_no_question_is_reported_in_one_line(granvit, tiny, tmp_path):
    (tmp_path / "pictures").mkdir()
    for i in range(20):
        Image.new("RGB", (40, 40), (i, i, i)).save(tmp_path / "pictures" / f"{i}.png")
    granvit("corpus", "import", "image_folder", tmp_path / "pictures", tmp_path / "bare")
    status, _, err = granvit("train", "tiny", "--corpus", tmp_path / "bare", "--out", tmp_path / "run")
    assert status == 1 and "rejected" in err.splitlines()[-1] and "Traceback" not in err
