"""Branch by branch gives what the whole mask gives: outputs and gradients, for any rows."""

import numpy as np
import pytest
import torch
from helpers.tiny_model import collate, make_model, make_samples, packed_logits
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from granvit.model import attention
from granvit.model.attention import PACKED, Branches, attend, fit_attention, use_packed_attention
from granvit.model.packing import Branch, Sample, pack

# One to four images, their branches' lengths in tokens.
images = st.lists(st.lists(st.integers(2, 20), min_size=1, max_size=5), min_size=1, max_size=4)


def packed(lengths, prefix=5, max_tokens=None):
    samples = [
        Sample(str(i), [Branch([7] * n, 1, "global") for n in own], np.zeros((1, 1, 3), np.uint8))
        for i, own in enumerate(lengths)
    ]
    return pack(samples, [1] + [0] * (prefix - 1), image_token=0, pad_token=2, max_tokens=max_tokens)


def attention_module():
    module = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = True, 2
    return module


def heads(batch, seed):
    """Query, key and value of 4 and 2 heads, 8 wide."""
    random = torch.Generator().manual_seed(seed)
    rows, length = batch.input_ids.shape
    return [torch.randn(rows, count, length, 8, generator=random, requires_grad=True) for count in (4, 2, 2)]


@settings(max_examples=40, deadline=None)
@given(images, st.integers(2, 30), st.sampled_from([None, 150]), st.integers(0, 9))
def test_outputs_and_gradients_are_those_of_the_whole_mask(lengths, prefix, max_tokens, seed):
    batch = packed(lengths, prefix, max_tokens)
    inputs, seen = heads(batch, seed), (batch.block_ids >= 0)[..., None, None]
    module, branches = attention_module(), Branches.of(batch)
    ours = attend(module, *inputs, None, scaling=0.3, branches=branches)[0]
    theirs = sdpa_attention_forward(module, *inputs, batch.mask(), scaling=0.3)[0]
    assert ours.shape == theirs.shape and ours.isfinite().all()
    torch.testing.assert_close(ours * seen, theirs * seen, rtol=0, atol=1e-5)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(seed)) * seen
    for one, other in zip(
        torch.autograd.grad((ours * weights).sum(), inputs),
        torch.autograd.grad((theirs * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_the_structure_of_two_rows_by_hand():
    branches = Branches.of(packed([[2, 3], [2]], prefix=2))
    # Seven positions a row; the second one ends in three of padding.
    assert branches.prefixes.tolist() == [[0, 1], [7, 8]]
    assert branches.tokens.tolist() == [[[2, 3, 0], [4, 5, 6]], [[9, 10, 0], [0, 0, 0]]]
    assert branches.places.tolist() == [[0, 1, 4, 5, 7, 8, 9], [2, 3, 10, 11, 0, 0, 0]]
    assert branches.scores == 2 * 2 * 2 + 4 * 3 * (2 + 3)


def test_in_bfloat16_it_attends_by_plain_products(monkeypatch):
    batch = packed([[12, 9, 4], [7]], 20)
    inputs, seen = heads(batch, 0), (batch.block_ids >= 0)[..., None, None]
    module, branches = attention_module(), Branches.of(batch)
    expected = attend(module, *inputs, None, branches=branches)[0] * seen
    monkeypatch.setattr(attention, "sdpa_attention_forward", None)
    with torch.autocast("cpu", torch.bfloat16):
        ours = attend(module, *inputs, None, branches=branches)[0] * seen
    assert ours.dtype == torch.bfloat16
    assert (ours - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_models_that_train_take_it_where_it_is_less_work(kind, monkeypatch):
    model = make_model(kind)
    language = model.llava.model.language_model
    many = collate(model, make_samples(model, (6,)))
    # Branches are padded to the longest, here to more than all of a row.
    uneven = packed([[2, 2, 2, 90]], 5)
    assert "branches" not in fit_attention(language, many)[1]
    expected = packed_logits(model, many)[0]
    use_packed_attention(model.llava)
    assert "branches" in fit_attention(language, many)[1]
    assert torch.equal(fit_attention(language, uneven)[1]["attention_mask"], uneven.mask())
    with monkeypatch.context() as dropping:
        dropping.setattr(language.config, "attention_dropout", 0.1)  # which only SDPA does
        assert "branches" not in fit_attention(language, many)[1]
    calls = []
    before = Branches.attend
    monkeypatch.setattr(Branches, "attend", lambda *args: calls.append(1) or before(*args))
    torch.testing.assert_close(packed_logits(model, many)[0], expected, rtol=1e-5, atol=1e-5)
    assert len(calls) == language.config.num_hidden_layers


def test_a_model_that_drops_the_branches_fails_and_does_not_see_everything(monkeypatch):
    model = make_model()
    use_packed_attention(model.llava.model.language_model)
    many = collate(model, make_samples(model, (6,)))
    monkeypatch.setitem(
        attention.AttentionInterface._global_mapping, PACKED, lambda *args, branches, **rest: attend(*args, **rest)
    )
    with pytest.raises(RuntimeError):
        packed_logits(model, many)
