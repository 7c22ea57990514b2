"""Greedy answers to many questions about many images: every image is encoded and prefilled once."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from granvit.errors import GranvitError
from granvit.geometry import View
from granvit.model.packing import LEAST_STEM
from granvit.model.region_model import RegionModel

# float32 kernels of another batch size round logits otherwise: by up to 2e-5 where the largest logit is 23. Two words
# that lie closer than this share of the largest logit count as a tie that rounding may decide.
_TIE = 1e-5
# Entries of an attention mask: where questions are long, fewer of them go on at once.
_MASK = 1 << 26


class NonFiniteAnswer(GranvitError):
    """A model whose logits are not finite: any word would be as good an answer.

    Attributes:
        image: which of the images was asked about.
    """

    def __init__(self, image: int) -> None:
        super().__init__("the model's numbers are not finite here, so it has no answer: its weights are damaged")
        self.image = image


# The longest answers, in tokens.
LONGEST_ANSWER = 256
LONGEST_CAPTION = 128
LONGEST_DESCRIPTION = 48
LONGEST_BOX = 32


class Said(NamedTuple):
    """An answer: its tokens without the end token, and how probable the model held each word that it chose.

    `probabilities` are those of `tokens`, and one more, the end token's, where the answer ended by itself.
    """

    tokens: list[int]
    probabilities: list[float]


def greedy(
    model: RegionModel,
    pixels: Tensor,
    questions: Sequence[Sequence[list[int]]],
    max_new_tokens: int,
    rows: int = 256,
    views: Sequence[View] | None = None,
) -> list[list[list[int]]]:
    """The tokens alone of `greedy_answers`."""
    answers = greedy_answers(model, pixels, questions, max_new_tokens, rows, views)
    return [[said.tokens for said in of_image] for of_image in answers]


@torch.inference_mode()
def greedy_answers(
    model: RegionModel,
    pixels: Tensor,
    questions: Sequence[Sequence[list[int]]],
    max_new_tokens: int,
    rows: int = 256,
    views: Sequence[View] | None = None,
) -> list[list[Said]]:
    """An answer to each question of each image.

    The image prefix runs once per image, and with it the words that all questions begin with; its keys and values are
    then shared by all its questions, which go on as batches of at most `rows`. The answers are those that one stock
    `generate` call per question gives: in float32 a question whose answer hung on rounding at some word is asked again
    by itself, so that no answer depends on what else was asked beside it.

    Args:
        pixels: canvases, uint8 (K, H, W, 3): one for each of I images, or all of each one's view.
        questions: I lists of tokenised questions (`Dialog.ask`).
        max_new_tokens: answers end there at the latest.
        views: how each image is shown; None where each is one canvas. Images of as many tokens run together.

    Raises:
        NonFiniteAnswer: the model's logits are NaN or infinite.
    """
    shown: list[View | None] = [None] * len(questions) if views is None else list(views)
    canvases = pixels.to(model.device).split([1 if view is None else view.count for view in shown])
    lengths = [model.tokens_of(view) for view in shown]
    answers: list[list[Said]] = [[] for _ in questions]
    for length in dict.fromkeys(lengths):
        alike = [i for i, its_length in enumerate(lengths) if its_length == length]
        pictures = [_Shown(canvases[i], shown[i]) for i in alike]
        try:
            said = _greedy(model, pictures, [questions[i] for i in alike], max_new_tokens, rows)
        except NonFiniteAnswer as error:
            raise NonFiniteAnswer(alike[error.image]) from error
        for i, rows_of_image in zip(alike, said, strict=True):
            answers[i] = rows_of_image
    return answers


@dataclass(frozen=True)
class _Shown:
    """An image as the model sees it: its canvases, uint8 (K, H, W, 3), and its view; None is a single canvas."""

    canvases: Tensor
    view: View | None


def _greedy(
    model: RegionModel,
    pictures: Sequence[_Shown],
    questions: Sequence[Sequence[list[int]]],
    max_new_tokens: int,
    rows: int,
) -> list[list[Said]]:
    """`greedy_answers` for images of as many tokens each."""
    image_of = [i for i, asked in enumerate(questions) for _ in asked]
    if not image_of:
        return [[] for _ in questions]
    flat = [question for asked in questions for question in asked]
    common = list(commonprefix([question[:-1] for question in flat])) if len(flat) > 1 else []
    common = common if len(common) >= LEAST_STEM else []
    prefilled, prefix = _prefill(model, pictures, common)
    said: list[Said] = []
    for part in _parts(flat, prefix, rows):
        # The whole of a small batch takes the prefix's place in memory; parts of a larger one copy from it.
        cache = prefilled if len(part) == len(flat) else _copy(prefilled)
        asked, images = [flat[n][len(common) :] for n in part], [image_of[n] for n in part]
        found, ties = _decode(model, cache, prefix, asked, images, max_new_tokens)
        if model.llava.dtype == torch.float32 and len(pictures) + len(flat) > 2:
            for tie in ties:
                alone, before = _prefill(model, [pictures[images[tie]]])
                again, _ = _decode(model, alone, before, [common + asked[tie]], [0], max_new_tokens)
                found[tie] = again[0]
        said += found
    answers: list[list[Said]] = [[] for _ in questions]
    for image, row in zip(image_of, said, strict=True):
        answers[image].append(row)
    return answers


def _parts(questions: Sequence[list[int]], prefix: int, rows: int) -> Iterator[range]:
    """Which questions go on together: at most `rows`, and fewer of long ones, whose masks grow by their square."""
    start = width = 0
    for n, question in enumerate(questions):
        wider = max(width, len(question))
        if n > start and (n - start == rows or (n - start + 1) * wider * (prefix + wider) > _MASK):
            yield range(start, n)
            start, wider = n, len(question)
        width = wider
    yield range(start, len(questions))


def _copy(cache: DynamicCache) -> DynamicCache:
    """The same keys and values, to be selected from and added to without a change to `cache`."""
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    return other


def _decode(
    model: RegionModel,
    cache: DynamicCache,
    prefix: int,
    questions: list[list[int]],
    image_of: list[int],
    max_new_tokens: int,
) -> tuple[list[Said], list[int]]:
    """An answer for each question, and which of them passed a tie on their way; `cache` is used up."""
    device = model.device
    cache.batch_select_indices(torch.tensor(image_of, device=device))
    dialog, count, width = model.dialog, len(questions), max(map(len, questions))
    # Padded on the left, so that all answers begin in the same column.
    pads = torch.tensor([width - len(q) for q in questions], device=device)
    tokens = torch.tensor([[dialog.pad_token] * (width - len(q)) + q for q in questions], device=device)
    column = torch.arange(width, device=device)
    seen = torch.cat([torch.ones(count, prefix, device=device), column >= pads[:, None]], dim=1).long()
    positions = (prefix + column - pads[:, None]).clamp(min=prefix)

    rows = [Said([], []) for _ in questions]
    active = torch.arange(count, device=device)
    tied = torch.zeros(count, dtype=torch.bool, device=device)
    for step in range(max_new_tokens):
        hidden = model.llava.model.language_model(
            input_ids=tokens, attention_mask=seen, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state
        logits = model.llava.lm_head(hidden[:, -1])
        chosen = logits.argmax(-1)
        largest = logits.abs().amax(-1)
        if not (finite := largest.isfinite()).all():
            raise NonFiniteAnswer(image_of[int(active[~finite][0])])
        tied[active] |= _near_tie(logits, largest)
        going = chosen != dialog.end_token
        for row, token, share in zip(active.tolist(), chosen.tolist(), _shares(logits, chosen).tolist(), strict=True):
            rows[row].probabilities.append(share)
            if token != dialog.end_token:
                rows[row].tokens.append(token)
        if not going.any() or step == max_new_tokens - 1:
            break
        if not going.all():  # finished answers leave the batch
            active = active[going]
            cache.batch_select_indices(going.nonzero()[:, 0])
        tokens = chosen[going, None]
        seen = torch.cat([seen[going], seen.new_ones(len(tokens), 1)], dim=1)
        positions = positions[going, -1:] + 1
    return rows, tied.nonzero()[:, 0].tolist()


def _shares(logits: Tensor, chosen: Tensor) -> Tensor:
    """The probability of each row's chosen token, of (N, V) logits: (N,), in float32."""
    exact = logits.float()
    return (exact.gather(-1, chosen[:, None])[:, 0] - exact.logsumexp(-1)).exp()


def _near_tie(logits: Tensor, largest: Tensor) -> Tensor:
    """Whether rounding may decide which of the two largest of (N, V) logits is the larger: (N,) bool.

    `largest` are their magnitudes' largest, (N,).
    """
    first, second = logits.float().topk(2).values.unbind(-1)
    return first - second <= _TIE * largest


def _prefill(model: RegionModel, pictures: Sequence[_Shown], common: Sequence[int] = ()) -> tuple[DynamicCache, int]:
    """Keys and values of every image's prefix and what all questions begin with, and how many tokens these are."""
    language = model.llava.model.language_model
    prefix = [*model.dialog.prefix(model.tokens_of(pictures[0].view)), *common]
    ids = torch.tensor([prefix] * len(pictures), device=model.device)
    embeds = language.get_input_embeddings()(ids)
    canvases = torch.cat([picture.canvases for picture in pictures])
    images = model.arranged(model.embed(canvases), [picture.view for picture in pictures]).to(embeds.dtype)
    embeds = embeds.masked_scatter((ids == model.dialog.image_token)[..., None], images)
    cache = DynamicCache(config=language.config)
    language(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
    return cache, ids.shape[1]
