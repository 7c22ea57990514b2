"""How packed positions attend to one another: branch by branch on the CPU, FlexAttention on a GPU.

On a CPU every branch attends over its prefix and itself, and nothing else is computed. A kernel that takes the whole
boolean mask computes all S x S scores of a row, of which a branch of L tokens behind a prefix of P needs L x (P + L).
Here the tokens are laid out by image and branch, padded to the most and the longest.

FlexAttention skips the 128 x 128 tiles of the S x S square in which nothing is visible, and asks for single positions
only in tiles that are partly visible. Which tiles these are follows from where each tile's segments begin and end, so
no S x S tensor is made on a GPU, not even for a moment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from granvit.errors import GranvitError
from granvit.geometry import TiledView
from granvit.model.packing import Batch

# The name of `attend` in transformers' table of attention functions.
PACKED = "granvit_packed"
TILE = 128
# What stands for a mask beside `branches`: it passes through transformers as masks do, and no attention could use it.
_NO_MASK = torch.zeros(1, 1, 0, 0, dtype=torch.bool)
# Lengths are rounded up to one of so many steps per doubling, at least to whole tiles.
_STEPS = 32


@dataclass(frozen=True)
class Branches:
    """Where the M prefixes and their branches lie in a batch's B rows of S positions.

    Attributes:
        prefixes: (M, P), positions counted through all rows, of each prefix and the stems behind it; what is missing of
            P repeats some token.
        tokens: (M, N, L), those of each image's branches; what is missing of N and L repeats some token.
        places: (B, S), where a position's result is found among all prefixes' and then all branches'.
        within: (M, P, P), which of its prefix and stems each of their tokens may see; None where nobody has stems.
        behind: (M, N, P), which of them each branch sees.
    """

    prefixes: Tensor
    tokens: Tensor
    places: Tensor
    within: Tensor | None = None
    behind: Tensor | None = None

    @classmethod
    def of(cls, batch: Batch) -> Branches:
        """The structure of a batch on the CPU, whose prefixes are of one length (`alike_prefixes`)."""
        branch, block = batch.branch_ids.flatten(), batch.block_ids.flatten()
        shared = ((branch == 0) & (block >= 0)).nonzero()[:, 0]
        begins = batch.position_ids.flatten()[shared] == 0
        owner, first = begins.cumsum(0) - 1, shared[begins]
        longest = int(owner.bincount().max())
        place = owner * longest + torch.arange(len(shared)) - begins.nonzero()[owner, 0]
        prefixes = first.repeat_interleave(longest)
        prefixes[place] = shared
        prefixes = prefixes.view(len(batch.ids), longest)
        inside = (branch > 0).nonzero()[:, 0]
        # The number of a position's image: its prefix is the last one that begins before it.
        image = torch.bucketize(inside, first, right=True) - 1
        number = branch[inside] - 1
        most = int(number.max()) + 1
        segment, lengths = (image * most + number).unique_consecutive(return_counts=True)
        starts = lengths.cumsum(0) - lengths
        step = torch.arange(len(inside)) - starts.repeat_interleave(lengths)
        cell = (image * most + number) * int(lengths.max()) + step
        tokens = torch.zeros(len(batch.ids) * most * int(lengths.max()), dtype=torch.long)
        tokens[cell] = inside
        places = torch.zeros(len(branch), dtype=torch.long)
        places[shared] = place
        places[inside] = prefixes.numel() + cell
        laid_out = cls(prefixes, tokens.view(len(batch.ids), most, -1), places.view_as(batch.input_ids))
        return laid_out._with_stems(batch, place) if batch.stem_ids.any() else laid_out

    def _with_stems(self, batch: Batch, place: Tensor) -> Branches:
        """`place` says which entries of `prefixes` are not missing."""
        codes, roots, stems = (each.flatten() for each in batch.segments())
        seen = torch.full((self.prefixes.numel(),), torch.iinfo(torch.int32).min, dtype=torch.int32)
        seen[place] = codes[self.prefixes.flatten()[place]]
        seen = seen.view_as(self.prefixes)[:, None, :]
        of_prefix = seen == roots[self.prefixes[:, 0]][:, None, None]
        within = of_prefix | (seen == seen.transpose(1, 2))
        return replace(self, within=within, behind=of_prefix | (seen == stems[self.tokens[..., :1]]))

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
        first = _hide_later(_only(self.within, query_mp @ key_mp.transpose(-1, -2))).softmax(-1) @ value_mp
        prefix, rows = key_mp.shape[-2], query_mnl.shape
        # Of the prefix all branches of an image ask at once: (M, heads, N * L, P).
        of_prefix = (query_mnl.flatten(2, 3) @ key_mp.transpose(-1, -2)).unflatten(2, rows[2:4])
        of_prefix = _only(None if self.behind is None else self.behind[..., None, :], of_prefix)
        weights = torch.cat([of_prefix, _hide_later(query_mnl @ key_mnl.transpose(-1, -2))], -1).softmax(-1)
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


def _only(seen: Tensor | None, scores: Tensor) -> Tensor:
    """Scores (M, heads, ...) of what is seen, bool (M, ...); None is all."""
    return scores if seen is None else scores.masked_fill(~seen[:, None], -torch.inf)


def _hide_later(scores: Tensor) -> Tensor:
    """Scores (..., L, L) of which no position sees a later one."""
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores + torch.zeros(later.shape, dtype=scores.dtype).masked_fill_(later, -torch.inf)


def _rows(part: Tensor, index: Tensor) -> Tensor:
    """`part[index]` for (R, heads, D), by the operation whose gradient is the fastest on a CPU."""
    return F.embedding(index, part.flatten(1)).unflatten(-1, part.shape[1:])


def fit_attention(language: PreTrainedModel, batch: Batch) -> tuple[Batch, dict[str, Any]]:
    """The batch as attention takes it on its device, and what the language model is to be called with.

    On a GPU rows are lengthened to the next of few lengths. On a CPU a model that attends by `attend` computes branch
    by branch where that is fewer scores and none is dropped out; any other takes the boolean mask.

    Raises:
        ValueError: the language model runs on an attention that would misread these masks (eager attention takes a
            boolean mask for numbers to add).
    """
    there = language.config._attn_implementation
    if there not in ("sdpa", PACKED):
        raise GranvitError(f"packing needs attn_implementation='sdpa', not {there!r}")
    if batch.input_ids.device.type != "cpu":
        use_packed_attention(language)
        batch = batch.lengthened(bucket(batch.input_ids.shape[1]))
        return batch, {"attention_mask": block_mask(batch)}
    if there == PACKED and not getattr(language.config, "attention_dropout", 0) and alike_prefixes(batch):
        branches = Branches.of(batch)
        if branches.scores < batch.input_ids.numel() * batch.input_ids.shape[1]:
            return batch, {"attention_mask": _NO_MASK, "branches": branches}
    return batch, {"attention_mask": batch.mask()}


def alike_prefixes(batch: Batch) -> bool:
    """Whether all blocks surely have prefixes of one length: each shows an image, and tiled ones are of one size."""
    shapes = {(view.grid, view.padded) if isinstance(view, TiledView) else None for view in batch.views}
    return batch.text_only == 0 and len(shapes) <= 1


def use_packed_attention(model: PreTrainedModel) -> None:
    """Lets a model that is about to train, and all its parts, attend by `attend`."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(PACKED)


