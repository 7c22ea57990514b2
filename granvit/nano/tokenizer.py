"""The small byte-level BPE tokenizer of the from-scratch presets: a stock `PreTrainedTokenizerFast`."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from granvit.coordinates import Codec
from granvit.model.chat import PLAIN
from granvit.nano.questions import WHERE
from granvit.questions import BBOX2CAPTION, CAPTION2BBOX, GLOBAL

BEGIN, END, PAD, ANSWER, IMAGE = "<|begin|>", "<|end|>", "<|pad|>", "<|answer|>", "<image>"


def train_tokenizer(texts: Iterable[str], vocab_size: int, codec: Codec) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text can be written, the texts given are written shortly.

    The fixed pieces of the three questions and the codec's tokens are single tokens, so that a question about a
    region costs a small model a handful of positions and not thirty. `vocab_size` counts bytes and merges; the
    added tokens come on top.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        # In this order: digits split off first would each get a space in front, and "12" would come back as "1 2".
        [pre_tokenizers.ByteLevel(add_prefix_space=True), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    special = [AddedToken(t, special=True) for t in (BEGIN, END, PAD, ANSWER, IMAGE)]
    tokenizer.add_special_tokens(special)
    # Not "special": skip_special_tokens must leave them in a decoded answer.
    tokenizer.add_tokens([_piece(text) for text in (GLOBAL, *BBOX2CAPTION, CAPTION2BBOX)])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in codec.tokens])
    tokenizer.add_tokens([_piece(WHERE)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[ANSWER, IMAGE],
        chat_template=PLAIN,
        clean_up_tokenization_spaces=False,
    )


def _piece(text: str) -> AddedToken:
    """A fixed piece of a question; the spaces around it belong to it."""
    return AddedToken(text.strip(), lstrip=True, rstrip=True, normalized=False)
