import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.tiny_model import TEXTS, make_language, make_tower
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from granvit.cli import main
from granvit.cli.train import Transfer
from granvit.coordinates import get_codec
from granvit.corpus.synthetic.synthesize import synthesize
from granvit.model.region_model import RegionModel
from granvit.nano.models import train_tokenizer
from granvit.train import config
from granvit.train.config import CroppedSample, LoopConfig, feed_workers
from granvit.train.recipes.base import cpu_precision
from granvit.train.recipes.paper import paper, paper_transfer
from granvit.train.stages.config import PretrainConfig

# Libraries that take seconds to import.
SLOW = ("torch", "transformers", "accelerate", "grain", "matplotlib", "scipy", "datasets")


def test_the_program_starts_without_the_slow_libraries():
    """`granvit --help` shows every recipe with all its settings, which takes no torch."""
    code = (
        "import json, sys\n"
        "from granvit.cli import main\n"
        "try: main(['train', 'nano', '--help'])\n"
        "except SystemExit as left: assert left.code == 0\n"
        f"print(json.dumps([name for name in {SLOW} if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--stages.0.loop.steps" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_the_cpus_precision_is_reported_as_torch_states_it():
    assert (cpu_precision() == "bf16") == torch.cpu._is_avx512_bf16_supported()


# --- steps that follow from the corpus -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "processes", "steps", "accumulate"),
    [(29_510_000, 8, 115274, 8), (29_510_000, 64, 115274, 1), (257, 1, 2, 64), (3, 1, 1, 64)],
)
def test_an_epoch_is_the_same_steps_on_any_number_of_processes(images, processes, steps, accumulate):
    for stage in paper().resolved(images, processes).stages:
        assert (stage.loop.steps, stage.loop.accumulate) == (steps, accumulate)


def test_numbers_that_are_named_count():
    stage = PretrainConfig(CroppedSample(), LoopConfig(steps=7, batch_size=4, accumulate=3), epochs=5)
    assert stage.resolved(1000, 2) == stage
    half = replace(stage, loop=replace(stage.loop, steps=0), epochs=0.5)
    assert half.resolved(1000, 2).loop.steps == 21  # 500 images, 24 at a time
    with pytest.raises(ValueError, match="stage1: 256 images per step are no whole number of batches of 4 on 3 proc"):
        paper().resolved(1000, 3)


def test_beside_a_gpu_its_share_of_the_cores_prepares_images(monkeypatch):
    monkeypatch.setattr(config.os, "sched_getaffinity", lambda pid: range(48))
    assert feed_workers(None, "cpu") == 0 and feed_workers(3, "cpu") == 3
    monkeypatch.setattr(config, "on_cpu", lambda device: False)
    assert feed_workers(None, "auto") == 8 and feed_workers(0, "auto") == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert feed_workers(None, "auto") == 5


# --- the paper's recipe ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stock(tmp_path_factory) -> Path:
    """Random stand-ins as `transformers` itself saves them: a SigLIP tower, a Qwen2 and a Llama that know only text."""
    folder = tmp_path_factory.mktemp("stock")
    make_tower().save_pretrained(folder / "siglip")
    for kind, special in (("qwen2", ["<|im_start|>", "<|im_end|>"]), ("llama", ["<|start_header_id|>", "<|eot_id|>"])):
        tokenizer = train_tokenizer([*TEXTS, "0123456789.,[] "], 300, get_codec("decimal"))
        tokenizer.chat_template = None
        tokenizer.add_special_tokens(
            {"additional_special_tokens": [*special, "<|begin_of_text|>", "<|end_header_id|>"]}
        )
        make_language(kind, tokenizer, width=48 if kind == "llama" else 32).save_pretrained(folder / kind)
        tokenizer.save_pretrained(folder / kind)
    synthesize(folder / "corpus", 8, 3, 64, 0.3, "train", workers=1, progress=False)
    return folder


def train(*args: object) -> None:
    with pytest.raises(SystemExit) as left:
        main(["train", *map(str, args), "--device", "cpu"])
    assert not left.value.code


def short(stage: int) -> list[str]:
    start = f"--stages.{stage}."
    return [f"{start}loop.batch-size", "2", f"{start}images-per-step", "4", f"{start}loop.lr", "0.001"]


def parts_that_differ(one: Path, other: Path) -> set[str]:
    a, b = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert a.keys() == b.keys()
    return {name.split(".")[0] for name in a if not torch.equal(a[name], b[name])}


def test_the_papers_recipe_from_stock_checkpoints_to_a_transfer(stock, tmp_path):
    run = tmp_path / "run"
    parts = ["--encoder", stock / "siglip", "--language", stock / "qwen2", "--corpus", stock / "corpus"]
    train("paper", *parts, "--out", run, *short(0), *short(1))
    facts = json.loads((run / "recipe.json").read_text())
    for stage in facts["stages"]:
        assert (stage["loop"]["steps"], stage["loop"]["accumulate"]) == (2, 2)  # 8 images, 4 a step
    assert facts["stages"][0]["distill_weight"] == 1.0 and facts["stages"][0]["alpha"] == 0.9
    rows = [json.loads(line) for line in (run / "stage1" / "history.jsonl").read_text().splitlines()]
    assert rows[-1]["distill"] > 0 and rows[-1]["caption"] > 0
    assert "vision_tower" not in parts_that_differ(run / "stage1" / "model", run / "stage2" / "model")
    given = load_file(stock / "qwen2" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    kept = load_file(run / "stage1" / "model" / "model.safetensors")["language_model.model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(given, kept)  # frozen in stage 1
    LlavaForConditionalGeneration.from_pretrained(run / "checkpoint")

    out, parts = tmp_path / "out", ["--encoder", run / "checkpoint", "--language", stock / "llama"]
    train("paper-transfer", *parts, "--corpus", stock / "corpus", "--out", out, *short(0))
    assert RegionModel.load(out / "checkpoint").llava.config.text_config.hidden_size == 48
    before, after = (load_file(folder / "checkpoint" / "model.safetensors") for folder in (run, out))
    tower = [name for name in before if name.startswith("vision_tower.")]
    assert tower and all(torch.equal(before[name], after[name]) for name in tower)

    command = Transfer(run, str(stock / "llama"), (str(stock / "corpus"),)).recipe()
    recipe = replace(paper_transfer(), encoder=str(run / "checkpoint"), language=str(stock / "llama"))
    assert replace(command, name=recipe.name) == recipe


def test_a_stage_whose_package_is_not_imported_is_named(tmp_path):
    """In a process of its own: here the warm-ups are imported."""
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"stages": [{"kind": "warmup"}]}))
    code = (
        "import sys; from pathlib import Path; from granvit.errors import GranvitError\n"
        "from granvit.train.recipes.saved import read_recipe\n"
        "try: read_recipe(Path(sys.argv[1]))\n"
        "except GranvitError as error: print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert "not 'warmup'" in ran.stdout and "import granvit.nano" in ran.stdout
