"""`granvit plan`, as a user gives it: numbers that are known from elsewhere, and what changes when settings change."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.tiny_model import make_model
from helpers.tiny_recipe import save_parts, tiny_recipe

from granvit.cli.app import main, parse
from granvit.corpus.store import CorpusWriter
from granvit.corpus.synthetic.synthesize import make
from granvit.train.build import build_model
from granvit.train.plan import DEVICES
from granvit.train.shapes import published

OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1"}
# Several plans in one process of their own, since what a plan registers with torch is there for all of it.
CHILD = """
import contextlib, io, json, sys
from granvit.cli.app import parse
plans = {}
for name, words in json.loads(sys.argv[1]).items():
    with contextlib.redirect_stdout(io.StringIO()) as said:
        parse(["plan", *words]).run()
    plans[name] = said.getvalue()
print(json.dumps(plans))
"""


def made(**plans: list[str]) -> dict[str, str]:
    """What `granvit plan` prints for the words of each."""
    command = [sys.executable, "-c", CHILD, json.dumps(plans)]
    done = subprocess.run(command, capture_output=True, text=True, env=OFFLINE)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


PAPER = ("paper", "--images", "1e6", "--regions", "6", "--gpus", "8")
BLOCKS = 2


def captions(folder: Path) -> Path:
    """A corpus of captions alone."""
    if not (folder / "captions").exists():
        with CorpusWriter(folder / "captions") as writer:
            for i in range(12):
                writer.write(replace(make(i, seed=1, size=64, documents=0.0), regions=[], split="train"))
            writer.write(replace(make(12, seed=1, size=64, documents=0.0), split="val"))
    return folder / "captions"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of the paper's models, and of a SigLIP2-base and a SmolLM2 of a few blocks."""
    folder = tmp_path_factory.mktemp("shapes")
    parts = {"encoder": "google/siglip2-base-patch16-256", "language": "HuggingFaceTB/SmolLM2-135M-Instruct"}
    words = []
    for part, name in parts.items():
        config = published(name)
        config.num_hidden_layers = BLOCKS
        config.save_pretrained(folder / part)
        words += [f"--{part}", str(folder / part)]
    small = ["paper", *words, "--images", "1e6", "--regions", "6", "--gpus", "8"]
    sixteen = [*small, "--regions", "16"]
    parse(["corpus", "draw", str(folder / "corpus"), "--count", "12"]).run()
    both = [word for n in (0, 1) for word in (f"--stages.{n}.loop.gradient-checkpointing", "language")]
    spread = [word for n in (0, 1) for word in (f"--stages.{n}.loop.parallel", "fsdp")]
    short = [word for n in (0, 1) for word in (f"--stages.{n}.sample.max-answer", "50")]
    build_model(tiny_recipe(save_parts(folder / "parts"))).save(folder / "run" / "checkpoint")
    numbers = ["--images", "1e6", "--regions", "6", "--conversations", "2"]
    finetune = ["finetune", "--init", str(folder / "run"), *numbers]
    return made(
        plain=[*small, "--price", "2", "--json"],
        less=[*small, "--gpu", "a100-40", "--json"],
        recomputed=[*small, *both, "--json"],
        sharded=[*small, *spread, "--json"],
        sixteen=[*sixteen, "--json"],
        sixteen_as_text=sixteen,
        lora=[*small, "--stages.1.lora.rank", "16", "--json"],
        two_crops=[*sixteen, "--stages.0.sample.crops", "2", "--json"],
        few_words=[*small, *short, "--json"],
        captions=["nano", "--corpus", str(captions(folder)), "--gpus", "1", "--json"],
        captions_as_text=["nano", "--corpus", str(captions(folder)), "--gpus", "1"],
        finetune=[*finetune, "--json"],
        finetune_as_text=finetune,
        no_talk=[*finetune, "--conversations", "0", "--json"],
        nano=["nano", "--corpus", str(folder / "corpus"), "--gpus", "1", "--json"],
    )


@pytest.fixture(scope="module")
def plans(texts: dict[str, str]) -> dict[str, dict[str, object]]:
    return {name: json.loads(text) for name, text in texts.items() if not name.endswith("text")}


def stages(planned: dict[str, object]) -> list[dict[str, object]]:
    found: list[dict[str, object]] = planned["stages"]  # type: ignore[assignment]
    return found


