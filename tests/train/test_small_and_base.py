"""The recipes `small` and `base`, each from its raw material on, on parts of the same kinds at reduced depth."""

import json

import pytest
import torch
from fuzz.seeds import SEEDS
from helpers.byte_tokenizer import byte_tokenizer
from helpers.tiny_model import make_language
from helpers.tiny_recipe import shorten_answers
from safetensors.torch import load_file
from transformers import Qwen2ForCausalLM, SiglipVisionModel

from granvit.cli import main
from granvit.cli.recipes import RECIPES
from granvit.corpus.synthetic.synthesize import synthesize
from granvit.loading.models import build
from granvit.nano import models
from granvit.nano.models import SMALL, small_encoder
from granvit.nano.small import ENCODER
from granvit.train.recipes.base import NAMED_PARTS
from granvit.train.shapes import planned_model, published


def run(*words):
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    assert not left.value.code


def changed(before, after):
    """The parts of which a weight differs between two checkpoints."""
    a, b = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    return {name.split(".")[0] for name in a if not torch.equal(a[name], b[name])}


def short(stages, steps=2):
    settings = {"steps": steps, "batch-size": 2, "accumulate": 1, "precision": "fp32"}
    named = {f"--stages.{n}.loop.{name}": value for n in range(stages) for name, value in settings.items()}
    return [word for pair in named.items() for word in pair]


# --- base ------------------------------------------------------------------------------------------------------------

LAYOUTS = {"coco": "", "visual_genome": "", "refcoco": "", "textocr": "TextOCR_0.1_val.json"}


@pytest.fixture(scope="module")
def published_parts(tmp_path_factory):
    """SigLIP2-base and Qwen2.5-0.5B at one layer, the words being few."""
    folder = tmp_path_factory.mktemp("parts")
    tokenizer = byte_tokenizer("qwen2")
    vision, text = published("google/siglip2-base-patch16-256"), published("Qwen/Qwen2.5-0.5B-Instruct")
    vision.num_hidden_layers = text.num_hidden_layers = 1
    text.vocab_size, text.layer_types = len(tokenizer), text.layer_types[:1]
    torch.manual_seed(0)
    build(SiglipVisionModel, vision).save_pretrained(folder / "siglip2")
    build(Qwen2ForCausalLM, text).save_pretrained(folder / "qwen")
    tokenizer.save_pretrained(folder / "qwen")
    return folder


def test_base_from_the_raw_layouts_to_scores_and_an_export(published_parts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shorten_answers(monkeypatch)
    corpora = []
    for layout, src in LAYOUTS.items():
        SEEDS[layout].write(tmp_path / "raw" / layout)
        run("corpus", "import", layout, tmp_path / "raw" / layout / src, f"corpora/{layout}")
        corpora.append(f"corpora/{layout}")
    # A validation file alone is nothing to train on.
    with pytest.raises(SystemExit):
        main(["train", "base", "--corpus", "corpora/textocr", "--encoder", "x", "--language", "y"])
    assert "no image to train on" in capsys.readouterr().err
    run(
        "corpus",
        "import",
        "textocr",
        tmp_path / "raw/textocr/TextOCR_0.1_val.json",
        "corpora/words",
        "--split",
        "train",
    )
    parts = ["--encoder", published_parts / "siglip2", "--language", published_parts / "qwen"]
    used = ["corpora/visual_genome=2", "corpora/coco", "corpora/refcoco", "corpora/words"]
    quick = [*short(2, steps=1), "--stages.0.sample.crop-size", 64]
    run("train", "base", *parts, "--corpus", *used, "--device", "cpu", *quick)
    recipe = json.loads((tmp_path / "runs/base/recipe.json").read_text())
    assert {s["sample"]["max_answer"] for s in recipe["stages"]} == {256}, "paragraphs are not cut"
    assert [s["loop"]["optimizer_groups"] for s in recipe["stages"]] == [{"multi_modal_projector": 50.0}] * 2
    assert recipe["settings"]["codec"] == "decimal" and recipe["stages"][0]["distill_weight"] == 1.0
    stages = tmp_path / "runs/base/stage1/model", tmp_path / "runs/base/stage2/model"
    assert changed(*stages) == {"language_model", "multi_modal_projector"}
    assert json.loads((tmp_path / "runs/base/data.json").read_text())[0]["weight"] == 2.0
    run("eval", "runs/base", "--corpus", "corpora/refcoco", "--limit", 1, "--out", "scores")
    assert "locate" in json.loads((tmp_path / "scores/scores.json").read_text())["scores"]
    run("export", "runs/base", "exported")


# --- small -----------------------------------------------------------------------------------------------------------


def test_small_from_drawn_pictures_to_both_stages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "small_encoder", lambda: models.nano_encoder(canvas=224, width=384, layers=1, heads=6))
    tokenizer = byte_tokenizer("smollm")
    make_language("llama", tokenizer).save_pretrained("language")
    tokenizer.save_pretrained("language")
    synthesize("pages", 6, 1, 224, 0.0, prints=0.5, workers=1, progress=False)
    synthesize("spoken", 6, 1, 224, 0.0, workers=1, progress=False, style="natural")
    run("train", "small-encoder", "--corpus", "pages", "--device", "cpu", *short(2))
    assert ENCODER == "runs/small-encoder/checkpoint"
    run("train", "small", "--language", "language", "--corpus", "spoken", "--device", "cpu", *short(2))
    first, last = tmp_path / "runs/small/stage1/model", tmp_path / "runs/small/stage2/model"
    assert changed(first, last) == {"language_model", "multi_modal_projector"}
    before = load_file(tmp_path / ENCODER / "model.safetensors")
    after = load_file(first / "model.safetensors")
    tower = [name for name in before if name.startswith("vision_tower") and "encoder.layers" in name]
    assert tower and any(not torch.equal(before[name], after[name]) for name in tower)
    given = load_file(tmp_path / "language" / "model.safetensors")
    frozen = {n: t for n, t in given.items() if "embed_tokens" not in n and not n.startswith("lm_head")}
    assert all(torch.equal(after[f"language_model.{n}"], t) for n, t in frozen.items()) and len(frozen) > 10
    words = given["model.embed_tokens.weight"]
    learned = after["language_model.model.embed_tokens.weight"]
    assert torch.equal(learned[: len(words)], words) and len(learned) >= len(words) + 624  # of location tokens
    assert json.loads((first / "granvit.json").read_text())["codec"] == "cell:24"


def test_small_is_the_papers_method_without_what_only_presets_need():
    first, second = RECIPES["small"]().stages
    assert [first.kind, second.kind] == ["stage1", "stage2"]  # no warm-up on symbolic pictures
    assert (first.distill_weight, first.alpha, second.smoothing) == (1.0, 0.9, 0.0)
    assert not second.sample.questions["bbox2caption"]
    assert not {RECIPES["small"]().encoder, RECIPES["small"]().language} & NAMED_PARTS.keys()


def test_its_encoder_is_of_the_shape_that_plans_know():
    millions = sum(p.numel() for p in small_encoder().parameters()) / 1e6
    assert 5 < millions < 25 and SMALL in NAMED_PARTS
    planned = planned_model(RECIPES["small"]())
    shapes = {n: p.shape for n, p in planned.llava.model.vision_tower.named_parameters()}
    assert shapes == {n: p.shape for n, p in small_encoder().named_parameters()}
    assert planned.llava.config.text_config.num_hidden_layers == 30 and planned.image_tokens == 196
