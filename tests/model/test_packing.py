from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from helpers.tiny_model import collate, make_model, make_samples, packed_logits, packed_loss
from hypothesis import given, settings
from hypothesis import strategies as st

from granvit.model.attention import Branches, use_packed_attention
from granvit.model.forward import answer_logits, project
from granvit.model.packing import IGNORE, Branch, Sample, best_fit, pack, rows_of
from granvit.nano.symbolic import Grid

KINDS = ["qwen2", "llama"]


@pytest.fixture(scope="module", params=[(kind, way) for kind in KINDS for way in ("whole mask", "branch by branch")])
def model(request):
    """With both ways to attend on a CPU; the second also where it is more work."""
    kind, way = request.param
    model = make_model(kind)
    with pytest.MonkeyPatch.context() as patch:
        if way == "branch by branch":
            use_packed_attention(model.llava)
            patch.setattr(Branches, "scores", 0)
        yield model


@pytest.fixture(scope="module")
def qwen2():
    return make_model()


def gradients(model):
    """The gradients of projector and encoder, which are cleared."""
    kept = {n: p.grad for n, p in model.llava.named_parameters() if p.grad is not None}
    model.llava.zero_grad()
    return {n: g for n, g in kept.items() if "vision_tower" in n or "multi_modal_projector" in n}


def assert_same_gradients(ours, reference):
    assert ours.keys() == reference.keys() and len(ours) > 30
    for name, gradient in ours.items():
        assert (gradient - reference[name]).abs().max() <= 1e-5 * max(1, reference[name].abs().max()), name


def one_by_one(samples):
    """Every question as a sample of its own."""
    return [replace(s, id=f"{s.id}/{n}", branches=[b]) for s in samples for n, b in enumerate(s.branches)]


def branch_of_answers(batch):
    """(row, block, branch) of each answer token, (A, 3), in the order of the logits."""
    rows, columns = torch.nonzero(batch.labels != IGNORE, as_tuple=True)
    return torch.stack([rows, batch.block_ids[rows, columns], batch.branch_ids[rows, columns]], 1)


def replaced_branch(sample, n, token=40):
    """The sample with other tokens, as many, in question and answer of its n-th branch."""
    branches = list(sample.branches)
    branches[n] = replace(branches[n], ids=[token] * len(branches[n].ids))
    return replace(sample, branches=branches)


# --- the packed computation equals the unpacked one ------------------------------------------------------------------


def test_loss_and_gradients_equal_one_question_per_sequence(model):
    samples = make_samples(model)
    packed = packed_loss(model, collate(model, samples))
    packed.backward()
    ours = gradients(model)
    total, tokens = torch.zeros(()), 0
    for sample in one_by_one(samples):
        batch = collate(model, [sample])
        total = total + packed_loss(model, batch) * batch.counts["answer_tokens"]
        tokens += batch.counts["answer_tokens"]
    assert tokens == collate(model, samples).counts["answer_tokens"]
    (total / tokens).backward()
    assert abs(packed.item() - total.item() / tokens) <= 1e-5
    assert_same_gradients(ours, gradients(model))


def test_loss_and_gradients_equal_stock_llava_with_its_own_labels(model):
    samples = make_samples(model)
    packed = packed_loss(model, collate(model, samples))
    packed.backward()
    ours = gradients(model)
    total, tokens = torch.zeros(()), 0
    for sample in one_by_one(samples):
        branch = sample.branches[0]
        prefix = model.dialog.prefix_ids
        answer = branch.ids[branch.answer_start :]
        unanswered = [IGNORE] * (len(prefix) + branch.answer_start)
        stock = model.llava(
            input_ids=torch.tensor([prefix + branch.ids]),
            pixel_values=model.normalise(torch.from_numpy(sample.pixels)[None]),
            labels=torch.tensor([unanswered + answer]),
        )
        total = total + stock.loss * len(answer)
        tokens += len(answer)
    (total / tokens).backward()
    assert abs(packed.item() - total.item() / tokens) <= 1e-5
    assert_same_gradients(ours, gradients(model))


def test_several_images_in_a_row_equal_one_image_per_row(model):
    samples = make_samples(model, (3, 1, 2, 1, 1))
    longest = collate(model, samples).input_ids.shape[1]
    alone, shared = collate(model, samples), collate(model, samples, max_tokens=2 * longest)
    assert len(alone.input_ids) == 5 and len(shared.input_ids) < 4
    losses = [packed_loss(model, batch) for batch in (alone, shared)]
    assert abs(losses[0].item() - losses[1].item()) <= 1e-5
    losses[0].backward()
    reference = gradients(model)
    losses[1].backward()
    assert_same_gradients(gradients(model), reference)


