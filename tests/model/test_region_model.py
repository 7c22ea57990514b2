import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.paths import WITHOUT_GRANVIT
from helpers.tiny_model import collate, make_model, packed_logits
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from granvit.errors import CheckpointError
from granvit.model.assemble import assemble, save_encoder, save_language
from granvit.model.encoders import load_encoder
from granvit.model.languages import load_language
from granvit.model.packing import Sample
from granvit.model.region_model import RegionModel, Settings
from granvit.questions import box_exchange, caption_exchange, global_exchange

CHILD = Path(__file__).parent / "stock_child.py"


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture
def saved(model, tmp_path):
    model.save(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


# --- save and load ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("qwen2", Settings("loc:16", "image", "letterbox")),
        ("llama", Settings("decimal", "canvas", "squash")),
    ],
)
def test_round_trip(kind, settings, tmp_path):
    model = make_model(kind, **vars(settings))
    model.save(tmp_path)
    again = RegionModel.load(tmp_path)
    assert again.settings == settings
    weights, loaded = model.llava.state_dict(), again.llava.state_dict()
    assert weights.keys() == loaded.keys()
    assert all(torch.equal(weights[name], loaded[name]) for name in weights)
    assert not again.llava.training and again.llava.dtype == torch.float32
    assert again.dialog.prefix_ids == model.dialog.prefix_ids
    exchange = global_exchange("a small red star")
    assert again.dialog.branch(exchange) == model.dialog.branch(exchange)
    assert (again.canvas, again.patch, again.grid, again.fill) == (64, 16, 4, (127, 127, 127))


@pytest.mark.parametrize(("kind", "head"), [("qwen2", False), ("llama", True)])
def test_weight_names_are_those_that_vllm_reads(kind, head, tmp_path):
    make_model(kind).save(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
    heads = ("vision_tower.vision_model.", "language_model.model.", "multi_modal_projector.linear_")
    assert {n for n in names if not n.startswith(heads)} == ({"language_model.lm_head.weight"} if head else set())
    assert {
        "vision_tower.vision_model.embeddings.patch_embedding.weight",
        "vision_tower.vision_model.encoder.layers.1.mlp.fc2.bias",
        "multi_modal_projector.linear_1.weight",
        "multi_modal_projector.linear_2.bias",
        "language_model.model.embed_tokens.weight",
        "language_model.model.layers.1.self_attn.q_proj.weight",
    } <= names


# --- damaged and foreign checkpoints ---------------------------------------------------------------------------------


def edit(path, **changes):
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(content))


def without(path, word):
    save_file({n: t for n, t in load_file(path).items() if word not in n}, path, metadata={"format": "pt"})


