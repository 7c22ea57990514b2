"""Location tokens that a language model has never seen: how they start, and how they learn while it stays frozen."""

from __future__ import annotations

import math

import torch
from tokenizers import AddedToken
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from granvit.coordinates import Cell, Codec
from granvit.errors import GranvitError
from granvit.model.families import patches_of
from granvit.model.forward import Llava, encode

_FREQUENCIES = 12


def fourier_features(places: Tensor) -> Tensor:
    """Coordinates in [0, 1], shape (N,), as sines and cosines of 12 frequencies, (N, 24): near places, near codes."""
    frequencies = 2 * math.pi * torch.logspace(math.log10(0.5), math.log10(12), _FREQUENCIES)
    angles = places[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def patch_fourier_features(side: int) -> Tensor:
    """The place codes of a side x side grid of patch centres, row by row: (side * side, 48), x then y."""
    centres = (torch.arange(side) + 0.5) / side
    return torch.cat([fourier_features(centres.repeat(side)), fourier_features(centres.repeat_interleave(side))], dim=1)


def place_codes(side: int, hidden: int, seed: int = 0) -> Tensor:
    """The embeddings that name the cells of a side x side grid, row by row: (side * side, hidden), of unit variance.

    They are the Fourier features of each cell's middle in `hidden` drawn directions, so that those of two grids are
    alike where the cells are: a token that names a place has nearly the code of the patch there.
    """
    features = patch_fourier_features(side)
    directions = torch.randn(features.shape[1], hidden, generator=torch.Generator().manual_seed(seed))
    codes = features @ directions
    return codes / math.sqrt(features.square().sum(1).mean().item())


def unknown_tokens(tokenizer: PreTrainedTokenizerBase, codec: Codec) -> list[str]:
    """Those of a codec's tokens that a tokenizer does not have."""
    vocabulary = tokenizer.get_vocab()
    return [token for token in codec.tokens if token not in vocabulary]


def add_tokens(tokenizer: PreTrainedTokenizerBase, codec: Codec) -> None:
    """The codec's tokens behind all others, in one range.

    Raises:
        GranvitError: the tokenizer has some of them and lacks others.
    """
    unknown = unknown_tokens(tokenizer, codec)
    if len(unknown) < len(codec.tokens):
        raise GranvitError(
            f"codec {codec.spec!r}: the tokenizer has some of its {len(codec.tokens)} tokens and lacks {len(unknown)}, "
            f"such as {unknown[0]}: these mean something else there"
        )
    # Not "special": a decoded answer keeps them.
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in unknown])


def rows_of(tokenizer: PreTrainedTokenizerBase, codec: Codec) -> range:
    """Where the embeddings of a codec's tokens lie in a language model's.

    Raises:
        GranvitError: they are not one contiguous range.
    """
    ids = tokenizer.convert_tokens_to_ids(codec.tokens)
    assert isinstance(ids, list)
    if ids != list(range(ids[0], ids[0] + len(ids))):
        raise GranvitError("the tokenizer's location tokens are not one contiguous range")
    return range(ids[0], ids[0] + len(ids))


@torch.no_grad()
def start_tokens(embeddings: nn.Embedding, rows: range, codec: Codec) -> None:
    """Set the embeddings of fresh location tokens, as large as a word's: cells to their place codes, others drawn."""
    weight = embeddings.weight
    size = weight[: rows.start].std()
    generator = torch.Generator().manual_seed(1)
    started = torch.randn(len(rows), weight.shape[1], generator=generator)
    if isinstance(codec, Cell):
        started[: codec.bins**2] = place_codes(codec.bins, weight.shape[1])
    weight[rows.start : rows.stop] = started.to(weight) * size


def train_rows(weight: nn.Parameter, rows: range) -> None:
    """Let these rows of an embedding train and no other: all else gets a gradient of exactly zero.

    With an optimizer that moves nothing without a gradient or decay, as AdamW does embeddings here, the others stay
    bit for bit what they were.
    """

    def theirs(gradient: Tensor) -> Tensor:
        kept = torch.zeros_like(gradient)
        kept[rows.start : rows.stop] = gradient[rows.start : rows.stop]
        return kept

    train_all_rows(weight)
    weight.requires_grad_(True)
    weight.rows_hook = weight.register_hook(theirs)  # type: ignore[attr-defined]


def train_all_rows(weight: Tensor) -> None:
    """Take back what `train_rows` did, for a later stage of the same model; whether it trains, that stage says."""
    hook = getattr(weight, "rows_hook", None)
    if hook is not None:
        hook.remove()
        del weight.rows_hook  # type: ignore[attr-defined]


@torch.no_grad()
def start_places(llava: Llava, pictures: Tensor) -> None:
    """Set a fresh projector so that each patch says its place, and beside it, as loudly, what tells it from others.

    The last layer is fitted by least squares: to the place code of the patch (`place_codes`), which location tokens
    start with too, and to a random projection of what the patch's features differ by from the usual ones of its place.

    Args:
        pictures: normalised canvases, (N, 3, H, W), of different pictures.
    """
    features = patches_of(llava.config.vision_config, encode(llava.model.vision_tower, pictures)).float()  # (N, P, D)
    words, projector = llava.get_input_embeddings().weight, llava.model.multi_modal_projector
    side, hidden = math.isqrt(features.shape[1]), words.shape[1]
    generator = torch.Generator().manual_seed(2)
    content = features - features.mean(0, keepdim=True)
    content = content @ torch.randn(content.shape[-1], hidden, generator=generator).to(content)
    targets = place_codes(side, hidden).to(content) + content / content.std().clamp(min=1e-8)
    spread = features.flatten(0, 1).std(0).clamp(min=1e-6)
    projector.linear_1.weight.copy_(
        torch.randn(projector.linear_1.weight.shape, generator=generator).to(spread) / (spread * len(spread) ** 0.5)
    )
    projector.linear_1.bias.copy_(-projector.linear_1.weight.float() @ features.flatten(0, 1).mean(0))
    mixed = projector.act(projector.linear_1(features.flatten(0, 1).to(words.dtype))).float()
    solution = least_squares(mixed, targets.flatten(0, 1) * words.std())
    projector.linear_2.weight.copy_(solution[:-1].T)
    projector.linear_2.bias.copy_(solution[-1])


def with_one(inputs: Tensor) -> Tensor:
    """(N, D) -> (N, D + 1), whose last column is one."""
    return torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)


def least_squares(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Weights and, in the last row, the bias of the best linear map of (N, D) to (N, H): (D + 1, H)."""
    return torch.linalg.lstsq(with_one(inputs), outputs, driver="gelsd").solution
