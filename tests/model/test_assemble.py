import pytest
import torch
from helpers.tiny_model import TEXTS, collate, make_language, make_samples, make_tower, packed_logits

from granvit.coordinates import get_codec
from granvit.model import assemble as assembling
from granvit.model.assemble import assemble
from granvit.model.region_model import Settings
from granvit.nano.models import train_tokenizer

PROJECTOR = {f"model.multi_modal_projector.linear_{n}.weight" for n in (1, 2)}


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_large_parts_are_taken_over_and_compute_the_same(kind, monkeypatch):
    tokenizer = train_tokenizer(TEXTS, 280, get_codec("loc:16"))
    copied = assemble(make_tower(), (make_language(kind, tokenizer), tokenizer), Settings("loc:16"))
    monkeypatch.setattr(assembling, "_LARGE", 0)
    tower, language = make_tower(), make_language(kind, tokenizer)
    taken = assemble(tower, (language, tokenizer), Settings("loc:16"))

    weights, others = copied.llava.state_dict(), taken.llava.state_dict()
    assert weights.keys() == others.keys()
    assert {name for name in weights if not torch.equal(weights[name], others[name])} <= PROJECTOR
    given = {p.data_ptr() for part in (tower, language) for p in part.parameters()}
    fresh = {n for n, p in taken.llava.named_parameters() if p.data_ptr() not in given}
    assert {name.rsplit(".", 2)[0] for name in fresh} == {"model.multi_modal_projector"}
    assert not any(t.is_meta for t in (*taken.llava.parameters(), *taken.llava.buffers()))

    taken.llava.model.multi_modal_projector.load_state_dict(copied.llava.model.multi_modal_projector.state_dict())
    batch = collate(copied, make_samples(copied))
    assert torch.equal(packed_logits(copied, batch)[0], packed_logits(taken, batch)[0])


def test_the_seed_decides_the_projector_of_large_parts(monkeypatch):
    monkeypatch.setattr(assembling, "_LARGE", 0)
    tokenizer = train_tokenizer(TEXTS, 280, get_codec("loc:16"))

    def projector(seed: int) -> torch.Tensor:
        model = assemble(make_tower(), (make_language("qwen2", tokenizer), tokenizer), Settings("loc:16"), seed)
        return model.llava.model.multi_modal_projector.linear_1.weight

    assert torch.equal(projector(0), projector(0)) and not torch.equal(projector(0), projector(1))
    assert projector(0).std() > 0.01
