"""The forward and backward passes of one optimizer step: the loop takes them, and a replay takes them again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from granvit.model.packing import Batch
from granvit.train.timing import section


def counts_of(batches: Sequence[Batch]) -> dict[str, int]:
    """What `Batch.counts` gives for several micro-batches together."""
    counted = [batch.counts for batch in batches]
    return {name: sum(counts[name] for counts in counted) for name in counted[0]}


class Step:
    """The micro-batches of a step, one after the other, every sum divided by the count of the whole step."""

    def __init__(
        self,
        stage: nn.Module,
        device: torch.device,
        autocast: AbstractContextManager[object],
        counts: Mapping[str, int],
    ):
        """`stage` may be wrapped, for several ranks; `counts` are those of all micro-batches of all ranks."""
        self.stage, self.device, self.autocast, self.counts = stage, device, autocast, counts
        self.weights: dict[str, float] = {}
        self._shares: list[Tensor] = []

    def add(self, batch: Batch, backward: Callable[[Tensor], object]) -> None:
        """Takes a micro-batch forward, and its share of the step's loss backward."""
        with section("data"):
            batch = batch.to(self.device)
        with self.autocast:
            terms = self.stage(batch)
        shares = {name: term.total.float() / max(1, self.counts[term.count]) for name, term in terms.items()}
        if self.weights and shares.keys() != self.weights.keys():
            raise ValueError(f"the stage gave the terms {list(shares)} after {list(self.weights)}")
        self.weights.update((name, term.weight) for name, term in terms.items())
        loss = torch.stack([self.weights[name] * share for name, share in shares.items()]).sum()
        with section("backward"):
            backward(loss)
        self._shares.append(torch.stack([shares[name].detach() for name in self.weights]))

    def means(self) -> Tensor:
        """This process's share of each term's mean, in the order of `weights`."""
        return torch.stack(self._shares).sum(0)

    def metrics(self, means: Sequence[float], norm: float) -> dict[str, float]:
        """The loss, its terms and the gradients' norm, by name; `means` are those of all processes together."""
        terms = dict(zip(self.weights, means, strict=True))
        loss = math.fsum(self.weights[name] * value for name, value in terms.items())
        return {"loss": loss, **terms, "grad_norm": norm}
