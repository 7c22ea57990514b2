"""Muon for the matrices of transformer blocks, AdamW for all other parameters, as one optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import AdamW, Muon, Optimizer


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
