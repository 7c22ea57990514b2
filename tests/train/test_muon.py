"""Muon beside AdamW: who trains what, and that together they step as apart."""

import copy

import pytest
import torch
from helpers.tiny_model import make_model

from granvit.cli.recipes import RECIPES
from granvit.train.optimizer import MuonWithAdamW, make_optimizer
from granvit.train.stages.adapt import Adapt
from granvit.train.stages.pretrain import Pretrain


@pytest.mark.parametrize("stage", [Pretrain, Adapt])
def test_muon_takes_the_matrices_of_blocks_and_nothing_else(stage):
    stage = stage(make_model())
    optimizer = make_optimizer(stage, 0.01, 0.1, (0.9, 0.99), {r"layers\.0": 2.0}, "muon")
    names = {p: n for n, p in stage.named_parameters()}
    found = {
        names[p]: ("ns_steps" in g, g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]
    }
    trains = {n: p for n, p in stage.named_parameters() if p.requires_grad}
    assert set(found) == set(trains)
    for name, (muon, lr, decay) in found.items():
        assert muon == (".layers." in name and name.endswith("weight") and "norm" not in name), name
        assert lr == (0.02 if "layers.0." in name else 0.01), name
        embedding = "embed_tokens" in name or "position_embedding" in name
        assert decay == (0.1 if trains[name].ndim > 1 and not embedding else 0.0), name
    assert {True, False} == {muon for muon, _, _ in found.values()}


def steps(make, change=lambda optimizers: optimizers):
    """A matrix and a vector after four steps of optimizers that `make` makes and `change` replaces after each."""
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(size, generator=generator)) for size in ((6, 4), (4,))]
    optimizers = make(*parameters)
    for at in range(4):
        for parameter in parameters:
            parameter.grad = torch.sin(parameter.detach() + at)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= 0.9
            optimizer.step()
        optimizers = change(optimizers)
    return parameters


def groups(matrix, vector):
    return (
        [{"params": [matrix], "lr": 0.1, "weight_decay": 0.2}],
        [{"params": [vector], "lr": 0.3, "weight_decay": 0.1}],
    )


def together(matrix, vector):
    return [MuonWithAdamW(*groups(matrix, vector), lr=1.0, betas=(0.8, 0.9))]


def apart(matrix, vector):
    matrices, others = groups(matrix, vector)
    muon = torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, betas=(0.8, 0.9), fused=True)]


def loaded_anew(optimizers):
    (old,) = optimizers
    state = copy.deepcopy(old.state_dict())
    (fresh,) = together(*(group["params"][0] for group in old.param_groups))
    fresh.load_state_dict(state)
    return [fresh]


def test_muon_with_adamw_steps_as_the_two_of_torch():
    assert all(torch.equal(a, b) for a, b in zip(steps(together), steps(apart), strict=True))


def test_a_loaded_state_goes_on_bit_for_bit():
    assert all(torch.equal(a, b) for a, b in zip(steps(together, loaded_anew), steps(together), strict=True))


def test_muon_alone_is_enough():
    (matrices, _) = groups(torch.nn.Parameter(torch.ones(3, 3)), torch.nn.Parameter(torch.ones(3)))
    optimizer = MuonWithAdamW(matrices, [], lr=1.0, betas=(0.8, 0.9))
    (matrix,) = matrices[0]["params"]
    matrix.grad = torch.eye(3)
    optimizer.step()
    assert not torch.equal(matrix, torch.ones(3, 3))


def test_the_blocks_of_what_learns_by_muon_learn_faster_norms_and_biases_too():
    """As `nano-own` and `nano-reader` say it."""
    loop = RECIPES["nano-reader"]().stages[0].loop
    stage = Pretrain(make_model())
    optimizer = make_optimizer(stage, loop.lr, loop.weight_decay, loop.betas, loop.optimizer_groups, loop.optimizer)
    names = {p: n for n, p in stage.named_parameters()}
    rates = {names[p]: (group["lr"], "ns_steps" in group) for group in optimizer.param_groups for p in group["params"]}
    faster = {name for name, (rate, _) in rates.items() if rate == pytest.approx(6 * loop.lr)}
    assert faster == {name for name in rates if ".layers." in name}
    assert {muon for name, (_, muon) in rates.items() if name in faster} == {True, False}
    assert {rate for name, (rate, _) in rates.items() if name not in faster} == {loop.lr}