# --- nothing leaks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changed", [0, 1, 2])
def test_changing_a_branch_leaves_the_others_bit_identical(model, changed):
    samples = make_samples(model)
    before = collate(model, samples)
    after = collate(model, [replaced_branch(samples[0], changed), *samples[1:]])
    with torch.no_grad():
        a, b = packed_logits(model, before)[0], packed_logits(model, after)[0]
    of_changed = (branch_of_answers(before) == torch.tensor([0, 0, changed + 1])).all(1)
    assert torch.equal(a[~of_changed], b[~of_changed])
    assert not torch.equal(a[of_changed], b[of_changed])


def test_images_in_one_row_do_not_see_each_other(model):
    samples = make_samples(model)
    before = collate(model, samples, max_tokens=1000)
    assert len(before.input_ids) == 1
    for changed in range(3):
        pixels = before.pixels.clone()
        pixels[changed] = 255 - pixels[changed]
        with torch.no_grad():
            a, b = packed_logits(model, before)[0], packed_logits(model, replace(before, pixels=pixels))[0]
        of_changed = branch_of_answers(before)[:, 1] == changed
        assert torch.equal(a[~of_changed], b[~of_changed])
        assert (a[of_changed] - b[of_changed]).abs().amax(1).min() > 1e-4


def test_padding_changes_nothing(model):
    long, short = make_samples(model, (6, 1))
    together, alone = collate(model, [long, short]), collate(model, [short])
    assert (together.block_ids[1] == -1).sum() > 50
    with torch.no_grad():
        mine = packed_logits(model, together)[0][branch_of_answers(together)[:, 0] == 1]
        torch.testing.assert_close(mine, packed_logits(model, alone)[0], rtol=0, atol=1e-5)
        other = torch.where(together.block_ids == -1, 7, together.input_ids)
        logits = [packed_logits(model, b)[0] for b in (together, replace(together, input_ids=other))]
    assert torch.equal(*logits)


def test_mask_by_hand():
    # Prefix of one image token, branches of two and three tokens; the second row holds one branch and padding.
    samples = [
        Sample("a", [Branch([5, 6], 1, "global"), Branch([7, 8, 9], 2, "global")]),
        Sample("b", [Branch([5, 6], 1, "global")]),
    ]
    batch = pack(samples, [0], image_token=0, pad_token=2)
    assert batch.input_ids.tolist() == [[0, 5, 6, 7, 8, 9], [0, 5, 6, 2, 2, 2]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 1, 2, 3], [0, 1, 2, 0, 0, 0]]
    assert batch.labels.tolist() == [[-100, 6, -100, -100, 9, -100], [-100, 6, -100, -100, -100, -100]]
    assert batch.is_image.tolist() == [[True] + [False] * 5] * 2
    seen = [[0], [0, 1], [0, 1, 2], [0, 3], [0, 3, 4], [0, 3, 4, 5]], [[0], [0, 1], [0, 1, 2], [3], [4], [5]]
    for row, mask in zip(seen, batch.mask()[:, 0], strict=True):
        assert [torch.nonzero(m).flatten().tolist() for m in mask] == row
    assert batch.padding == 3 / 12


def test_the_last_branch_of_an_image_is_not_the_prefix_of_the_next():
    many, one = [Branch([5, 6], 1, "global")] * 4, [Branch([7, 8], 1, "global")]
    batch = pack([Sample("a", many), Sample("b", one)], [0], image_token=0, pad_token=2, max_tokens=12)
    assert batch.input_ids.tolist() == [[0, 5, 6, 5, 6, 5, 6, 5, 6, 0, 7, 8]]
    codes, _, _ = batch.segments()
    assert len(set(codes[0].tolist())) == 2 + 5  # two prefixes, five branches
    assert [torch.nonzero(m).flatten().tolist() for m in batch.mask()[0, 0, 9:]] == [[9], [9, 10], [9, 10, 11]]


def test_only_answer_tokens_reach_the_head(qwen2):
    rows = []
    handle = qwen2.llava.lm_head.register_forward_hook(lambda module, args, output: rows.append(args[0].shape))
    samples = make_samples(qwen2)
    packed_loss(qwen2, collate(qwen2, samples))
    handle.remove()
    answers = sum(len(b.ids) - b.answer_start for s in samples for b in s.branches)
    assert rows == [(answers, 32)]


# --- the picture side ------------------------------------------------------------------------------------------------


