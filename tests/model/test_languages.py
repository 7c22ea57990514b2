"""Every family of language models: saved by transformers, joined, packed, exported, against stock LLaVA."""

import json

import pytest
import torch
from helpers.tiny_languages import MAKES, save_as_published
from helpers.tiny_model import collate, make_samples, make_tower, packed_logits
from transformers import LlavaForConditionalGeneration

from granvit.model.assemble import assemble
from granvit.model.families import LANGUAGES
from granvit.model.languages import load_language
from granvit.model.region_model import RegionModel, Settings
from granvit.train.stages.adapt import Adapt


@pytest.fixture(scope="module", params=MAKES)
def make(request):
    return request.param


@pytest.fixture(scope="module")
def joined(make, tmp_path_factory):
    folder = tmp_path_factory.mktemp(make)
    published = save_as_published(make, folder)
    return assemble(make_tower(), folder, Settings("decimal")), published


def test_the_language_model_is_the_one_that_was_published(joined):
    model, published = joined
    weights = model.llava.model.language_model.state_dict()
    for name, tensor in published.model.state_dict().items():
        rows = len(tensor) if tensor.ndim else None  # the image token was added to the vocabulary
        assert torch.equal(weights[name][:rows], tensor)
    assert model.llava.config.tie_word_embeddings == published.config.tie_word_embeddings


def test_packed_questions_are_answered_as_stock_llava_answers_them_one_by_one(joined, tmp_path):
    model, _ = joined
    samples = make_samples(model, (3, 2))
    with torch.inference_mode():
        ours, _ = packed_logits(model, collate(model, samples))
        model.save(tmp_path)
        llava, info = LlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values()), info
        stock = []
        for sample in samples:
            pixels = model.normalise(torch.from_numpy(sample.pixels)[None])
            for branch in sample.branches:
                ids = torch.tensor([model.dialog.prefix_ids + branch.ids])
                answer = len(branch.ids) - branch.answer_start
                stock.append(llava(input_ids=ids, pixel_values=pixels).logits[0, -answer - 1 : -1])
    torch.testing.assert_close(ours, torch.cat(stock), rtol=0, atol=1e-4)
    assert ours.std() > 0.1


def test_stage_2_reaches_every_matrix(joined):
    model, _ = joined
    stage = Adapt(model)
    batch = collate(model, make_samples(model, (3, 2)))
    stage(batch)["answer"].total.backward()
    parts = ("model.language_model.", "lm_head.", "model.multi_modal_projector.")
    matrices = {n: p for n, p in stage.model.named_parameters() if n.startswith(parts) and p.ndim > 1}
    assert not [n for n, p in matrices.items() if p.grad is None or p.grad.abs().max() == 0]
    assert len(matrices) > 15
    stage.model.zero_grad(set_to_none=True)


def test_a_turn_ends_as_the_family_ends_it(make, joined, tmp_path):
    model, _ = joined
    end = "<|eot_id|>" if make == "llama3" else "<|im_end|>"
    assert model.processor.tokenizer.eos_token == end
    assert model.llava.generation_config.eos_token_id == model.dialog.end_token
    model.save(tmp_path)
    assert RegionModel.load(tmp_path).dialog.ask("where?") == model.dialog.ask("where?")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_cannot_be_joined_is_refused_by_name(tmp_path):
    save_as_published("qwen2", tmp_path)
    edit(tmp_path / "config.json", num_hidden_layers=3, layer_types=["full_attention"] * 3)
    with pytest.raises(ValueError, match="weights missing or of the wrong shape: .*layers.2"):
        load_language(tmp_path)
    edit(tmp_path / "config.json", layer_types=["full_attention", "full_attention", "sliding_attention"])
    with pytest.raises(ValueError, match="layer_types has sliding windows"):
        load_language(tmp_path)
    edit(tmp_path / "config.json", model_type="gemma2")
    with pytest.raises(ValueError, match="type 'gemma2', supported: qwen2 .Qwen2, Qwen2.5., qwen3"):
        load_language(tmp_path)


def test_every_family_of_the_table_is_tested():
    assert {kind for kind, _ in MAKES.values()} == set(LANGUAGES)