@pytest.mark.slow
def test_parameters_of_the_whole_paper_are_those_that_the_checkpoints_are_published_with() -> None:
    """Qwen2.5-1.5B has 1,543,714,304; so400m's tower without its pooling head 412,442,352 with 32 x 32 positions."""
    width, inner, layers, patches = 1152, 4304, 27, 32 * 32
    block = 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width
    tower = layers * block + (3 * 16 * 16 * width + width) + patches * width + 2 * width
    projector = width * 1536 + 1536 + 1536 * 1536 + 1536
    paper = json.loads(made(paper=[*PAPER, "--json"])["paper"])
    first, second = stages(paper)
    whole = tower + projector + 1_543_714_304
    assert second["parameters"] == whole
    assert first["parameters"] == whole + tower  # and the teacher
    assert second["trained"] == projector + 1_543_714_304
    # The last norm is behind what LLaVA reads, and no loss reaches it.
    assert first["trained"] == tower - 2 * width + projector
    # The language model: 2 FLOPs forward and 4 backward per weight of its blocks and token, attention on top.
    least = 6 * (1_543_714_304 - 151_936 * 1536) * float(second["tokens"])  # type: ignore[arg-type]
    parts: dict[str, float] = second["flops"]  # type: ignore[assignment]
    assert least < parts["language"] + parts["backward"] < 1.15 * least


def test_parameters_and_arithmetic_are_those_of_the_parts(plans: dict[str, dict[str, object]]) -> None:
    """A SigLIP2-base of 256 pixels and a SmolLM2, of two blocks each."""
    width, text = 768, 576
    block = 4 * (width * width + width) + 2 * width * 3072 + 3072 + width + 4 * width
    tower = BLOCKS * block + (3 * 16 * 16 * width + width) + 256 * width + 2 * width
    projector = width * text + text + text * text + text
    blocks = BLOCKS * (2 * text * text + 2 * text * 192 + 3 * text * 1536 + 2 * text)
    language = blocks + 49_152 * text + text
    first, second = stages(plans["plain"])
    assert second["parameters"] == tower + projector + language
    assert first["parameters"] == 2 * tower + projector + language  # and the teacher
    assert second["trained"] == projector + language
    # The last norm is behind what LLaVA reads, and no loss reaches it.
    assert first["trained"] == tower - 2 * width + projector
    least = 2 * blocks * float(second["tokens"])  # type: ignore[arg-type]
    parts: dict[str, float] = second["flops"]  # type: ignore[assignment]
    assert least < parts["language"] < 1.15 * least and parts["backward"] > 2 * parts["language"]


def test_steps_hours_and_price_follow(plans: dict[str, dict[str, object]]) -> None:
    paper = plans["plain"]
    for stage in stages(paper):
        assert stage["steps"] == math.ceil(1e6 / 256)
        flops = float(stage["flops_per_image"]) * 256 / 8  # type: ignore[arg-type]
        assert stage["seconds"] == pytest.approx(flops / (989e12 * 0.4))
    hours = sum(float(stage["hours"]) for stage in stages(paper))  # type: ignore[arg-type]
    assert paper["hours"] == pytest.approx(hours)
    assert paper["cost"] == pytest.approx(hours * 8 * 2)


def test_crops_at_the_canvas_size_are_named_as_what_costs_most(
    plans: dict[str, dict[str, object]], texts: dict[str, str]
) -> None:
    """16 crops of as many patches as the picture's own. What is named as cheaper can be given as it stands."""
    many = stages(plans["sixteen"])[0]
    parts: dict[str, float] = many["flops"]  # type: ignore[assignment]
    assert parts["teacher"] == pytest.approx(16 * parts["encode"], rel=0.1)  # the projector is in "encode" too
    cheaper: dict[str, float] = many["cheaper"]  # type: ignore[assignment]
    whole = float(many["flops_per_image"])  # type: ignore[arg-type]
    assert 0.3 * whole < cheaper["stages.0.sample.crop-size 128"] < whole
    [share] = re.findall(r"--stages\.0\.sample\.crops 2 would take (\d+)%", texts["sixteen_as_text"])
    assert round(100 * float(stages(plans["two_crops"])[0]["flops_per_image"]) / whole) == int(share)  # type: ignore[arg-type]


def test_less_memory_lets_more_images_in(plans: dict[str, dict[str, object]]) -> None:
    four = (stages(plans[name]) for name in ("plain", "less", "recomputed", "sharded"))
    for before, less, recomputed, shared in zip(*four, strict=True):
        assert less["largest"] < before["largest"] < recomputed["largest"]  # type: ignore[operator]
        assert recomputed["activations"] < 0.85 * float(before["activations"])  # type: ignore[arg-type,operator]
        assert shared["state"] == pytest.approx(float(before["state"]) / 8)  # type: ignore[arg-type]


