import numpy as np
import pytest
import torch
from helpers.tiny_model import collate, make_model, make_samples, packed_logits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention

from granvit.model import attention, forward
from granvit.model.attention import PACKED, TILE, attend, block_mask, bucket, visible
from granvit.model.packing import Branch, Sample, pack

# One to three images, their branches' lengths in tokens: from a few per tile to many tiles each.
images = st.lists(st.lists(st.integers(2, 9) | st.integers(60, 200), min_size=1, max_size=4), min_size=1, max_size=3)


def packed(lengths, prefix=5, max_tokens=None):
    samples = [
        Sample(str(i), [Branch([7] * n, 1, "global") for n in own], np.zeros((1, 1, 3), np.uint8))
        for i, own in enumerate(lengths)
    ]
    batch = pack(samples, [1] + [0] * (prefix - 1), image_token=0, pad_token=2, max_tokens=max_tokens)
    return batch.lengthened(bucket(batch.input_ids.shape[1]))


def seen_by_hand(batch):
    """The definition, position by position, in plain Python."""
    rows, length = batch.input_ids.shape
    mask = np.zeros((rows, 1, length, length), bool)
    for row, (blocks, branches) in enumerate(zip(batch.block_ids.tolist(), batch.branch_ids.tolist(), strict=True)):
        for q in range(length):
            mask[row, 0, q, q] = True
            for k in range(q):
                if blocks[q] >= 0 and blocks[k] == blocks[q] and branches[k] in (0, branches[q]):
                    mask[row, 0, q, k] = True
    return torch.from_numpy(mask)


def expanded(tiles):
    """(B, 1, T, T) of tiles -> (B, 1, S, S) of positions."""
    return tiles.bool().repeat_interleave(TILE, 2).repeat_interleave(TILE, 3)


@pytest.mark.parametrize(
    ("lengths", "prefix", "max_tokens"),
    [([[3, 4], [5]], 5, None), ([[3, 4], [5], [150, 2, 90]], 20, 400), ([[30, 20]], 140, None)],
)
def test_masks_follow_the_definition(lengths, prefix, max_tokens):
    batch = packed(lengths, prefix, max_tokens)
    expected = seen_by_hand(batch)
    assert torch.equal(batch.mask(), expected)
    rows, length = batch.input_ids.shape
    assert torch.equal(create_mask(block_mask(batch).mask_mod, rows, 1, length, length, device="cpu"), expected)


@settings(max_examples=15, deadline=None)
@given(images, st.sampled_from([2, 60, 300]), st.sampled_from([None, 1536]))
def test_tiles_are_left_out_only_where_nothing_is_seen(lengths, prefix, max_tokens):
    batch = packed(lengths, prefix, max_tokens)
    mask, ours = batch.mask(), block_mask(batch)
    some = mask.unflatten(3, (-1, TILE)).unflatten(2, (-1, TILE)).any(5).any(3)
    every = mask.unflatten(3, (-1, TILE)).unflatten(2, (-1, TILE)).all(5).all(3)
    assert torch.equal(ours.to_dense().bool(), some)
    full = type(ours).from_kv_blocks(ours.full_kv_num_blocks, ours.full_kv_indices).to_dense().bool()
    assert not (full & ~every).any()
    # What FlexAttention computes: everything in full tiles, by position in the others.
    length = mask.shape[-1]
    single = create_mask(ours.mask_mod, len(mask), 1, length, length, device="cpu")
    assert torch.equal(expanded(full) | (expanded(some) & single), mask)


def test_prefix_tiles_are_full_and_siblings_are_skipped():
    batch = packed([[TILE] * 4], prefix=4 * TILE)
    ours = block_mask(batch)
    # Four tiles of prefix, causal; each branch of one tile sees them whole and half of itself.
    assert ours.full_kv_num_blocks[0, 0].tolist() == [0, 1, 2, 3, 4, 4, 4, 4]
    assert ours.kv_num_blocks[0, 0].tolist() == [1] * 8
    stock = create_block_mask(visible(*batch.segments()), 1, None, 8 * TILE, 8 * TILE, device="cpu")
    assert torch.equal(stock.to_dense(), ours.to_dense())


def test_lengths_fall_into_few_buckets():
    lengths = np.arange(1, 9000)
    buckets = np.array([bucket(int(n)) for n in lengths])
    assert (buckets >= lengths).all() and (buckets % TILE == 0).all()
    assert (buckets[4096:] <= lengths[4096:] * 1.0625).all()
    assert len(set(buckets)) == 50 and bucket(4096) == 4096


def test_lengthened_rows_hold_nothing_more():
    model = make_model()
    batch = collate(model, make_samples(model))
    longer = batch.lengthened(256)
    assert longer.counts == batch.counts and longer.input_ids.shape == (3, 256)
    with torch.no_grad():
        torch.testing.assert_close(packed_logits(model, longer)[0], packed_logits(model, batch)[0], rtol=0, atol=1e-5)


# --- FlexAttention ---------------------------------------------------------------------------------------------------


