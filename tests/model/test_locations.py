"""Location tokens that a language model has never seen: added, started, and trained while all else of it is frozen."""

import pytest
import torch
from helpers.byte_tokenizer import byte_tokenizer
from helpers.tiny_model import collate, make_language, make_model, make_samples, make_tower
from torch.nn.functional import cosine_similarity

from granvit.coordinates import get_codec
from granvit.errors import GranvitError
from granvit.export.llava import export
from granvit.model.assemble import assemble
from granvit.model.forward import project
from granvit.model.locations import add_tokens, place_codes, rows_of, start_places
from granvit.model.region_model import RegionModel, Settings
from granvit.nano.models import nano_encoder
from granvit.questions import parse_box
from granvit.train.build import drawn_canvases
from granvit.train.config import CroppedSample, LoopConfig, Lora, SampleConfig
from granvit.train.optimizer import make_optimizer
from granvit.train.stages.config import AdaptConfig, PretrainConfig

QUESTIONS = {"global": 0.5, "bbox2caption": 1.0}


@pytest.fixture(params=[("llama", "smollm"), ("qwen2", "qwen2")], ids=["smollm", "qwen2"])
def language(request):
    """A language model with a head of its own, and one with a tied one; neither knows pictures or places."""
    kind, way = request.param
    tokenizer = byte_tokenizer(way)
    return make_language(kind, tokenizer), tokenizer


@pytest.fixture(params=["cell:5", "loc:12"])
def model(request, language):
    return assemble(make_tower(), language, Settings(request.param))


def pretrain(**settings):
    return PretrainConfig(CroppedSample(QUESTIONS, crops=0), LoopConfig(), distill_weight=0.0, **settings)


def test_new_tokens_are_one_each_and_boxes_come_back(model):
    codec, tokenizer = model.codec, model.processor.tokenizer
    assert model.new_tokens
    text = codec.encode([0.1, 0.2, 0.7, 0.9])
    ids = model.dialog.plain.encode([model.dialog.plain.places(text)])[0]
    assert len(ids) == text.count("<")
    rows = rows_of(tokenizer, codec)
    assert all(i in rows for i in ids) and len(model.llava.get_input_embeddings().weight) >= rows.stop
    assert parse_box(model.dialog.decode(ids), codec) == codec.decode(text)


def test_the_same_letters_in_a_caption_are_no_location(model):
    text = model.codec.encode([0.1, 0.2, 0.7, 0.9])
    rows = rows_of(model.processor.tokenizer, model.codec)
    assert not any(i in rows for i in model.dialog.plain.encode([text])[0])


def test_the_words_that_there_were_stay_as_they_were(language):
    old = language[0].get_input_embeddings().weight.detach().clone()
    model = assemble(make_tower(), language, Settings("cell:5"))
    weight = model.llava.get_input_embeddings().weight
    first = rows_of(model.processor.tokenizer, model.codec).start
    known = min(len(old), first)
    assert known > 250 and torch.equal(weight[:known], old[:known])


def test_a_token_that_names_a_cell_has_the_code_of_the_patch_there():
    cells, patches = place_codes(12, 256), place_codes(12, 256)
    assert torch.equal(cells, patches) and 0.9 < cells.std() < 1.1
    # Of a finer grid those alike lie where the cell does.
    finer = cosine_similarity(place_codes(24, 256)[:, None], cells[None], dim=-1).argmax(1).unflatten(0, (24, 24))
    where = torch.arange(24) // 2
    assert torch.equal(finer, where[:, None] * 12 + where[None])


def test_patches_say_where_they_are_and_what_they_are():
    tokenizer = byte_tokenizer("smollm")
    language = make_language("llama", tokenizer, width=128), tokenizer
    model = assemble(nano_encoder(canvas=96, width=96, layers=2, heads=4), language, Settings("cell:6"))
    canvases = drawn_canvases(model.canvas, 40)
    start_places(model.llava, model.normalise(canvases))
    with torch.no_grad():
        said = project(model.llava, model.patches(model.features(canvases)))
    usual = said.mean(0)
    cells = model.llava.get_input_embeddings().weight[rows_of(tokenizer, model.codec).start :][: model.grid**2]
    assert torch.equal(cosine_similarity(usual[:, None], cells[None], dim=-1).argmax(1), torch.arange(model.grid**2))
    assert 0.5 < usual.std() / cells.std() < 1.5  # as loud as a word, and so is what tells pictures apart
    assert 0.3 < (said - usual).std() / cells.std() < 1.5