def reshaped(path, word):
    weights = {n: t[:-1].contiguous() if word in n else t for n, t in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


DAMAGES = {
    "no settings": ("granvit.json", Path.unlink, "no such file"),
    "no config": ("config.json", Path.unlink, "no such file"),
    "settings are a list": ("granvit.json", lambda p: p.write_text("[1]"), "JSON object"),
    "config is not JSON": ("config.json", lambda p: p.write_text("{model_type: llava"), "not readable as JSON"),
    "config is not text": ("config.json", lambda p: p.write_bytes(b"\xff\xfe\x00"), "not readable as JSON"),
    "another architecture": ("config.json", lambda p: edit(p, model_type="qwen2_vl"), "'qwen2_vl'"),
    "unknown codec": ("granvit.json", lambda p: edit(p, codec="polar"), "'polar'"),
    "unknown setting": ("granvit.json", lambda p: edit(p, colour="red"), "colour"),
    "unknown frame": ("granvit.json", lambda p: edit(p, frame="world"), "'world'"),
    "unknown fit": ("granvit.json", lambda p: edit(p, fit="stretch"), "'stretch'"),
    "no weights": ("model.safetensors", Path.unlink, "model.safetensors"),
    "weights cut off": ("model.safetensors", lambda p: p.write_bytes(p.read_bytes()[:-5000]), "model.safetensors"),
    "weights of no format": ("model.safetensors", lambda p: p.write_bytes(b"not weights"), "model.safetensors"),
    "weights missing": ("model.safetensors", lambda p: without(p, "layers.1.mlp.fc2"), "layers.1.mlp.fc2"),
    "weights of another shape": ("model.safetensors", lambda p: reshaped(p, "linear_2.weight"), "linear_2.weight"),
    "no tokenizer": ("tokenizer.json", Path.unlink, "tokenizer"),
    "tokenizer is not JSON": ("tokenizer.json", lambda p: p.write_text("{"), "not readable as JSON"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_says_what_is_wrong(saved, damage):
    name, spoil, said = DAMAGES[damage]
    spoil(saved / name)
    with pytest.raises(CheckpointError) as caught:
        RegionModel.load(saved)
    assert said in str(caught.value) and str(saved) in str(caught.value)
    if "missing" not in damage and "shape" not in damage and not damage.startswith("no "):
        assert f"{saved}/{name}: " in str(caught.value)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="granvit.json: no such file"):
        RegionModel.load(tmp_path / "nowhere")


# --- assembling ------------------------------------------------------------------------------------------------------


def test_a_codec_of_which_the_language_model_saw_a_part_is_refused(model):
    language = model.llava.model.language_model
    with pytest.raises(ValueError, match="lacks 4, such as <loc0016>"):
        assemble(model.llava.model.vision_tower, (language, model.processor.tokenizer), Settings("loc:20"))


def test_language_model_and_encoder_can_be_taken_out_and_joined_again(model, tmp_path):
    save_encoder(model, tmp_path / "encoder")
    save_language(model, tmp_path / "language")
    again = assemble(tmp_path / "encoder", tmp_path / "language", model.settings, seed=0)
    weights = again.llava.state_dict()
    old = {n: t for n, t in model.llava.state_dict().items() if "multi_modal_projector" not in n}
    assert len(old) > 50 and all(torch.equal(t, weights[n]) for n, t in old.items())
    assert again.dialog.prefix_ids == model.dialog.prefix_ids


def test_a_language_model_read_back_splits_text_as_it_was_trained(model, tmp_path):
    # `AutoTokenizer` would split as Qwen2's own tokenizer does, whatever tokenizer.json says.
    save_language(model, tmp_path)
    tokenizer = load_language(tmp_path)[1]
    trained = model.processor.tokenizer
    assert tokenizer.get_vocab() == trained.get_vocab()
    for text in ("TOTAL 12.50", "two green  rings", "<loc0003>tea<|end|>"):
        assert tokenizer.encode(text) == trained.encode(text)


def test_another_kind_of_checkpoint_is_no_encoder(model, tmp_path):
    save_language(model, tmp_path)
    with pytest.raises(ValueError, match="encoder of type 'qwen2', supported: siglip"):
        load_encoder(tmp_path)


def test_fresh_projector_speaks_as_loud_as_words(model):
    words = model.llava.get_input_embeddings().weight.std()
    pixels = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8))
    assert 0.5 < model.embed(pixels).std() / words < 2


# --- plain transformers gives what we give ---------------------------------------------------------------------------


def assert_equal(ours, stock):
    """To 1e-5 of the largest value."""
    assert ours.shape == stock.shape
    assert (ours - stock).abs().max() <= 1e-5 * stock.abs().max()


def test_plain_transformers_gives_the_same_logits_and_features(tmp_path):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (53, 91, 3), dtype=np.uint8)).resize((182, 107))
    picture.save(tmp_path / "picture.png")
    models = {
        "qwen2-letterbox": make_model("qwen2"),
        "llama-squash": make_model("llama", fit="squash"),
    }
    codec = models["qwen2-letterbox"].codec
    exchanges = [
        global_exchange("two green rings"),
        caption_exchange((0.1, 0.2, 0.5, 0.9), "small red star", codec),
        box_exchange((0.1, 0.2, 0.5, 0.9), "TOTAL 12.50", codec),
    ]
    (tmp_path / "questions.json").write_text(json.dumps([(e.question, e.answer + "<|end|>") for e in exchanges]))
    for name, model in models.items():
        model.save(tmp_path / name / "llava")
        save_encoder(model, tmp_path / name / "encoder")

    subprocess.run([sys.executable, *WITHOUT_GRANVIT, CHILD, tmp_path], cwd=tmp_path, check=True)

    for name, model in models.items():
        stock = load_file(tmp_path / name / "answers.safetensors")
        pixels = np.array(model.view(picture.size).apply(picture, model.fill))
        with torch.no_grad():
            features = model.features(torch.from_numpy(pixels)[None])
            assert_equal(stock["features"], features)
            assert_equal(stock["encoder_features"], features)
            batch = collate(model, [Sample("a", [model.dialog.branch(e) for e in exchanges], pixels)])
            logits, labels = packed_logits(model, batch)
        expected = []
        for i in range(len(exchanges)):
            branch = batch.input_ids[0][batch.branch_ids[0] == i + 1]
            assert stock[f"ids{i}"].tolist() == model.dialog.prefix_ids + branch.tolist()
            answer = int((batch.labels[0][batch.branch_ids[0] == i + 1] >= 0).sum())
            expected.append(stock[f"logits{i}"][-answer - 1 : -1])
        assert_equal(logits, torch.cat(expected))