def bucket(length: int) -> int:
    """The length that rows of `length` positions are padded to: few values, all of whole tiles."""
    step = max(TILE, (1 << (length - 1).bit_length()) // _STEPS)
    return -(-length // step) * step


def block_mask(batch: Batch) -> BlockMask:
    """`Batch.mask()` for FlexAttention. Rows hold whole tiles."""
    codes, roots, stems = batch.segments()
    some, every = _tiles(batch, codes, roots)
    return BlockMask.from_kv_blocks(
        *_listed(some & ~every), *_listed(every), BLOCK_SIZE=TILE, mask_mod=visible(codes, roots, stems)
    )


def visible(codes: Tensor, roots: Tensor, stems: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The mask as a function of single positions. It closes over tensors alone, so other batches compile nothing."""

    def mask_mod(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = codes[row, key]
        own = (seen == codes[row, query]) | (seen == roots[row, query]) | (seen == stems[row, query])
        return (query >= key) & own

    return mask_mod


def _tiles(batch: Batch, codes: Tensor, roots: Tensor) -> tuple[Tensor, Tensor]:
    """In which tiles (B, queries, keys) something is visible, and in which certainly everything.

    Segments and blocks are contiguous, so of two tiles, keys before queries, only the keys' last and the queries' first
    segment or block can be the same. A stem lies with the prefix: its tiles count as visible to the whole block.
    """
    first, last = codes[:, ::TILE], codes[:, TILE - 1 :: TILE]
    first_root, last_root = roots[:, ::TILE], roots[:, TILE - 1 :: TILE]
    last_block = batch.block_ids[:, TILE - 1 :: TILE]
    is_root = (batch.branch_ids == 0).unflatten(1, (-1, TILE))
    holds_root = (is_root & (batch.block_ids.unflatten(1, (-1, TILE)) == last_block[..., None])).any(2)

    def same(queries: Tensor, keys: Tensor) -> Tensor:
        return queries[:, :, None] == keys[:, None, :]

    same_block = same(batch.block_ids[:, ::TILE], last_block) & (last_block >= 0)[:, None, :]
    before = torch.ones(first.shape[1], first.shape[1], dtype=torch.bool, device=first.device).tril(-1)
    some = before & (same(first, last) | (same_block & holds_root[:, None, :]))
    whole = same(first_root, first) & same(last_root, last) & (first == last)[:, None, :]
    every = before & (same(last, first) | (whole & (first_root == last_root)[:, :, None]))
    return some | torch.eye(len(before), dtype=torch.bool, device=first.device), every


def _listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Tiles (B, queries, keys) as FlexAttention lists them: how many keys each row has, (B, 1, queries), and which."""
    order = tiles.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return tiles.sum(-1, dtype=torch.int32)[:, None], order.to(torch.int32)[:, None]


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Any]:
    # `fullgraph`: beyond the limit on recompilations it fails, where it would else go on with dense scores.
    return torch.compile(flex_attention, fullgraph=True)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    scaling: float | None = None,
    branches: Branches | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it, by `fit_attention`'s choice: `branches`, or FlexAttention for a `BlockMask`.

    Any other mask is left to SDPA, as it would be without this function; see `_dense` for the one exception.

    Query, key, value are (B, heads, S, D), of fewer heads in keys and values; the result is (B, S, heads, D).
    """
    if branches is not None:
        if query.is_cpu and torch.is_autocast_enabled("cpu"):
            query, key, value = (part.to(torch.bfloat16) for part in (query, key, value))
        return branches.attend(query, key, value, scaling), None
    if not isinstance(attention_mask, BlockMask):
        return _dense(module, query, key, value, attention_mask, scaling, **options), None
    # Under autocast rotary embeddings leave queries and keys in float32.
    query, key = query.to(value.dtype), key.to(value.dtype)
    inside = torch.compiler.is_compiling() or query.device.type == "cpu"
    run: Any = flex_attention if inside else _compiled()
    output = run(query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=True)
    return output.transpose(1, 2).contiguous(), None


def _dense(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    **options: Any,
) -> Tensor:
    """SDPA; in bfloat16 training on a CPU by plain products, since torch's kernel is slow there.

    How slow, benchmarks/attention.py tells.
    """
    on_cpu = query.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    if on_cpu and not options.get("dropout") and not _causal(module, mask, options):
        return _by_products(query, key, value, mask, scaling)
    output, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **options)
    return output


def _causal(module: nn.Module, mask: Tensor | None, options: dict[str, Any]) -> bool:
    """Whether order alone, and no mask, hides positions."""
    return mask is None and options.get("is_causal", getattr(module, "is_causal", True)) is not False


def _by_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Attention by its definition, in bfloat16. `mask` is boolean, or None where everything is visible."""
    groups = query.shape[1] // key.shape[1]
    query, key, value = (part.to(torch.bfloat16) for part in (query, key, value))
    scores = query * (query.shape[-1] ** -0.5 if scaling is None else scaling) @ repeat_kv(key, groups).transpose(2, 3)
    if mask is not None:
        scores = scores + torch.zeros_like(mask, dtype=torch.bfloat16).masked_fill_(~mask, -torch.inf)
    return (scores.softmax(-1, dtype=torch.bfloat16) @ repeat_kv(value, groups)).transpose(1, 2).contiguous()


AttentionInterface.register(PACKED, attend)
AttentionMaskInterface.register(PACKED, sdpa_mask)