# --- stage 1 ---------------------------------------------------------------------------------------------------------


def test_stage_1_trains_their_rows_and_no_other_of_the_language_model(model):
    config = pretrain(train_locations=True)
    config.prepare(model)
    stage = config.build(model).train()
    rows = rows_of(model.processor.tokenizer, model.codec)
    before = {name: p.detach().clone() for name, p in stage.model.named_parameters()}
    optimizer = make_optimizer(stage, 1e-2, 0.1, (0.9, 0.98), {"embed_tokens": 2.0})
    for _ in range(3):  # with moments, and with decay for what decays
        batch = collate(model, make_samples(model, (3, 2)))
        terms = stage(batch)
        (terms["caption"].total / batch.counts["answer_tokens"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    language = {n: p for n, p in stage.model.named_parameters() if n.startswith(("model.language_model.", "lm_head."))}
    moved = {n for n, p in language.items() if not torch.equal(p, before[n])}
    assert moved == {"model.language_model.embed_tokens.weight"}
    weight, old = (
        language["model.language_model.embed_tokens.weight"],
        before["model.language_model.embed_tokens.weight"],
    )
    changed = (weight != old).any(1).nonzero()[:, 0].tolist()
    assert len(changed) > 5 and all(i in rows for i in changed)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_their_gradient_is_that_of_the_whole_embedding(kind):
    model = make_model(kind, codec="cell:4")
    stage = pretrain(train_locations=True).build(model)
    batch = collate(model, make_samples(model, (3, 2)))
    weight = model.llava.get_input_embeddings().weight
    stage(batch)["caption"].total.backward()
    found = weight.grad.clone()
    whole = pretrain(train_language=True).build(model)  # of the same model, as the stages of a run are
    model.llava.zero_grad()
    whole(batch)["caption"].total.backward()
    rows = rows_of(model.processor.tokenizer, model.codec)
    assert torch.allclose(found[rows.start : rows.stop], weight.grad[rows.start : rows.stop], atol=1e-6)
    assert found[rows.start : rows.stop].abs().max() > 0
    found[rows.start : rows.stop] = 0
    assert found.abs().max() == 0 and weight.grad[: rows.start].abs().max() > 0


def test_frozen_tokens_that_nobody_taught_are_refused(model):
    with pytest.raises(
        GranvitError, match=r"stage1: the language model has never seen the \d+ tokens.*train_locations"
    ):
        pretrain().prepare(model)
    pretrain(train_language=True).prepare(model)
    adapted = AdaptConfig(SampleConfig({"caption2bbox": 1.0}), LoopConfig(), lora=Lora(rank=4))
    with pytest.raises(GranvitError, match=r"stage2: lora: adapters leave out.*never seen"):
        adapted.prepare(model)


def test_there_are_rows_to_train_only_where_boxes_are_tokens():
    with pytest.raises(GranvitError, match="stage1: train_locations: codec 'int1000'.* in digits.*switch it off"):
        pretrain(train_locations=True).prepare(make_model("qwen2", codec="int1000"))


def test_rows_alone_are_not_trained_in_shards():
    config = pretrain(train_locations=True)
    config.loop.parallel = "fsdp"
    with pytest.raises(GranvitError, match="stage1: train_locations: loop.parallel is ddp"):
        config.check()


def test_a_tokenizer_with_some_of_the_tokens_is_refused():
    tokenizer = make_model("qwen2", codec="loc:16").processor.tokenizer
    with pytest.raises(GranvitError, match=r"has some of its 20 tokens and lacks 4, such as <loc0016>"):
        add_tokens(tokenizer, get_codec("loc:20"))


def test_a_saved_model_is_loaded_without_being_told(model, tmp_path):
    model.save(tmp_path / "saved")
    again = RegionModel.load(tmp_path / "saved")
    assert not again.new_tokens and again.codec == model.codec
    pretrain().prepare(again)  # its tokens have learned
    for name, tensor in model.llava.state_dict().items():
        assert torch.equal(tensor, again.llava.state_dict()[name]), name
    export(tmp_path / "saved", tmp_path / "exported", "llava")  # which holds it to the stock classes
