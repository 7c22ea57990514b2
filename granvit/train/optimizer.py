"""The optimizer (AdamW, or Muon for matrices), its parameter groups, its schedule, and how its state is stored."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from granvit.errors import CheckpointError, GranvitError
from granvit.model.forward import blocks_of
from granvit.train.stages.base import Stage


def make_optimizer(
    stage: Stage,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    multipliers: Mapping[str, float],
    kind: Literal["adamw", "muon"] = "adamw",
) -> Optimizer:
    """AdamW over what trains; with `kind` "muon" Muon over the matrices of transformer blocks, AdamW over the rest.

    Biases, norms and embeddings do not decay.

    `multipliers` maps a regular expression, searched in the parameter's name, to a factor on the learning rate of all
    that match, whichever optimizer takes them: norms and biases as well as matrices. The first that matches counts.

    Raises:
        ValueError: nothing trains, an expression matches nothing that trains, or there is no matrix for Muon.
    """
    embeddings = {m.weight for m in stage.modules() if isinstance(m, nn.Embedding)}
    trainable = {name: p for name, p in stage.named_parameters() if p.requires_grad}
    if not trainable:
        raise GranvitError(f"nothing trains in stage {stage.name!r}: no parameter requires a gradient")
    for pattern in multipliers:
        try:
            re.compile(pattern)
        except re.error as error:
            raise GranvitError(f"loop.optimizer_groups: {pattern!r} is no regular expression ({error})") from error
        if not any(re.search(pattern, name) for name in trainable):
            raise GranvitError(f"no trainable parameter of stage {stage.name!r} matches {pattern!r}")
    muons = {p for block in blocks_of(stage) for p in block.parameters() if p.ndim == 2} if kind == "muon" else set()
    groups: dict[tuple[bool, float, float], list[Tensor]] = {}
    for name, parameter in trainable.items():
        factor = next((f for pattern, f in multipliers.items() if re.search(pattern, name)), 1.0)
        decay = weight_decay if parameter.ndim > 1 and parameter not in embeddings else 0.0
        groups.setdefault((parameter in muons, factor, decay), []).append(parameter)
    matrices, others = (
        [
            {"params": p, "lr": lr * factor, "weight_decay": decay}
            for (muon, factor, decay), p in groups.items()
            if muon is wanted
        ]
        for wanted in (True, False)
    )
    if kind == "adamw":
        return AdamW(others, lr=lr, betas=betas, fused=True)
    if not matrices:
        raise GranvitError(f"optimizer muon: no matrix of a transformer block trains in stage {stage.name!r}")
    return MuonWithAdamW(matrices, others, lr, betas)


def make_schedule(optimizer: Optimizer, steps: int, warmup_steps: int, min_lr_ratio: float) -> LambdaLR:
    """Linear warm-up to the full rate within `warmup_steps`, then a cosine down to `min_lr_ratio` of it."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        done = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
        return min_lr_ratio + (1 - min_lr_ratio) * (1 + math.cos(math.pi * done)) / 2

    return LambdaLR(optimizer, factor)


def _groups(stage: Stage, optimizer: Optimizer) -> list[list[str]]:
    """The names of the parameters of every group."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in stage.named_parameters()}
    return [[names[p] for p in group["params"]] for group in optimizer.param_groups]


def optimizer_parts(stage: Stage, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's tensors as "<parameter>:<key>", and its other facts as JSON-able values."""
    groups = _groups(stage, optimizer)
    by_index = [name for group in groups for name in group]
    values = {f"{by_index[i]}:{k}": v for i, kv in optimizer.state_dict()["state"].items() for k, v in kv.items()}
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    facts = {
        "tensors": list(tensors),
        "scalars": {name: value for name, value in values.items() if name not in tensors},
        "groups": groups,
        "rates": [{k: group[k] for k in ("lr", "initial_lr") if k in group} for group in optimizer.param_groups],
    }
    return tensors, facts


def expected_tensors(where: Path, facts: Mapping[str, Any], stage: Stage, optimizer: Optimizer) -> dict[str, Tensor]:
    """What the stored tensors of an optimizer look like, by name; `facts` are those of `optimizer_parts`.

    Raises:
        CheckpointError: other parameters trained there.
    """
    groups = _groups(stage, optimizer)
    if facts["groups"] != groups:
        trained, trains = ({name for group in g for name in group} for g in (facts["groups"], groups))
        different = sorted(trained ^ trains)
        what = f"{different[0]!r} trains in one of them only" if different else "they are grouped otherwise"
        raise CheckpointError(f"{where}: parameters are not those of this run: {what}")
    parameters = dict(stage.named_parameters())
    split = {name: name.rsplit(":", 1) for name in facts["tensors"]}
    return {name: torch.zeros(()) if key == "step" else parameters[owner] for name, (owner, key) in split.items()}


def optimizer_state(
    stored: Mapping[str, Tensor], facts: Mapping[str, Any], stage: Stage, optimizer: Optimizer
) -> dict[str, Any]:
    """A state dict for `optimizer` from what `optimizer_parts` gave."""
    index = {name: i for i, name in enumerate(name for group in _groups(stage, optimizer) for name in group)}
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**{name: stored[name] for name in facts["tensors"]}, **facts["scalars"]}.items():
        parameter, key = name.rsplit(":", 1)
        state.setdefault(index[parameter], {})[key] = value
    current = optimizer.state_dict()["param_groups"]
    return {"state": state, "param_groups": [{**g, **r} for g, r in zip(current, facts["rates"], strict=True)]}


class MuonWithAdamW(Optimizer):
    """One optimizer out of torch's `Muon` and `AdamW`: their groups side by side, one state dict, one schedule.

    Muon orthogonalises the momentum of a matrix, so that all its directions learn at one rate; norms, biases,
    embeddings, heads and convolutions are AdamW's. Its updates are scaled to the size of AdamW's ("match_rms_adamw",
    arXiv 2502.16982, section 2.2), so both take the rate of AdamW.

    Args:
        matrices: parameter groups of 2-D weights, with "params", "lr" and "weight_decay".
        others: the parameter groups of everything else.
        lr, betas: for groups that name no rate; AdamW's moments.
    """

    def __init__(
        self, matrices: list[dict[str, Any]], others: list[dict[str, Any]], lr: float, betas: tuple[float, float]
    ):
        self._parts: list[Optimizer] = [Muon(matrices, lr=lr, adjust_lr_fn="match_rms_adamw")]
        if others:
            self._parts.append(AdamW(others, lr=lr, betas=betas, fused=True))
        self._ends = [len(matrices), len(matrices) + len(others)]
        super().__init__([group for part in self._parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None, "a step takes the gradients as they are"
        start = 0
        for part, end in zip(self._parts, self._ends, strict=False):
            # A loaded state dict replaces groups and state, so the parts are given them anew.
            part.param_groups, part.state = self.param_groups[start:end], self.state
            part.step()
            start = end
