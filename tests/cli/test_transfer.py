import json
import shutil

import pytest
import torch
from helpers.tiny_model import TEXTS, make_language, make_model
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from granvit.cli import main
from granvit.coordinates import get_codec
from granvit.corpus.synthetic.synthesize import synthesize
from granvit.model.region_model import RegionModel
from granvit.nano.models import train_tokenizer

QUICK = "--loop.steps 2 --loop.batch-size 2 --loop.accumulate 1 --loop.lr 1e-2 --device cpu".split()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "train"
    synthesize(folder, 6, 0, 64, 0.3, "train")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    make_model("qwen2", codec="loc:16", frame="canvas").save(folder / "checkpoint")
    return folder


def save_llama(folder, codec="loc:16", width=48):
    """Wider than the run's own language model, and of another kind."""
    tokenizer = train_tokenizer(TEXTS, 290, get_codec(codec))
    make_language("llama", tokenizer, width=width).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def transfer(*args):
    with pytest.raises(SystemExit) as left:
        main(["transfer", *map(str, args)])
    return left.value.code


def test_the_encoder_goes_over_bit_for_bit_and_the_new_language_model_learns(run, corpus, tmp_path):
    llama, out = save_llama(tmp_path / "llama"), tmp_path / "out"
    assert transfer(run, "--llm", llama, "--corpus", corpus, "--out", out, *QUICK) == 0
    before = load_file(run / "checkpoint" / "model.safetensors")
    after = load_file(out / "checkpoint" / "model.safetensors")
    tower = [name for name in before if name.startswith("vision_tower.")]
    assert len(tower) > 20 and tower == [name for name in after if name.startswith("vision_tower.")]
    assert all(torch.equal(before[name], after[name]) for name in tower)
    given = load_file(llama / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    assert not torch.equal(after[f"language_model.{name}"], given[name])
    assert after["multi_modal_projector.linear_1.weight"].shape == (48, 32)
    settings = json.loads((out / "checkpoint" / "granvit.json").read_text())
    assert settings == {"codec": "loc:16", "frame": "canvas", "fit": "letterbox"}
    llava = LlavaForConditionalGeneration.from_pretrained(out / "checkpoint")
    assert type(llava.model.language_model).__name__ == "LlamaModel"
    assert RegionModel.load(out / "checkpoint").llava.config.text_config.hidden_size == 48


def test_every_setting_is_a_flag(run, corpus, tmp_path):
    llama, out = save_llama(tmp_path / "llama", codec="int1000"), tmp_path / "out"
    flags = (
        "--codec int1000 --frame image --smoothing 0.5 --seed 3 --sample.max-regions 3 --sample.questions.global 0.5"
    )
    more = ["--sample.questions.bbox2caption", "0.25", "--loop.optimizer-groups", "multi_modal_projector", "10.0"]
    args = (run / "checkpoint", "--llm", llama, "--corpus", corpus, "--out", out, *QUICK, *flags.split(), *more)
    assert transfer(*args) == 0
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["settings"] == {"codec": "int1000", "frame": "image", "fit": "letterbox", "tiles": ""}
    (stage,) = recipe["stages"]
    assert (stage["kind"], stage["smoothing"], recipe["seed"]) == ("stage2", 0.5, 3)
    assert stage["sample"]["questions"] == {"global": 0.5, "bbox2caption": 0.25, "caption2bbox": 1.0}
    assert stage["sample"]["max_regions"] == 3
    assert stage["loop"]["optimizer_groups"] == {"multi_modal_projector": 10.0}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda args: args.update({"--llm": args["--corpus"]}), "train: no language model of that name"),
        (lambda args: args.update({"run": args["--corpus"]}), "granvit.json: no such file"),
        (lambda args: args.update({"--codec": "loc:1000"}), "'loc:1000': the tokenizer has some"),
    ],
)
def test_what_does_not_work_is_reported_in_one_line(run, corpus, tmp_path, spoil, said, capsys):
    args = {"run": run, "--llm": save_llama(tmp_path / "llama"), "--corpus": corpus, "--out": tmp_path / "out"}
    spoil(args)
    flat = [args.pop("run"), *(part for pair in args.items() for part in pair)]
    assert transfer(*flat, *QUICK) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("granvit: ") and said in error


def test_a_run_that_was_cut_off_goes_on(run, corpus, tmp_path):
    """As one step and then another, the transferred model is that of two steps in one go."""
    llama = save_llama(tmp_path / "llama")
    args = (run, "--llm", llama, "--corpus", corpus, *QUICK, "--loop.save-every", 1)
    assert transfer(*args, "--out", tmp_path / "whole") == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "cut", ignore=shutil.ignore_patterns("step_00000002", "model"))
    shutil.rmtree(tmp_path / "cut" / "checkpoint")
    assert transfer(*args, "--out", tmp_path / "cut") == 0
    whole, cut = (load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
