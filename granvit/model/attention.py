"""How packed positions attend to one another: branch by branch on the CPU, FlexAttention on a GPU.

FlexAttention skips the 128 x 128 tiles of the S x S square in which nothing is visible, and asks for single positions
only in tiles that are partly visible. Which tiles these are follows from where each tile's segments begin and end, so
no S x S tensor is made on a GPU, not even for a moment.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from granvit.errors import GranvitError
from granvit.model.branch_attention import Branches
from granvit.model.packing import Batch

# The name of `attend` in transformers' table of attention functions.
PACKED = "granvit_packed"
TILE = 128
# What stands for a mask beside `branches`: it passes through transformers as masks do, and no attention could use it.
_NO_MASK = torch.zeros(1, 1, 0, 0, dtype=torch.bool)
# Lengths are rounded up to one of so many steps per doubling, at least to whole tiles.
_STEPS = 32


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
    if batch.input_ids.device.type == "cuda":
        use_packed_attention(language)
        batch = batch.lengthened(bucket(batch.input_ids.shape[1]))
        return batch, {"attention_mask": block_mask(batch)}
    if there == PACKED and not getattr(language.config, "attention_dropout", 0):
        branches = Branches.of(batch)
        if branches.scores < batch.input_ids.numel() * batch.input_ids.shape[1]:
            return batch, {"attention_mask": _NO_MASK, "branches": branches}
    return batch, {"attention_mask": batch.mask()}


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
    codes, roots = batch.segments()
    some, every = _tiles(batch, codes, roots)
    return BlockMask.from_kv_blocks(
        *_listed(some & ~every), *_listed(every), BLOCK_SIZE=TILE, mask_mod=visible(codes, roots)
    )


def visible(codes: Tensor, roots: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The mask as a function of single positions. It closes over tensors alone, so other batches compile nothing."""

    def mask_mod(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = codes[row, key]
        return (query >= key) & ((seen == codes[row, query]) | (seen == roots[row, query]))

    return mask_mod


def _tiles(batch: Batch, codes: Tensor, roots: Tensor) -> tuple[Tensor, Tensor]:
    """In which tiles (B, queries, keys) something is visible, and in which certainly everything.

    Segments and blocks are contiguous, so of two tiles, keys before queries, only the keys' last and the queries' first
    segment or block can be the same.
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
