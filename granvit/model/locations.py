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
# Of so many words a direction is mixed.
_MIXED = 4096


def fourier_features(places: Tensor) -> Tensor:
    """Coordinates in [0, 1], shape (N,), as sines and cosines of 12 frequencies, (N, 24): near places, near codes."""
    frequencies = 2 * math.pi * torch.logspace(math.log10(0.5), math.log10(12), _FREQUENCIES)
    angles = places[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def patch_fourier_features(side: int) -> Tensor:
    """The place codes of a side x side grid of patch centres, row by row: (side * side, 48), x then y."""
    centres = (torch.arange(side) + 0.5) / side
    return torch.cat([fourier_features(centres.repeat(side)), fourier_features(centres.repeat_interleave(side))], dim=1)


@torch.no_grad()
def word_mean(words: Tensor) -> Tensor:
    """What all embeddings (V, hidden) of a language model have in common: (hidden,), in float32."""
    return words.mean(0, dtype=torch.float32)


@torch.no_grad()
def as_words(features: Tensor, words: Tensor, seed: int) -> Tensor:
    """Features (N, F) as differences between words: (N, hidden), of the size by which words differ, in float32.

    Each feature has a direction of its own, a drawn mixture of what words differ by. Pretrained embeddings lie in a
    cone, and most of their variance in few directions: attention copies and compares what lies there, and hardly what
    lies elsewhere. `words` (V, hidden) are a language model's embeddings.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(words), generator=generator)[:_MIXED].to(words.device)
    differences = words[drawn].float() - word_mean(words)
    mixture = torch.randn(features.shape[1], len(drawn), generator=generator).to(differences)
    said = features.to(differences) @ mixture @ differences
    return said * (differences.std() / said.std().clamp(min=1e-8))


def place_codes(side: int, words: Tensor, seed: int = 0) -> Tensor:
    """What names the cells of a side x side grid, row by row: (side * side, hidden), beside the `word_mean`.

    They are the Fourier features of each cell's middle, said `as_words`: those of two grids are alike where the cells
    are, so a token that names a place has nearly the code of the patch there.
    """
    return as_words(patch_fourier_features(side), words, seed)


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
    """Set the embeddings of fresh location tokens as if they were words: cells to their place codes, others drawn."""
    weight = embeddings.weight
    words = weight[: rows.start]
    started = as_words(torch.eye(len(rows)), words, seed=1)
    if isinstance(codec, Cell):
        started[: codec.bins**2] = place_codes(codec.bins, words)
    weight[rows.start : rows.stop] = (word_mean(words) + started).to(weight)


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
def start_places(llava: Llava, pictures: Tensor, words: Tensor) -> None:
    """Set a fresh projector so that each patch says its place, and beside it, as loudly, what tells it from others.

    The last layer is fitted by least squares: to the place code of the patch (`place_codes`), which location tokens
    start with too, and to a random projection of what the patch's features differ by from the usual ones of its place.

    Args:
        pictures: normalised canvases, (N, 3, H, W), of different pictures.
        words: the language model's own embeddings (`RegionModel.word_embeddings`).
    """
    features = patches_of(llava.config.vision_config, encode(llava.model.vision_tower, pictures)).float()  # (N, P, D)
    projector = llava.model.multi_modal_projector
    content = (features - features.mean(0, keepdim=True)).flatten(0, 1)
    codes = place_codes(math.isqrt(features.shape[1]), words).repeat(len(features), 1)
    targets = word_mean(words) + codes + as_words(content, words, seed=2)
    generator = torch.Generator().manual_seed(2)
    spread = features.flatten(0, 1).std(0).clamp(min=1e-6)
    projector.linear_1.weight.copy_(
        torch.randn(projector.linear_1.weight.shape, generator=generator).to(spread) / (spread * len(spread) ** 0.5)
    )
    projector.linear_1.bias.copy_(-projector.linear_1.weight.float() @ features.flatten(0, 1).mean(0))
    mixed = projector.act(projector.linear_1(features.flatten(0, 1).to(words.dtype))).float()
    solution = least_squares(mixed, targets)
    projector.linear_2.weight.copy_(solution[:-1].T)
    projector.linear_2.bias.copy_(solution[-1])


def with_one(inputs: Tensor) -> Tensor:
    """(N, D) -> (N, D + 1), whose last column is one."""
    return torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)


def least_squares(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Weights and, in the last row, the bias of the best linear map of (N, D) to (N, H): (D + 1, H)."""
    return torch.linalg.lstsq(with_one(inputs), outputs, driver="gelsd").solution
