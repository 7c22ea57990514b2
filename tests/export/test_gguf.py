"""GGUF files, held to the reader of the `gguf` package and to what llama.cpp's loader and LLaVA graph do with them."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, TokenType
from helpers.byte_tokenizer import byte_tokenizer
from helpers.served import Process
from helpers.tiny_model import CANVAS, PATCH, make_language, make_model, make_tower
from PIL import Image
from tokenizers import Tokenizer, models
from transformers import CLIPVisionConfig, CLIPVisionModel

from granvit.export.gguf import write_mmproj
from granvit.export.llava import ExportError, export
from granvit.model.assemble import assemble
from granvit.model.region_model import Settings
from granvit.questions import GLOBAL

CHECK = Path(__file__).parents[2] / "docs" / "check_served.py"

# Of each way of cutting text an architecture that comes with it.
KINDS = {"qwen2": "qwen2", "llama-bpe": "llama", "smollm": "llama"}


def made(way, **settings):
    tokenizer = byte_tokenizer(way)
    language = make_language(KINDS[way], tokenizer)
    language.resize_token_embeddings(len(tokenizer) + 9)  # real checkpoints have rows to spare
    return assemble(make_tower(), (language, tokenizer), Settings(**settings))


@pytest.fixture(scope="module")
def model():
    return made("qwen2")


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    model.save(folder / "trained")
    assert export(folder / "trained", folder / "tiny", "gguf").left_out == []
    return folder / "tiny"


def facts(path):
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


def tensors(path):
    return {t.name: t for t in GGUFReader(path).tensors}


# --- mmproj ----------------------------------------------------------------------------------------------------------


def test_the_facts_that_the_loader_asks_for(exported):
    found = facts(exported / "mmproj-tiny.gguf")
    expected = {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.projector_type": "mlp",
        "clip.use_gelu": True,
        "clip.vision.image_size": CANVAS,
        "clip.vision.patch_size": PATCH,
        "clip.vision.embedding_length": 32,
        "clip.vision.feed_forward_length": 48,
        "clip.vision.block_count": 2,
        "clip.vision.attention.head_count": 4,
        "clip.vision.projection_dim": 32,
        "clip.vision.image_mean": [0.5] * 3,
        "clip.vision.image_std": [0.5] * 3,
        "clip.vision.feature_layer": [2],
    }
    assert {name: found[name] for name in expected} == expected
    assert found["clip.vision.attention.layer_norm_epsilon"] == pytest.approx(1e-6)


def test_the_tensors_that_the_loader_asks_for_and_no_others(model, exported):
    found = tensors(exported / "mmproj-tiny.gguf")
    block = [f"{part}.{kind}" for part in ("attn_q", "attn_k", "attn_v", "attn_out") for kind in ("weight", "bias")]
    block += [f"{part}.{kind}" for part in ("ln1", "ln2", "ffn_up", "ffn_down") for kind in ("weight", "bias")]
    outside = ["v.patch_embd.weight", "v.patch_embd.bias", "v.position_embd.weight"]
    outside += [f"mm.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")]
    assert set(found) == {*outside, *(f"v.blk.{n}.{name}" for n in range(2) for name in block)}  # so no v.post_ln
    body = {n.removeprefix("vision_model."): t for n, t in model.llava.model.vision_tower.state_dict().items()}
    for ours, theirs in (
        ("encoder.layers.1.mlp.fc1.weight", "v.blk.1.ffn_up.weight"),
        ("encoder.layers.0.self_attn.out_proj.bias", "v.blk.0.attn_out.bias"),
        ("embeddings.position_embedding.weight", "v.position_embd.weight"),
    ):
        assert np.array_equal(found[theirs].data, body[ours].numpy())
    # As llama.cpp counts its sides: from the innermost.
    assert found["v.patch_embd.weight"].shape.tolist() == [PATCH, PATCH, 3, 32]
    assert found["v.blk.0.ffn_up.weight"].shape.tolist() == [32, 48]


def test_what_float16_cannot_hold_is_refused(tmp_path):
    model = make_model()
    with torch.no_grad():
        model.llava.model.multi_modal_projector.linear_2.weight[0, 0] = 1e5
    with pytest.raises(ExportError, match=r"--precision float16: mm.2.weight .* bfloat16"):
        write_mmproj(model, tmp_path / "a.gguf", "a", "float16")
    write_mmproj(model, tmp_path / "b.gguf", "b", "bfloat16")


def test_halves_keep_vectors_and_positions_whole(model, tmp_path):
    for precision, kind in (("float16", GGMLQuantizationType.F16), ("bfloat16", GGMLQuantizationType.BF16)):
        write_mmproj(model, tmp_path / "a.gguf", "a", precision)
        found = tensors(tmp_path / "a.gguf")
        assert found["v.blk.0.attn_q.weight"].tensor_type == kind
        for name in ("v.blk.0.attn_q.bias", "v.position_embd.weight", "mm.2.bias"):
            assert found[name].tensor_type == GGMLQuantizationType.F32
        convolved = found["v.patch_embd.weight"].tensor_type  # llama.cpp convolves with no bfloat16
        assert convolved == (GGMLQuantizationType.F32 if precision == "bfloat16" else kind)


def graph(path, pixels):
    """What llama.cpp's LLaVA graph (mtmd/models/llava.cpp) makes of normalised pixels (3, H, W), from the file."""
    fact = {n.removeprefix("clip.vision."): v for n, v in facts(path).items()}
    w = {name: tensor.data.astype(np.float64) for name, tensor in tensors(path).items()}

    def linear(name, x):
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    def norm(name, x):
        spread = np.sqrt(x.var(-1, keepdims=True) + fact["attention.layer_norm_epsilon"])
        return (x - x.mean(-1, keepdims=True)) / spread * w[name + ".weight"] + w[name + ".bias"]

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def quick_gelu(x):
        return x / (1 + np.exp(-1.702 * x))

    side, patch = fact["image_size"] // fact["patch_size"], fact["patch_size"]
    patches = pixels.reshape(3, side, patch, side, patch).transpose(1, 3, 0, 2, 4).reshape(side * side, -1)
    x = patches @ w["v.patch_embd.weight"].reshape(fact["embedding_length"], -1).T + w.get("v.patch_embd.bias", 0)
    if "v.class_embd" in w:
        x = np.concatenate([w["v.class_embd"].reshape(1, -1), x])
    x = x + w["v.position_embd.weight"]
    if "v.pre_ln.weight" in w:
        x = norm("v.pre_ln", x)
    heads = fact["attention.head_count"]
    for n in range(max(fact["feature_layer"])):
        name = f"v.blk.{n}."
        y = norm(name + "ln1", x)
        q, k, v = (linear(name + f"attn_{p}", y).reshape(len(x), heads, -1).transpose(1, 0, 2) for p in "qkv")
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v
        x = x + linear(name + "attn_out", mixed.transpose(1, 0, 2).reshape(len(x), -1))
        y = linear(name + "ffn_up", norm(name + "ln2", x))
        x = x + linear(name + "ffn_down", (gelu if fact["clip.use_gelu"] else quick_gelu)(y))
    return linear("mm.2", gelu(linear("mm.0", x[len(x) - side * side :])))


