"""Attention of packed rows on a CPU: every branch over its prefix and itself, and nothing else is computed.

A kernel that takes the whole boolean mask computes all S x S scores of a row, of which a branch of L tokens behind a
prefix of P needs L x (P + L). Here the tokens are laid out by image and branch, padded to the most and the longest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from granvit.model.packing import Batch


@dataclass(frozen=True)
class Branches:
    """Where the M prefixes (P tokens each) and their branches lie in a batch's B rows of S positions.

    Attributes:
        prefixes: (M, P), positions counted through all rows.
        tokens: (M, N, L), those of each image's branches; what is missing of N and L repeats some token.
        places: (B, S), where a position's result is found among all prefixes' and then all branches'.
    """

    prefixes: Tensor
    tokens: Tensor
    places: Tensor

    @classmethod
    def of(cls, batch: Batch) -> Branches:
        """The structure of a batch on the CPU, whose prefixes are of one length, as `pack` makes them."""
        branch, block = batch.branch_ids.flatten(), batch.block_ids.flatten()
        prefixes = ((branch == 0) & (block >= 0)).nonzero().view(len(batch.ids), -1)
        inside = (branch > 0).nonzero()[:, 0]
        # The number of a position's image: its prefix is the last one that begins before it.
        image = torch.bucketize(inside, prefixes[:, 0].contiguous(), right=True) - 1
        number = branch[inside] - 1
        most = int(number.max()) + 1
        segment, lengths = (image * most + number).unique_consecutive(return_counts=True)
        starts = lengths.cumsum(0) - lengths
        step = torch.arange(len(inside)) - starts.repeat_interleave(lengths)
        cell = (image * most + number) * int(lengths.max()) + step
        tokens = torch.zeros(len(batch.ids) * most * int(lengths.max()), dtype=torch.long)
        tokens[cell] = inside
        places = torch.zeros(len(branch), dtype=torch.long)
        places[prefixes.flatten()] = torch.arange(prefixes.numel())
        places[inside] = prefixes.numel() + cell
        return cls(prefixes, tokens.view(len(batch.ids), most, -1), places.view_as(batch.input_ids))

    @property
    def scores(self) -> int:
        """How many scores each head computes."""
        prefix, longest = self.prefixes.shape[1], self.tokens.shape[2]
        return self.prefixes.numel() * prefix + self.tokens.numel() * (prefix + longest)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None = None) -> Tensor:
        """(B, heads, S, D), of fewer heads in keys and values -> (B, S, heads, D); padding gets any finite numbers."""
        groups = query.shape[1] // key.shape[1]
        query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        query_mp, query_mnl = self._laid_out(query, 1)
        key_mp, key_mnl = self._laid_out(key, groups)
        value_mp, value_mnl = self._laid_out(value, groups)
        first = _causal(query_mp @ key_mp.transpose(-1, -2)).softmax(-1) @ value_mp
        prefix, rows = key_mp.shape[-2], query_mnl.shape
        # Of the prefix all branches of an image ask at once: (M, heads, N * L, P).
        of_prefix = (query_mnl.flatten(2, 3) @ key_mp.transpose(-1, -2)).unflatten(2, rows[2:4])
        weights = torch.cat([of_prefix, _causal(query_mnl @ key_mnl.transpose(-1, -2))], -1).softmax(-1)
        rest = (weights[..., :prefix].flatten(2, 3) @ value_mp).view(rows) + weights[..., prefix:] @ value_mnl
        results = torch.cat([first.transpose(1, 2).flatten(0, 1), rest.permute(0, 2, 3, 1, 4).flatten(0, 2)])
        return _rows(results, self.places)

    def _laid_out(self, part: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        """(B, heads, S, D) -> the prefixes' (M, heads, P, D) and branches' (M, heads, N, L, D), each head repeated."""
        both = torch.cat([self.prefixes.flatten(), self.tokens.flatten()])
        rows = _rows(part.transpose(1, 2).flatten(0, 1), both)
        if groups > 1:
            rows = rows.repeat_interleave(groups, 1)
        first, rest = rows.split([self.prefixes.numel(), self.tokens.numel()])
        branches = rest.unflatten(0, self.tokens.shape).permute(0, 3, 1, 2, 4)
        return first.unflatten(0, self.prefixes.shape).transpose(1, 2), branches


def _causal(scores: Tensor) -> Tensor:
    """Scores (..., L, L) of which no position sees a later one."""
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores + torch.zeros(later.shape, dtype=scores.dtype).masked_fill_(later, -torch.inf)


def _rows(part: Tensor, index: Tensor) -> Tensor:
    """`part[index]` for (R, heads, D), by the operation whose gradient is the fastest on a CPU."""
    return F.embedding(index, part.flatten(1)).unflatten(-1, part.shape[1:])