def test_a_shipped_recipe_and_the_corpus_of_a_run_can_be_planned(plans: dict[str, dict[str, object]]) -> None:
    planned = plans["nano"]
    workload: dict[str, float] = planned["workload"]  # type: ignore[assignment]
    assert 0 < workload["images"] <= 12 and workload["regions"] > 1
    assert [stage["name"] for stage in stages(planned)] == ["stage1", "stage2"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["paper"], "--corpus DIR, or --images N"),
        (["paper", "--images", "10", "--mfu", "1.5"], "--mfu"),
        (["paper", "--images", "10", "--encoder", "no/such-encoder"], "no/such-encoder"),
        (["nano-language", "--images", "10"], "not 'warmup'"),
        (["paper", "--images", "256", "--gpus", "7"], "images per step"),
        (["paper", "--images", "0"], "--images 0: must be at least 1"),
        (["finetune", "--images", "256"], "name it with --init RUN, or its parts with --encoder and --language"),
        (["finetune", "--images", "256", "--init", "none"], "none/granvit.json: no such file"),
        (["paper", "--images", "256", "--stages.0.sample.max-tokens", "1000"], "leaves no room for a question"),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit) as ended:  # it ends before anything is fake
        main(["plan", *words])
    error = capsys.readouterr().err
    assert ended.value.code == 1 and said in error
    assert len(error.strip().splitlines()) == 1


def test_a_model_to_go_on_from_keeps_its_own_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As training has it, which a plan is of."""
    make_model().save(tmp_path / "run")
    for words in (["--canvas", "1024"], ["--settings.codec", "loc"]):
        with pytest.raises(SystemExit):
            main(["plan", "finetune", "--images", "256", "--init", str(tmp_path / "run"), *words])
        said = capsys.readouterr().err
        assert f"{' '.join(words)}: a model that --init names keeps its own" in said, said


def test_each_gpu_has_a_peak() -> None:
    assert all(device.peak > 1e14 for device in DEVICES.values())


def test_lora_trains_little_and_keeps_as_much(plans: dict[str, dict[str, object]]) -> None:
    whole, small = stages(plans["plain"])[1], stages(plans["lora"])[1]
    block = 16 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536))  # q, o; k, v; gate, up, down
    projector = 768 * 576 + 576 + 576 * 576 + 576
    assert small["trained"] == BLOCKS * block + projector
    assert small["parameters"] == whole["parameters"] + BLOCKS * block
    assert small["checkpoint"] == 12.0 * small["trained"] < whole["checkpoint"] / 10
    assert small["state"] < whole["state"] and small["flops"]["backward"] < whole["flops"]["backward"]


def test_answers_that_training_cuts_are_counted_as_cut(plans: dict[str, dict[str, object]]) -> None:
    """A caption of 150 tokens of which 50 are learned."""
    for whole, cut in zip(stages(plans["plain"]), stages(plans["few_words"]), strict=True):
        assert float(whole["tokens"]) - float(cut["tokens"]) == pytest.approx(100)  # type: ignore[arg-type]
        assert cut["flops"]["backward"] < whole["flops"]["backward"]  # type: ignore[index]
    assert any("cuts them at 50" in said for said in plans["few_words"]["assumed"])  # type: ignore[attr-defined]


def test_a_corpus_of_captions_is_planned_without_regions(
    plans: dict[str, dict[str, object]], texts: dict[str, str]
) -> None:
    planned = plans["captions"]
    assert planned["workload"]["regions"] == 0 and planned["workload"]["images"] == 12  # type: ignore[index]
    assert all(stage["flops"]["teacher"] == 0 for stage in stages(planned))  # type: ignore[index]
    assert "12 images, 0 regions each, 100% with a caption, on 1 x" in texts["captions_as_text"]
    for stage, with_regions in zip(stages(planned), stages(plans["nano"]), strict=True):
        assert stage["activations"] < with_regions["activations"]  # type: ignore[operator]


def test_finetuning_is_planned_from_a_run_with_its_conversations(
    plans: dict[str, dict[str, object]], texts: dict[str, str]
) -> None:
    [talk], [none] = stages(plans["finetune"]), stages(plans["no_talk"])
    assert talk["name"] == "finetune" and float(talk["tokens"]) - float(none["tokens"]) == pytest.approx(600)  # type: ignore[arg-type]
    assert "2 conversations each" in texts["finetune_as_text"]
    assert any("conversations of 300 tokens" in said for said in plans["finetune"]["assumed"])  # type: ignore[attr-defined]
    assert any("no conversations" in said for said in plans["no_talk"]["assumed"])  # type: ignore[attr-defined]