def assert_graph_agrees(model, path):
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, CANVAS, CANVAS, 3), dtype=np.uint8))
    with torch.inference_mode():
        ours = model.embed(pixels)[0].numpy()
        theirs = graph(path, model.normalise(pixels)[0].numpy().astype(np.float64))
    assert np.abs(theirs - ours).max() < 2e-3 * np.abs(ours).max()  # the projector's GELU is llama.cpp's, tanh


def test_llama_cpps_graph_computes_our_image_embeddings(model, exported):
    assert_graph_agrees(model, exported / "mmproj-tiny.gguf")


def test_a_clip_tower_too(tmp_path):
    torch.manual_seed(0)
    tower = CLIPVisionModel(
        CLIPVisionConfig(
            image_size=CANVAS,
            patch_size=PATCH,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
        )
    )
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
    tokenizer = byte_tokenizer("qwen2")
    model = assemble(tower, (make_language("qwen2", tokenizer), tokenizer), Settings())
    write_mmproj(model, tmp_path / "clip.gguf", "clip", "float32")
    assert facts(tmp_path / "clip.gguf")["clip.use_gelu"] is False
    assert_graph_agrees(model, tmp_path / "clip.gguf")


def test_towers_that_the_graph_would_compute_otherwise_are_refused(tmp_path):
    model = make_model()
    config = model.llava.config.vision_config
    for name, value, said in (
        ("model_type", "dinov2", "takes towers of SigLIP and CLIP, this is a dinov2"),
        ("hidden_act", "relu", "no activation 'relu'"),
        ("intermediate_size", 32, "swaps their matrices"),
    ):
        before = getattr(config, name)
        object.__setattr__(config, name, value)
        with pytest.raises(ExportError, match=said):
            write_mmproj(model, tmp_path / "a.gguf", "a", "float32")
        object.__setattr__(config, name, before)