def fit_as_on_gpu(language, batch):
    language.set_attn_implementation(PACKED)
    batch = batch.lengthened(bucket(batch.input_ids.shape[1]))
    return batch, {"attention_mask": block_mask(batch)}


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_attention_gives_the_logits_of_sdpa(kind, monkeypatch):
    model = make_model(kind)
    batch = collate(model, make_samples(model, (3, 1, 2, 4)), max_tokens=160)
    assert 1 < len(batch.input_ids) < 4
    with torch.no_grad():
        expected = packed_logits(model, batch)[0]
        monkeypatch.setattr(forward, "fit_attention", fit_as_on_gpu)
        torch.testing.assert_close(packed_logits(model, batch)[0], expected, rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_flex_attention_gives_the_gradients_of_sdpa(kind):
    torch.backends.cuda.matmul.allow_tf32 = False
    model = make_model(kind)
    model.llava.cuda()
    batch = collate(model, make_samples(model, (3, 1, 2, 4)), max_tokens=160).to("cuda")
    results = []
    for fit in (lambda language, batch: (batch, {"attention_mask": batch.mask()}), forward.fit_attention):
        model.llava.zero_grad()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(forward, "fit_attention", fit)
            logits, labels = packed_logits(model, batch)
        torch.nn.functional.cross_entropy(logits, labels).backward()
        results.append((logits.detach(), {n: p.grad for n, p in model.llava.named_parameters() if p.grad is not None}))
    assert model.llava.model.language_model.config._attn_implementation == PACKED
    (expected, reference), (ours, gradients) = results
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    assert gradients.keys() == reference.keys()
    for name, gradient in gradients.items():
        assert (gradient - reference[name]).abs().max() <= 1e-4 * max(1, reference[name].abs().max()), name


@pytest.mark.gpu
def test_training_on_a_gpu_compiles_nothing_after_the_first_batches():
    torch._dynamo.reset()
    counters.clear()
    model = make_model()
    model.llava.cuda().requires_grad_(True)

    def step(counts):
        batch = collate(model, make_samples(model, counts)).to("cuda")
        with torch.autocast("cuda", torch.bfloat16):
            logits, labels = packed_logits(model, batch)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        return counters["stats"]["unique_graphs"]

    warm = [step(counts) for counts in ((2, 3), (9, 4, 20))][-1]
    assert {step(counts) for counts in ((30, 1), (3, 3, 3, 3), (60, 2), (25, 25, 1, 1, 1))} == {warm}


def test_other_masks_still_go_to_sdpa():
    model = make_model()
    language = model.llava.model.language_model
    ids = torch.randint(0, 200, (2, 9))
    padded = torch.ones(2, 9, dtype=torch.long).index_fill(1, torch.tensor([0]), 0)
    with torch.no_grad():
        for mask in (None, padded):
            expected = language(input_ids=ids, attention_mask=mask).last_hidden_state
            language.set_attn_implementation(PACKED)
            assert torch.equal(language(input_ids=ids, attention_mask=mask).last_hidden_state[:, 1:], expected[:, 1:])
            language.set_attn_implementation("sdpa")


def test_queries_in_another_precision_are_cast_to_that_of_the_values():
    batch = packed([[3, 4]])
    query = key = torch.randn(1, 2, 128, 16)
    value = torch.randn(1, 2, 128, 16, dtype=torch.bfloat16)
    with torch.no_grad():
        output, _ = attend(torch.nn.Module(), query, key, value, block_mask(batch))
    assert output.dtype == torch.bfloat16 and output.shape == (1, 128, 2, 16)


@pytest.mark.slow
def test_other_lengths_and_rows_compile_nothing_new():
    torch._dynamo.reset()
    counters.clear()
    run = torch.compile(flex_attention, backend="eager", fullgraph=True)

    def step(rows, longest):
        batch = packed([[longest, 40, 9]] * rows, prefix=30)
        heads = torch.randn(3, rows, 4, batch.input_ids.shape[1], 8)
        with torch.no_grad():
            run(heads[0], heads[1, :, :2], heads[2, :, :2], block_mask=block_mask(batch), enable_gqa=True)
        return counters["stats"]["unique_graphs"]

    warm = [step(rows, longest) for rows, longest in ((2, 20), (3, 200))][-1]
    assert warm <= 2
    assert {step(rows, longest) for rows, longest in ((4, 300), (5, 500), (3, 800), (7, 60))} == {warm}


@pytest.mark.parametrize("masked", [True, False])
def test_training_in_bfloat16_on_a_cpu_attends_as_sdpa_does_without_it(masked, monkeypatch):
    torch.manual_seed(0)
    module = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = False, 2
    batch = packed([[30, 20], [41]])
    mask = batch.mask() if masked else None
    rows, length = batch.input_ids.shape
    shapes = [(rows, 4, length, 8), (rows, 2, length, 8), (rows, 2, length, 8)]
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    seen = (batch.block_ids >= 0)[..., None, None]

    def outcome(**options):
        output = attend(module, *inputs, mask, **options)[0].float() * seen
        return [output, *torch.autograd.grad(output.pow(2).sum(), inputs)]

    expected, scaled = outcome(), outcome(scaling=0.1)
    asked = []
    sdpa = attention.sdpa_attention_forward
    monkeypatch.setattr(attention, "sdpa_attention_forward", lambda *a, **o: asked.append(o) or sdpa(*a, **o))
    with torch.autocast("cpu", torch.bfloat16):
        for exact, ours in zip(expected + scaled, outcome() + outcome(scaling=0.1), strict=True):
            assert (exact - ours).norm() < 0.02 * exact.norm()
        assert not asked
        attend(module, *inputs, mask, dropout=0.5)
    assert [options["dropout"] for options in asked] == [0.5]  # what it can't do is left to SDPA


def test_order_alone_is_left_to_sdpa_in_bfloat16():
    module = torch.nn.Module()
    module.is_causal = True
    query, key, value = torch.randn(3, 1, 2, 6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        first = attend(module, query, key, value, None)[0]
        again = attend(module, query, key + torch.tensor([0.0] * 5 + [9.0])[:, None], value, None)[0]
    assert torch.equal(first[:, :5], again[:, :5])
