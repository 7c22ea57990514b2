"""Cross-entropy over answer tokens, by choice with label smoothing over location bins."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedTokenizerBase

from granvit.coordinates import Codec
from granvit.errors import GranvitError

# Logits of so many bytes in float32 are alive at a time: 441 answer tokens of Qwen2.5, all of a small vocabulary.
CHUNK_BYTES = 1 << 28


class AnswerLoss(nn.Module):
    """The summed cross-entropy of answer tokens; the caller normalises by their global number.

    With `smoothing` > 0 (in bins) the target of a location token is a Gaussian over its neighbouring bins: one
    bin off is nearly right. The paper's plain loss is `smoothing` = 0. Only the `loc` codec has bins; for other
    codecs smoothing does nothing.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, codec: Codec, smoothing: float = 0.0):
        super().__init__()
        tokens = codec.tokens if smoothing > 0 else []
        ids = tokenizer.convert_tokens_to_ids(tokens) if tokens else []
        assert isinstance(ids, list)
        if ids and ids != list(range(ids[0], ids[0] + len(ids))):
            raise GranvitError("the tokenizer's location tokens are not one contiguous range")
        self.first = ids[0] if ids else -1
        bins = torch.arange(len(ids), dtype=torch.float32)
        targets = torch.exp(-0.5 * ((bins[:, None] - bins[None, :]) / max(smoothing, 1e-6)) ** 2)
        self.register_buffer("targets", targets / targets.sum(1, keepdim=True).clamp(min=1e-9), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (A, V) in any precision, labels (A,) -> the sum over answer tokens, in float32."""
        targets: Tensor = self.get_buffer("targets")
        bins = len(targets)
        if bins == 0:
            return F.cross_entropy(logits.float(), labels, reduction="sum")
        is_place = (labels >= self.first) & (labels < self.first + bins)
        log_probs = F.log_softmax(logits.float(), dim=-1)
        words = -log_probs[~is_place].gather(1, labels[~is_place, None]).sum()
        places = log_probs[is_place][:, self.first : self.first + bins]
        return words - (places * targets[labels[is_place] - self.first]).sum()

    def of_states(self, head: nn.Module, states: Tensor, labels: Tensor) -> Tensor:
        """`forward` of the logits that `head` makes of states (A, hidden), never all of which are alive at once.

        What does not fit into `CHUNK_BYTES` is worked off in pieces, whose logits the backward pass computes anew.
        """
        assert isinstance(head.out_features, int)
        rows = max(1, CHUNK_BYTES // (4 * head.out_features))
        if len(states) <= rows:
            return self(head(states), labels)

        def piece(states: Tensor, labels: Tensor) -> Tensor:
            return self(head(states), labels)

        pieces = zip(states.split(rows), labels.split(rows), strict=True)
        totals = [checkpoint(piece, *inputs, use_reentrant=False, preserve_rng_state=False) for inputs in pieces]
        return torch.stack(totals).sum()
