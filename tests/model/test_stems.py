"""Questions that begin alike share that beginning and nothing else: the numbers are those of questions alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.tiny_model import CANVAS, collate, make_model, make_samples, packed_logits, packed_loss
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from granvit.model import dialog, forward, generate
from granvit.model.attention import PACKED, TILE, Branches, attend, block_mask, bucket
from granvit.model.generate import greedy
from granvit.model.packing import IGNORE, Branch, Sample, pack, unpack
from granvit.questions import box_exchange, caption_exchange, global_exchange

# Questions of each of three kinds, by the length of what they begin with and their own lengths.
kinds = st.lists(
    st.tuples(st.integers(0, 40), st.lists(st.integers(2, 30), min_size=1, max_size=4)), min_size=1, max_size=3
)


def sample(name, kinds):
    branches = [
        Branch([100 + k] * stem + [7 + n] * length, stem + 1, "global", stem=stem)
        for k, (stem, lengths) in enumerate(kinds)
        for n, length in enumerate(lengths)
    ]
    return Sample(name, branches, np.zeros((1, 1, 3), np.uint8))


def packed(images, prefix=5, max_tokens=None):
    samples = [sample(str(i), kinds) for i, kinds in enumerate(images)]
    return pack(samples, [1] + [0] * (prefix - 1), image_token=0, pad_token=2, max_tokens=max_tokens)


def with_stems(samples, seed=3):
    """The samples with words put in front of the questions of each kind, the same for all of it."""
    random = np.random.default_rng(seed)
    words = {task: random.integers(5, 200, n).tolist() for task, n in (("bbox2caption", 9), ("caption2bbox", 6))}

    def longer(branch):
        begin = words.get(branch.task, [])
        return replace(branch, ids=begin + branch.ids, answer_start=len(begin) + branch.answer_start, stem=len(begin))

    return [replace(s, branches=[longer(b) for b in s.branches]) for s in samples]


def without_stems(samples):
    return [replace(s, branches=[replace(b, stem=0) for b in s.branches]) for s in samples]


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def model(request):
    return make_model(request.param)


@pytest.fixture(params=["whole mask", "branch by branch", "FlexAttention"])
def way(request, model, monkeypatch):
    """Each way to attend; FlexAttention has no gradients on a CPU."""
    language = model.llava.model.language_model
    if request.param != "whole mask":
        language.set_attn_implementation(PACKED)
    if request.param == "FlexAttention":

        def fit(language, batch):
            batch = batch.lengthened(bucket(batch.input_ids.shape[1]))
            return batch, {"attention_mask": block_mask(batch)}

        monkeypatch.setattr(forward, "fit_attention", fit)
    if request.param == "branch by branch":
        monkeypatch.setattr(Branches, "scores", 0)
    yield request.param
    language.set_attn_implementation("sdpa")


def gradients(model, batch):
    model.llava.zero_grad()
    loss = packed_loss(model, batch)
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.llava.named_parameters() if p.grad is not None}


# --- the structure ---------------------------------------------------------------------------------------------------


def test_a_row_by_hand():
    branches = [
        Branch([5, 6, 20, 21], 3, "bbox2caption", stem=2),
        Branch([9, 30], 1, "global"),
        Branch([5, 6, 22], 2, "bbox2caption", stem=1),  # begins with another stem, alone
        Branch([5, 6, 23, 24], 3, "bbox2caption", stem=2),
    ]
    batch = pack([Sample("a", branches), Sample("b", branches[:2])], [0], image_token=0, pad_token=2)
    assert batch.input_ids.tolist() == [[0, 5, 6, 20, 21, 9, 30, 5, 6, 22, 23, 24], [0, 5, 6, 20, 21, 9, 30] + [2] * 5]
    assert batch.position_ids.tolist()[0] == [0, 1, 2, 3, 4, 1, 2, 1, 2, 3, 3, 4]
    assert batch.branch_ids.tolist()[0] == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3, 4, 4]
    assert batch.stem_ids.tolist() == [[0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1], [0] * 12]
    assert batch.labels.tolist()[0] == [IGNORE] * 3 + [21, IGNORE, 30, IGNORE, IGNORE, 22, IGNORE, 24, IGNORE]
    seen = [torch.nonzero(m).flatten().tolist() for m in batch.mask()[0, 0]]
    assert seen[:7] == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 5], [0, 5, 6]]
    assert seen[7:] == [[0, 7], [0, 7, 8], [0, 7, 8, 9], [0, 1, 2, 10], [0, 1, 2, 10, 11]]
    assert [batch.input_ids[0][unpack(batch)[0].of_branch(n)].tolist() for n in (1, 2, 4)] == [
        [5, 6, 20, 21],
        [9, 30],
        [5, 6, 23, 24],
    ]


@settings(max_examples=30, deadline=None)
@given(st.lists(kinds, min_size=1, max_size=3), st.integers(2, 30), st.sampled_from([None, 700]), st.integers(0, 9))
def test_branch_by_branch_is_the_whole_mask(images, prefix, max_tokens, seed):
    batch = packed(images, prefix, max_tokens)
    random = torch.Generator().manual_seed(seed)
    rows, length = batch.input_ids.shape
    inputs = [torch.randn(rows, n, length, 8, generator=random, requires_grad=True) for n in (4, 2, 2)]
    module = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = True, 2
    seen = (batch.block_ids >= 0)[..., None, None]
    ours = attend(module, *inputs, None, branches=Branches.of(batch))[0]
    theirs = sdpa_attention_forward(module, *inputs, batch.mask())[0]
    assert ours.isfinite().all()
    torch.testing.assert_close(ours * seen, theirs * seen, rtol=1e-5, atol=1e-5)
    for one, other in zip(
        torch.autograd.grad((ours * seen).pow(2).sum(), inputs),
        torch.autograd.grad((theirs * seen).pow(2).sum(), inputs),
        strict=True,
    ):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-5)


@settings(max_examples=15, deadline=None)
@given(st.lists(kinds, min_size=1, max_size=3), st.sampled_from([2, 60, 300]), st.sampled_from([None, 1536]))
def test_no_tile_is_left_out_in_which_something_is_seen(images, prefix, max_tokens):
    batch = packed(images, prefix, max_tokens)
    batch = batch.lengthened(bucket(batch.input_ids.shape[1]))
    mask, ours = batch.mask(), block_mask(batch)
    full = type(ours).from_kv_blocks(ours.full_kv_num_blocks, ours.full_kv_indices).to_dense().bool()

    def expanded(tiles):
        return tiles.repeat_interleave(TILE, 2).repeat_interleave(TILE, 3)

    single = create_mask(ours.mask_mod, len(mask), 1, *mask.shape[2:], device="cpu")
    assert torch.equal(expanded(full) | (expanded(ours.to_dense().bool()) & single), mask)


# --- the model -------------------------------------------------------------------------------------------------------


def test_logits_are_those_of_questions_that_share_nothing(model, way):
    samples = with_stems(make_samples(model, (6, 1, 4)))
    shared, alone = collate(model, samples), collate(model, without_stems(samples))
    assert shared.counts["answer_tokens"] == alone.counts["answer_tokens"]
    # Of the first picture two questions begin with 9 tokens and three with 6, of the third two with 6.
    assert alone.counts["tokens"] - shared.counts["tokens"] == 9 + 2 * 6 + 6
    with torch.no_grad():
        ours, labels = packed_logits(model, shared)
        theirs, same = packed_logits(model, alone)
    assert torch.equal(labels, same)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)
    if way != "FlexAttention":
        (loss, own), (other, reference) = gradients(model, shared), gradients(model, alone)
        assert abs(loss - other) <= 1e-5 and own.keys() == reference.keys()
        for name, gradient in own.items():
            assert (gradient - reference[name]).abs().max() <= 1e-5 * max(1, reference[name].abs().max()), name


@pytest.mark.parametrize("changed", [0, 1, 2, 4])
def test_changing_a_branch_leaves_the_others_bit_identical(model, way, changed):
    samples = with_stems(make_samples(model, (6, 1, 4)))
    before = collate(model, samples)
    branches = list(samples[0].branches)
    own = branches[changed]
    branches[changed] = replace(own, ids=own.ids[: own.stem] + [40] * (len(own.ids) - own.stem))
    after = collate(model, [replace(samples[0], branches=branches), *samples[1:]])
    with torch.no_grad():
        a, b = packed_logits(model, before)[0], packed_logits(model, after)[0]
    rows, columns = torch.nonzero(before.labels != IGNORE, as_tuple=True)
    of_changed = (rows == 0) & (before.branch_ids[rows, columns] == changed + 1)
    assert torch.equal(a[~of_changed], b[~of_changed])
    assert not torch.equal(a[of_changed], b[of_changed])


def test_a_stem_reaches_its_own_branches_alone(model, way):
    samples = with_stems(make_samples(model, (6, 2)))
    batch = collate(model, samples)
    stems = (batch.stem_ids == 1) & (batch.branch_ids == 0)
    assert stems[0].any() and not stems[1].any()
    other = replace(batch, input_ids=torch.where(stems, 41, batch.input_ids))
    with torch.no_grad():
        a, b = packed_logits(model, batch)[0], packed_logits(model, other)[0]
    rows, columns = torch.nonzero(batch.labels != IGNORE, as_tuple=True)
    behind = (rows == 0) & (batch.stem_ids[rows, columns] == 1)
    assert torch.equal(a[~behind], b[~behind])
    assert (a[behind] - b[behind]).abs().amax(1).min() > 1e-5


# --- which beginnings are shared -------------------------------------------------------------------------------------


def asked(model):
    exchanges = [caption_exchange([0.1 * n, 0.2, 0.5, 0.9], "tea", model.codec) for n in range(3)]
    exchanges += [box_exchange([0.1, 0.2, 0.5, 0.9], text, model.codec) for text in ("tea", "a striped heart")]
    return model.dialog.branches([*exchanges, global_exchange("tea")])


def test_the_fixed_words_of_questions_are_shared_where_they_are_several_tokens(model, monkeypatch):
    assert [b.stem for b in asked(model)] == [0] * 6  # one token, of presets from random weights
    monkeypatch.setattr(dialog, "LEAST_STEM", 1)
    assert [b.stem for b in asked(model)] == [1, 1, 1, 1, 1, 0]


def test_answers_are_those_of_one_question_at_a_time(model, monkeypatch):
    canvases = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, CANVAS, CANVAS, 3), dtype=np.uint8))
    words = [40, 41, 42, 43, 44]
    questions = [[[*words, *b.ids[: b.answer_start]] for b in asked(model)[:n]] for n in (3, 2)]
    alone = [[greedy(model, canvases[i : i + 1], [[q]], 8)[0][0] for q in own] for i, own in enumerate(questions)]
    lengths, prefill = [], generate._prefill
    monkeypatch.setattr(generate, "_prefill", lambda *a: lengths.append(len(a[2]) if len(a) > 2 else 0) or prefill(*a))
    assert greedy(model, canvases, questions, 8) == alone and lengths[0] >= len(words)
    lengths.clear()
    assert greedy(model, canvases, questions, 8, rows=2) == alone and lengths[0] >= len(words)