# --- language model --------------------------------------------------------------------------------------------------


def test_the_language_model_and_its_tokenizer(model, exported):
    found, weights = facts(exported / "tiny.gguf"), tensors(exported / "tiny.gguf")
    tokenizer = model.processor.tokenizer
    expected = {
        "general.architecture": "qwen2",
        "qwen2.context_length": 512,
        "qwen2.embedding_length": 32,
        "qwen2.block_count": 2,
        "qwen2.feed_forward_length": 48,
        "qwen2.attention.head_count": 4,
        "qwen2.attention.head_count_kv": 2,
        "qwen2.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
        "tokenizer.ggml.padding_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": model.processor.chat_template,
    }
    assert {name: found[name] for name in expected} == expected
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    rows = model.llava.config.text_config.vocab_size
    assert len(tokens) == len(types) == rows == weights["token_embd.weight"].shape[1] > len(tokenizer)
    assert all(tokens[i] == token for token, i in tokenizer.get_vocab().items())
    assert types[tokenizer.convert_tokens_to_ids("<|im_start|>")] == TokenType.CONTROL
    assert types[tokenizer.convert_tokens_to_ids("<image>")] == TokenType.CONTROL
    assert types[-1] == TokenType.UNUSED and types[0] == TokenType.NORMAL
    state = model.llava.model.language_model.state_dict()
    assert np.array_equal(weights["blk.1.attn_k.bias"].data, state["layers.1.self_attn.k_proj.bias"].numpy())
    assert np.array_equal(weights["blk.0.ffn_gate.weight"].data, state["layers.0.mlp.gate_proj.weight"].numpy())
    assert len(weights) == len(state) and "output.weight" not in weights  # the head is tied


@pytest.mark.parametrize("way", ["llama-bpe", "smollm"])
def test_a_llama_and_its_tokenizer(way, tmp_path):
    model = made(way)
    model.save(tmp_path / "trained")
    assert export(tmp_path / "trained", tmp_path / "tiny", "gguf").left_out == []
    found, weights = facts(tmp_path / "tiny" / "tiny.gguf"), tensors(tmp_path / "tiny" / "tiny.gguf")
    end = "<|eot_id|>" if way == "llama-bpe" else "<|im_end|>"
    expected = {
        "general.architecture": "llama",
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 8,
        "tokenizer.ggml.pre": way,
        "tokenizer.ggml.eos_token_id": model.processor.tokenizer.convert_tokens_to_ids(end),
        "tokenizer.ggml.add_bos_token": False,  # Llama 3's template writes it
    }
    assert {name: found[name] for name in expected} == expected
    state = model.llava.model.language_model.state_dict()
    # Of each head of 8 rows the pairs that are turned together: neighbours there, four rows apart here.
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    for theirs, ours, heads in (("attn_q", "q_proj", 4), ("attn_k", "k_proj", 2)):
        rows = [8 * head + row for head in range(heads) for row in order]
        assert np.array_equal(weights[f"blk.1.{theirs}.weight"].data, state[f"layers.1.self_attn.{ours}.weight"][rows])
    assert np.array_equal(weights["blk.1.attn_v.weight"].data, state["layers.1.self_attn.v_proj.weight"])
    assert np.array_equal(weights["output.weight"].data, model.llava.lm_head.weight.detach())


