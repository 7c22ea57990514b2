from contextlib import ExitStack

import pytest
import torch
from helpers.tiny_model import collate, make_model, make_samples
from torch._dynamo.utils import counters

from granvit.model.forward import blocks_of, compiled, recomputed
from granvit.train.optimizer import make_optimizer
from granvit.train.stages.adapt import Adapt
from granvit.train.stages.pretrain import Pretrain


def step(stage, batch, *contexts):
    """Loss, gradients and the bytes kept for the backward pass."""
    stage.zero_grad()
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = sum(term.weight * term.total for term in stage(batch).values())
        weights = {p.untyped_storage().data_ptr() for p in stage.parameters()}
        size = sum(n for at, n in kept.items() if at not in weights)
        loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in stage.named_parameters() if p.grad is not None}, size


def make_stage(make, kind="qwen2"):
    model = make_model(kind)
    return make(model).train(), collate(model, make_samples(model, (3, 2), crops=1))


@pytest.mark.parametrize("make", [Pretrain, Adapt])
@pytest.mark.parametrize("parts", ["encoder", "language", "both"])
def test_recomputed_blocks_give_the_same_step_from_less_memory(make, parts):
    stage, batch = make_stage(make)
    tower, language = stage.tower, stage.model.model.language_model
    modules = {"encoder": [tower], "language": [language], "both": [tower, language]}[parts]
    loss, gradients, kept = step(stage, batch)
    ours, others, less = step(stage, batch, recomputed(modules))
    assert ours == loss and gradients.keys() == others.keys()
    assert all(torch.equal(gradients[name], others[name]) for name in gradients)
    if make is Adapt and parts == "encoder":  # its frozen encoder keeps nothing anyway
        assert less == kept
    else:
        assert less < 0.9 * kept
    assert step(stage, batch)[2] == kept  # and off again


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ValueError, match="without transformer blocks"), recomputed([torch.nn.Linear(2, 2)]):
        pass


def test_a_frozen_language_model_has_no_gradients_and_no_optimizer_state():
    stage, batch = make_stage(Pretrain, "llama")
    optimizer = make_optimizer(stage, 1e-3, 0.1, (0.9, 0.99), {})
    step(stage, batch)
    optimizer.step()
    language = [*stage.model.model.language_model.parameters(), *stage.model.lm_head.parameters()]
    assert all(p.grad is None and p not in optimizer.state for p in language)
    towers = [n for n, p in stage.tower.named_parameters() if p in optimizer.state]
    assert len(towers) > 20


@pytest.mark.slow
def test_compiled_blocks_give_the_same_step_and_share_their_code():
    stage, batch = make_stage(Pretrain)
    torch._dynamo.reset()
    counters.clear()
    loss, gradients, _ = step(stage, batch)
    assert counters["stats"]["unique_graphs"] == 0
    with compiled(stage, backend="eager"):
        ours, others, _ = step(stage, batch)
        # The student's, the teacher's (without gradients) and the language model's; two layers of each.
        assert counters["stats"]["unique_graphs"] == 3
        assert len(blocks_of(stage)) == 6
    assert ours == pytest.approx(loss, rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-5, atol=1e-5)
    assert all(block._compiled_call_impl is None for block in blocks_of(stage))