def test_pictures_crops_and_grids_stay_with_their_image():
    def grid(i):
        return Grid(np.array([i % 3]), np.array([10 + i]), np.ones(1, np.float32))

    # All pixels of image i, its crops and its boxes hold i; image 1 has no crop. Rows reorder the images.
    samples = [
        Sample(
            f"image{i}",
            [Branch([5] * (3 + 5 * (i % 3)), 1, "global")],
            np.full((4, 4, 3), i, np.uint8),
            np.full((0 if i == 1 else 1 + i % 2, 2, 2, 3), i, np.uint8),
            np.full((0 if i == 1 else 1 + i % 2, 4), i, np.float32),
            extra=grid(i),
        )
        for i in range(6)
    ]
    batch = pack(samples, [0, 0, 0], image_token=0, pad_token=2, max_tokens=16)
    order = [int(name[-1]) for name in batch.ids]
    assert order != sorted(order) and sorted(order) == list(range(6))
    assert batch.pixels[:, 0, 0, 0].tolist() == order
    counts = {"answer_tokens": 6 * 7, "crops": 1 + 1 + 2 + 1 + 2, "images": 6, "branches": 6}
    assert batch.counts == {**counts, "tokens": 6 * 3 + 2 * (3 + 8 + 13)}, "padding is no token"
    owners = batch.pixels[batch.crop_image, 0, 0, 0]
    assert owners.tolist() == batch.crops[:, 0, 0, 0].tolist() == batch.crop_boxes[:, 0].tolist()
    assert batch.extra.patches.tolist() == [3 * at + i % 3 for at, i in enumerate(order)]
    assert batch.extra.words.tolist() == [10 + i for i in order]


def test_to_moves_every_tensor():
    batch = pack([Sample("a", [Branch([5, 6], 1, "global")], np.zeros((4, 4, 3), np.uint8))], [0], 0, 2).to("meta")
    tensors = [getattr(batch, f.name) for f in fields(batch) if isinstance(getattr(batch, f.name), torch.Tensor)]
    assert len(tensors) == 8 and all(t.device.type == "meta" for t in tensors)


# --- rows ------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.lists(st.integers(1, n)), st.just(n))))
def test_rows_hold_every_sample_once_and_never_too_much(case):
    lengths, most = case
    rows = rows_of(lengths, most)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    totals = [sum(lengths[i] for i in row) for row in rows]
    plain = [sum(lengths[i] for i in row) for row in best_fit(lengths, most)]
    assert sum(2 * t <= most for t in plain) <= 1  # two half-empty rows would have been one
    assert len(rows) == len(plain) and max(totals, default=0) <= max(plain, default=0) <= most


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=4), min_size=1, max_size=8), st.integers(39, 90))
def test_packing_loses_no_sample_and_no_answer(lengths, most):
    samples = [
        Sample(str(i), [Branch(list(range(10, 10 + n)), 1, "global") for n in own]) for i, own in enumerate(lengths)
    ]
    batch = pack(samples, [1, 0, 0], image_token=0, pad_token=2, max_tokens=most)
    assert batch.input_ids.shape[1] <= most
    assert sorted(batch.ids, key=int) == [s.id for s in samples]
    assert batch.counts["answer_tokens"] == sum(n - 1 for own in lengths for n in own)
    assert len(batch.tasks) == sum(map(len, lengths))
    assert int(batch.is_image.sum()) == 2 * len(samples)


def test_rows_are_filled_best_fit():
    assert rows_of([5, 6, 4, 4], 10) == [[1, 2], [0, 3]]
    assert best_fit([5, 6, 2, 2], 8) == [[1, 2], [0, 3]]
    assert best_fit([3, 3, 3, 3, 3], 12) == [[0, 1, 2, 3], [4]]
    assert rows_of([3, 3, 3, 3, 3], 12) == [[0, 1, 2], [3, 4]]  # none half empty
    assert rows_of([3, 9, 2], None) == [[0], [1], [2]]


# --- errors ----------------------------------------------------------------------------------------------------------


def test_nothing_to_pack_is_refused():
    with pytest.raises(ValueError, match="no samples"):
        pack([], [0], 0, 2)


@pytest.mark.parametrize("branches", [[], [Branch([5, 6], 2, "global")], [Branch([5, 6], 0, "global")]])
def test_a_sample_without_question_or_answer_is_named(branches):
    with pytest.raises(ValueError, match="'fourth'"):
        pack([Sample("fourth", branches)], [0], 0, 2)


def test_a_sample_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="12 tokens, a row holds 11"):
        pack([Sample("a", [Branch([5] * 10, 1, "global")])], [1, 0], 0, 2, max_tokens=11)


def test_eager_attention_is_refused(qwen2):
    batch = collate(qwen2, make_samples(qwen2))
    qwen2.llava.model.language_model.set_attn_implementation("eager")
    try:
        with pytest.raises(ValueError, match="sdpa.*eager"):
            packed_loss(qwen2, batch)
    finally:
        qwen2.llava.model.language_model.set_attn_implementation("sdpa")


def test_another_number_of_features_than_image_positions_is_refused(qwen2):
    batch = collate(qwen2, make_samples(qwen2))
    features = project(qwen2.llava, qwen2.features(batch.pixels))
    with pytest.raises(ValueError, match="48 image positions but 32 features.*image0"):
        answer_logits(qwen2.llava, batch, features[:2])