def test_merges_make_the_tokens_that_the_tokenizer_makes(model, exported):
    merges = facts(exported / "tiny.gguf")["tokenizer.ggml.merges"]
    again = Tokenizer(models.BPE(dict(model.processor.tokenizer.get_vocab()), [tuple(m.split(" ")) for m in merges]))
    again.pre_tokenizer = model.processor.tokenizer.backend_tokenizer.pre_tokenizer
    for text in (GLOBAL, "small red star", "[0.125, 0.500, 0.750, 1.000]", "l'été 12  go\n"):
        assert again.encode(text).ids == model.processor.tokenizer.encode(text)


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


STRANGE = {
    "another way to cut text": (lambda t: t.update(pre_tokenizer={"type": "Whitespace"}), "Whitespace.*does not cut"),
    "a space in front": (
        lambda t: t["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
        "does not cut text as any of qwen2, llama-bpe",
    ),
    "a greedy token": (lambda t: t["added_tokens"][0].update(lstrip=True), "swallows the spaces"),
    "small letters": (lambda t: t.update(normalizer={"type": "Lowercase"}), r"changes text first \(Lowercase\)"),
}


@pytest.mark.parametrize("what", STRANGE)
def test_what_the_tokenizers_of_llama_cpp_cannot_do_is_reported(model, tmp_path, what):
    from granvit.export.gguf import write_language

    edit, said = STRANGE[what]
    path = tmp_path / "tokenizer.json"
    model.processor.tokenizer.backend_tokenizer.save(str(path))
    change(path, edit)
    with pytest.raises(ExportError, match=said):
        write_language(model, path, tmp_path / "a.gguf", "a", "float32")
    assert not (tmp_path / "a.gguf").exists()


def test_without_its_tokenizer_the_encoder_goes_alone_and_the_card_says_so(tmp_path):
    make_model("qwen3").save(tmp_path / "trained")
    made = export(tmp_path / "trained", tmp_path / "out", "gguf")
    assert made.left_out == ["the language model: only Qwen2 and Llama language models are written, this is a qwen3"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["README.md", "mmproj-out.gguf"]
    assert "**Not in here:** the language model: only Qwen2 and Llama" in (tmp_path / "out/README.md").read_text()


def card_of(folder, recipe, model):
    """The model card of a run's GGUF export; `recipe` is what its recipe.json says beside the stages' settings."""
    model.save(folder / "run" / "checkpoint")
    loop = {"steps": 1, "batch_size": 1, "accumulate": 1, "lr": 1e-3}
    kinds, learns = recipe.pop("kinds"), recipe.pop("learns", {})
    sample = {"questions": {"global": 1.0}}
    stages = [{"kind": k, "name": "", "loop": loop, "sample": sample, **learns} for k in kinds]
    content = {"name": "a", "encoder": "e", "seed": 0, "processes": 1, "init": None, "stages": stages, **recipe}
    (folder / "run" / "recipe.json").write_text(json.dumps({k: v for k, v in content.items() if v != "unknown"}))
    export(folder / "run", folder / "out", "gguf")
    card = (folder / "out" / "README.md").read_text()
    named = re.findall(r"^llama-(?:server|mtmd-cli) -m (\S+) --mmproj (\S+)( --chat-template \w+)?", card, re.M)
    assert all((folder / "out" / mmproj).exists() for _, mmproj, _ in named)
    return card, {(file, template.strip()) for file, _, template in named}


SMOL = "HuggingFaceTB/SmolLM2-135M-Instruct"
FITS = "The language model was frozen while the encoder was trained"


def test_the_command_of_the_card_names_the_file_that_was_written(model, tmp_path):
    card, named = card_of(tmp_path, {"kinds": ["stage1", "stage2"], "language": SMOL}, model)
    assert named == {("out.gguf", "")} and (tmp_path / "out" / "out.gguf").exists()
    assert FITS not in card


@pytest.mark.parametrize("init", ["runs/other", "unknown"])
def test_of_a_run_that_went_on_from_another_nothing_is_claimed(model, tmp_path, init):
    assert FITS not in card_of(tmp_path, {"kinds": ["stage1"], "language": SMOL, "init": init}, model)[0]


def test_after_stage_1_the_card_names_the_published_file(model, tmp_path):
    card, named = card_of(tmp_path, {"kinds": ["stage1"], "language": SMOL}, model)
    assert named == {("out.gguf", "")}
    assert f"{FITS}, so any GGUF file of `{SMOL}`, smaller ones included,\nfits too" in card
    assert "`--chat-template chatml`" in card


@pytest.mark.parametrize("part", ["train_language", "train_locations"])
def test_where_stage_1_trained_any_of_it_no_published_file_fits(model, tmp_path, part):
    card, named = card_of(tmp_path, {"kinds": ["stage1"], "language": SMOL, "learns": {part: True}}, model)
    assert named == {("out.gguf", "")} and FITS not in card


def test_where_it_was_not_written_the_command_takes_the_published_file(tmp_path):
    tokenizer = byte_tokenizer("smollm")
    qwen3 = assemble(make_tower(), (make_language("qwen3", tokenizer), tokenizer), Settings())
    card, named = card_of(tmp_path, {"kinds": ["stage1"], "language": "Qwen/Qwen3-0.6B"}, qwen3)
    assert named == {("Qwen3-0.6B.gguf", "--chat-template chatml")}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["README.md", "mmproj-out.gguf"]


def test_where_there_is_none_at_all_no_command_names_one(tmp_path):
    card, named = card_of(tmp_path, {"kinds": ["stage1", "stage2"], "language": "nano"}, make_model("qwen3"))
    assert named == set() and "which is not in here" in card and FITS not in card


def test_the_file_that_it_was_read_from_fits_too(model, tmp_path):
    config = model.llava.config.text_config
    config.dequantized_from = "some.Q4_1.gguf (Q4_1)"
    try:
        card, _ = card_of(tmp_path, {"kinds": ["stage1"], "language": "/home/me/some.Q4_1.gguf"}, model)
    finally:
        del config.dequantized_from
    assert "so the file that it was read from, `some.Q4_1.gguf`,\nfits too" in card
    assert "language model `some.Q4_1.gguf`" in card and "/home/me" not in card


def test_without_the_package_the_command_says_what_to_install(model, tmp_path, monkeypatch):
    model.save(tmp_path / "trained")
    monkeypatch.delitem(sys.modules, "granvit.export.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ExportError, match="pip install gguf"):
        export(tmp_path / "trained", tmp_path / "out", "gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["trained"]


def test_the_card_tells_of_the_line_break_that_llama_cpp_leaves_out(exported):
    card = (exported / "README.md").read_text()
    assert "Begin every question with a line break" in card and '-p "\\nPlease provide' in card


# --- llama.cpp itself ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("llama-server") is None, reason="no llama-server on the PATH (Debian: llama.cpp-tools)"
)
def test_llama_server_gives_our_answers(model, exported, tmp_path):
    pictures = []
    for i, size in enumerate(((64, 64), (200, 120), (50, 90))):
        rng = np.random.default_rng(i)
        pictures.append(tmp_path / f"{i}.png")
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(pictures[-1])
    files = ["-m", exported / "tiny.gguf", "--mmproj", exported / "mmproj-tiny.gguf", "--no-warmup", "-c", "512"]
    server = Process(lambda port: ["llama-server", *map(str, files), "--port", str(port)], "/health", tmp_path / "out")
    server.start(patience_s=240)
    try:
        asked = [server.address + "/v1", exported.parent / "trained", *pictures, "--llama-cpp", "--tokens", "8"]
        reported = subprocess.run([sys.executable, CHECK, *map(str, asked)], capture_output=True, text=True)
    finally:
        server.kill()
    assert reported.returncode == 0, reported.stdout + reported.stderr
    assert reported.stdout.endswith("6 of 6 answers are the same\n")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("llama-tokenize") is None, reason="no llama-tokenize on the PATH")
@pytest.mark.parametrize("text", [GLOBAL, "small red star", "[0.125, 1.000]", "l'été 12  go\n", "<|im_start|>user\n"])
def test_llama_cpp_cuts_text_as_we_do(model, exported, text):
    command = ["llama-tokenize", "-m", exported / "tiny.gguf", "--ids", "--no-bos", "--log-disable", "-p", text]
    reported = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    assert json.loads(reported.stdout) == model.processor.tokenizer.encode(text)
