"""A language model from a GGUF file: the same model and the same tokens, or one line that says what is wrong."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from helpers.byte_tokenizer import WAYS, byte_tokenizer
from helpers.tiny_model import make_language, make_tower
from helpers.tiny_recipe import SOURCES, save_parts, shorten_answers, tiny_recipe
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from granvit.errors import GranvitError
from granvit.export import gguf as writing
from granvit.export.llava import export
from granvit.loading.checkpoint_files import LoadError
from granvit.loading.gguf_file import read_gguf
from granvit.model.assemble import assemble
from granvit.model.languages import load_language
from granvit.model.region_model import RegionModel, Settings
from granvit.predict import GranViT
from granvit.train.run import run_recipe
from granvit.train.shapes import planned_model

KINDS = {"qwen2": "qwen2", "llama-bpe": "llama", "smollm": "llama"}
TEXTS = ["small red star", "a  12 b", "[125, 500, 0.375]", "l'été 1234567\n\n  go", "<|im_end|>", "日本 don't"]


def write(folder, language, tokenizer, precision="float32"):
    """`language` as a GGUF file, by way of a model with pictures."""
    model = assemble(make_tower(), (language, tokenizer), Settings("decimal"))
    folder.mkdir(parents=True, exist_ok=True)
    model.processor.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    writing.write_language(model, folder / "tokenizer.json", folder / "tiny.gguf", "tiny", precision)
    return model.llava, folder / "tiny.gguf"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """way -> (the model that was written, its file)."""
    found = {}
    for way in WAYS:
        tokenizer = byte_tokenizer(way)
        language = make_language(KINDS[way], tokenizer)
        language.resize_token_embeddings(len(tokenizer) + 9)  # real checkpoints have rows to spare
        found[way] = write(tmp_path_factory.mktemp(way), language, tokenizer)
    return found


def logits(model, ids=((5, 9, 70, 3, 3, 260, 41),)):
    with torch.inference_mode():
        return model(input_ids=torch.tensor(ids)).logits


@pytest.mark.parametrize("way", WAYS)
def test_it_is_the_model_that_was_written_and_stays_it_as_a_folder(written, way, tmp_path):
    llava, path = written[way]
    model, tokenizer = load_language(path)
    assert torch.equal(logits(model), logits(llava))
    assert model.config.dequantized_from == "tiny.gguf (F32)"
    assert model.config.tie_word_embeddings == (way == "qwen2")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(llava)) and "quantization_config" not in again.config.to_dict()
    assert AutoTokenizer.from_pretrained(tmp_path)(TEXTS).input_ids == tokenizer(TEXTS).input_ids


@pytest.mark.parametrize("way", WAYS)
def test_it_cuts_text_as_the_tokenizer_that_was_written(written, way):
    theirs, ours = byte_tokenizer(way), load_language(written[way][1])[1]
    assert ours(TEXTS).input_ids == theirs(TEXTS).input_ids
    assert ours.eos_token == theirs.eos_token and ours.decode(ours(TEXTS[3]).input_ids) == TEXTS[3]
    assert "<image>" in ours.all_special_tokens or ours.convert_tokens_to_ids("<image>") in ours.added_tokens_decoder


def test_halves_are_made_whole(tmp_path):
    tokenizer = byte_tokenizer("smollm")
    for precision, kind in (("float16", "F16"), ("bfloat16", "BF16")):
        llava, path = write(tmp_path / kind, make_language("llama", tokenizer), tokenizer, precision)
        model, _ = load_language(path)
        assert model.dtype == torch.float32 and model.config.dequantized_from == f"tiny.gguf ({kind})"
        expected = llava.lm_head.weight.to(getattr(torch, precision)).float()
        assert torch.equal(model.lm_head.weight, expected)


def test_llama_31s_positions_are_scaled_as_they_were(tmp_path):
    tokenizer = byte_tokenizer("llama-bpe")
    scaling = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=131072,
        rope_parameters=scaling,
        initializer_range=0.3,
    )
    llava, path = write(tmp_path, LlamaForCausalLM(config), tokenizer)
    model, _ = load_language(path)
    assert len(read_gguf(path).slower) == 32 and max(read_gguf(path).slower) == 32
    assert model.config.rope_parameters["factor"] == 32
    torch.testing.assert_close(logits(model), logits(llava), rtol=0, atol=1e-4)
    plain = LlamaForCausalLM(LlamaConfig(**{**config.to_dict(), "rope_parameters": {"rope_theta": 500000.0}}))
    plain.load_state_dict(model.state_dict())
    assert (logits(plain) - logits(llava)).abs().max() > 1e-3  # so the scaling can be told


def test_a_folder_with_one_file_means_the_file(written, tmp_path):
    shutil.copy(written["smollm"][1], tmp_path / "a.gguf")
    (tmp_path / "mmproj-a.gguf").write_bytes(b"GGUF of another kind")
    assert load_language(tmp_path)[0].config.dequantized_from == "a.gguf (F32)"
    shutil.copy(written["smollm"][1], tmp_path / "b.gguf")
    with pytest.raises(LoadError, match=r"several GGUF files: name one of them \(a.gguf, b.gguf\)"):
        load_language(tmp_path)


# --- a run with it ---------------------------------------------------------------------------------------------------


def test_a_run_from_it_is_a_run_as_any(written, tmp_path, monkeypatch, capsys):
    shorten_answers(monkeypatch)
    recipe = tiny_recipe(save_parts(tmp_path / "parts"))
    recipe.language, recipe.settings = str(written["smollm"][1]), Settings("decimal")
    for stage in recipe.stages:
        stage.sample.max_regions = 2
    recipe.stages[1].smoothing = 0.0
    once = run_recipe(recipe, tmp_path / "run", SOURCES, device="cpu")
    assert "language model: dequantised from tiny.gguf (F32)\n" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "run" / "checkpoint")
    again = run_recipe(recipe, tmp_path / "run", SOURCES, device="cpu")  # goes on from what is finished
    assert all(torch.equal(a, b) for a, b in zip(once.llava.parameters(), again.llava.parameters(), strict=True))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8))
    assert len(GranViT.load(tmp_path / "run").describe(picture, [[3, 4, 40, 30]])) == 1
    assert export(tmp_path / "run", tmp_path / "llava").left_out == []
    card = (tmp_path / "llava" / "README.md").read_text()
    assert "| Language model | llama, 2 layers, 32 wide," in card and "dequantised from tiny.gguf (F32) |" in card
    assert RegionModel.load(tmp_path / "llava").llava.config.text_config.dequantized_from == "tiny.gguf (F32)"
    planned = planned_model(recipe).llava.model.language_model.layers.state_dict()
    assert {n: t.shape for n, t in planned.items()} == {
        n: t.shape for n, t in once.llava.model.language_model.layers.state_dict().items()
    }


# --- what is wrong with it -------------------------------------------------------------------------------------------

# Bytes for others of the same length -> what is said.
DAMAGE = {
    "another architecture": (b"llama", b"gemma", "architecture 'gemma', supported in GGUF: llama, qwen2, qwen3"),
    "another way to cut text": (b"smollm", b"gpt-4x", "with pre 'gpt-4x', supported: 'gpt2' with one of qwen2, llama"),
    "sentencepiece": (b"gpt2", b"spm2", "tokenizer.ggml.model is 'spm2'"),
    "a weight too many": (b"blk.0.attn_norm.weight", b"blk.0.attn_gate.weight", "has no place in a llama"),
    "a block too many": (b"blk.1.attn_norm.weight", b"blk.7.attn_norm.weight", "weights missing or of the wrong shape"),
    "no GGUF": (b"GGUF", b"GGML", "it does not begin with GGUF"),
    "no size": (b"llama.block_count", b"llama.black_count", "llama.block_count is None, not a whole number from 1"),
    "no merges": (b"tokenizer.ggml.merges", b"tokenizer.ggml.herges", "tokenizer.ggml.merges is missing"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_not_supported_or_damaged_is_said_in_one_line(written, tmp_path, what):
    before, after, said = DAMAGE[what]
    content = written["smollm"][1].read_bytes()
    assert before in content and len(before) == len(after)
    path = tmp_path / "odd.gguf"
    path.write_bytes(content.replace(before, after))
    with pytest.raises(GranvitError) as found:
        load_language(path)
    assert said in str(found.value) and str(path) in str(found.value) and "\n" not in str(found.value)


def test_a_file_that_ends_too_early_is_refused_wherever_it_ends(written, tmp_path):
    content = written["smollm"][1].read_bytes()
    path = tmp_path / "short.gguf"
    for length in [0, 3, 20, 100, *range(1000, len(content), len(content) // 40), len(content) - 64]:
        path.write_bytes(content[:length])
        with pytest.raises(LoadError, match="no readable GGUF file|ends before its tensor"):
            read_gguf(path)


def test_damage_anywhere_in_what_it_says_is_found_or_does_no_harm(written, tmp_path):
    content = np.frombuffer(written["smollm"][1].read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    path = tmp_path / "odd.gguf"
    refused = 0
    for _ in range(300):
        odd = content.copy()
        place = int(rng.integers(24 if rng.random() < 0.9 else 0, 16_000))
        odd[place : place + 8] = rng.integers(0, 256, 8) if rng.random() < 0.5 else 255
        odd.tofile(path)
        try:
            read_gguf(path)
        except LoadError:
            refused += 1
    assert refused > 100


def test_a_tensor_of_a_type_that_nobody_knows(tmp_path):
    writer = GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("output.weight", np.zeros((2, 32), np.float32))
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    content = (tmp_path / "a.gguf").read_bytes()
    table = content.index(b"output.weight") + len("output.weight") + 4 + 16
    assert content[table : table + 4] == int(GGMLQuantizationType.F32).to_bytes(4, "little")
    (tmp_path / "a.gguf").write_bytes(content[:table] + (250).to_bytes(4, "little") + content[table + 4 :])
    with pytest.raises(LoadError, match="tensor output.weight is of type 250"):
        read_gguf(tmp_path / "a.gguf")


def test_a_path_that_is_none(tmp_path):
    with pytest.raises(LoadError, match="no such file"):
        load_language(tmp_path / "none.gguf")


def test_without_the_package_it_says_what_to_install(written, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(LoadError, match="GGUF files need the gguf package: pip install gguf"):
        load_language(written["smollm"][1])


def test_files_beside_it_are_not_read(written, tmp_path):
    shutil.copy(written["smollm"][1], tmp_path / "a.gguf")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text(json.dumps({"model_type": "gemma", "auto_map": {"AutoConfig": "evil.Config"}}))
    assert load_language(Path(tmp_path / "a.gguf"))[0].config.model_type == "llama"
