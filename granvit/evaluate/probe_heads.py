"""The heads of the probes, small enough that what they know came from the encoder, and how they are taught."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WIDTH = 128
_BATCH = 64
# The rate that suits depends on the features' scale and differs from encoder to encoder, so each head tries all.
LEARNING_RATES = (3e-4, 1e-3, 3e-3)

Loss = Callable[[Tensor, Sequence[int]], Tensor]


class LinearHead(nn.Module):
    """One linear map of the region's mean feature: (N, rows, columns, D) -> (N, targets)."""

    def __init__(self, cells: tuple[int, int], depth: int, targets: int):
        super().__init__()
        self.score = nn.Linear(depth, targets)

    def forward(self, features: Tensor) -> Tensor:
        scores: Tensor = self.score(features.mean((1, 2)))
        return scores


class AttentiveHead(nn.Module):
    """A learned query that looks at the region's cells, then one linear map: (N, rows, columns, D) -> (N, targets)."""

    def __init__(self, cells: tuple[int, int], depth: int, targets: int):
        super().__init__()
        self.narrow = nn.Linear(depth, _WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(cells[0] * cells[1], _WIDTH))
        self.query = nn.Parameter(0.02 * torch.randn(1, 1, _WIDTH))
        self.look = nn.MultiheadAttention(_WIDTH, 4, batch_first=True)
        self.score = nn.Linear(_WIDTH, targets)

    def forward(self, features: Tensor) -> Tensor:
        cells_ncd = self.narrow(features.flatten(1, 2)) + self.places
        query = self.query.expand(len(features), -1, -1)
        seen, _ = self.look(query, cells_ncd, cells_ncd, need_weights=False)
        scores: Tensor = self.score(seen[:, 0])
        return scores


class ReadingHead(nn.Module):
    """A CTC reader: (N, rows, steps, D) -> (N, steps, letters + 1), log-probabilities, entry 0 the blank.

    Two convolutions see some five steps around each, less than a word: no language model hides in it.
    """

    def __init__(self, cells: tuple[int, int], depth: int, targets: int):
        super().__init__()
        self.narrow = nn.Linear(cells[0] * depth, _WIDTH)
        self.around = nn.Sequential(
            nn.Conv1d(_WIDTH, _WIDTH, 3, padding=1), nn.GELU(), nn.Conv1d(_WIDTH, _WIDTH, 3, padding=1), nn.GELU()
        )
        self.score = nn.Linear(_WIDTH, targets + 1)

    def forward(self, features: Tensor) -> Tensor:
        steps_nsd = F.gelu(self.narrow(features.transpose(1, 2).flatten(2)))
        steps_nsd = steps_nsd + self.around(steps_nsd.transpose(1, 2)).transpose(1, 2)
        return self.score(steps_nsd).log_softmax(-1)


@dataclass
class Fitted:
    """A taught head in evaluation mode; `rate` is the learning rate that won, `loss` what it left on unseen images."""

    head: nn.Module
    rate: float
    loss: float
    mean: Tensor
    scale: Tensor

    @torch.inference_mode()
    def scores(self, features: Tensor) -> Tensor:
        """What the head makes of features (N, rows, columns, D)."""
        parts = ((part - self.mean) / self.scale for part in features.split(_BATCH))
        return torch.cat([self.head(part) for part in parts])


def fit(
    make: Callable[[], nn.Module], features: Tensor, loss: Loss, check: Sequence[int], steps: int, seed: int
) -> Fitted:
    """Teach a head on features (N, rows, columns, D), each channel brought to mean 0 and deviation 1.

    AdamW with cosine decay, for each of `LEARNING_RATES`; the state that does best on the examples `check`, which are
    not taught, is taken, looked at ten times on the way. Deterministic by `seed`.

    Args:
        make: a new head.
        loss: the mean loss of a head's scores on the examples of the given indices.
    """
    unseen = set(check)
    taught = torch.tensor([n for n in range(len(features)) if n not in unseen])
    mean = features[taught].mean((0, 1, 2))
    scale = features[taught].std((0, 1, 2)).clamp(min=1e-6)
    best: Fitted | None = None
    for rate in LEARNING_RATES:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = make()
        order = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(steps):
            chosen = taught[torch.randint(len(taught), (min(_BATCH, len(taught)),), generator=order)]
            head.train()
            optimizer.zero_grad()
            loss(head((features[chosen] - mean) / scale), chosen.tolist()).backward()
            optimizer.step()
            schedule.step()
            if (step + 1) % max(steps // 10, 1) == 0:
                now = Fitted(head.eval(), rate, 0.0, mean, scale)
                now.loss = float(loss(now.scores(features[list(check)]), check))
                if best is None or now.loss < best.loss:
                    best = Fitted(copy.deepcopy(head), rate, now.loss, mean, scale)
    assert best is not None
    return best
