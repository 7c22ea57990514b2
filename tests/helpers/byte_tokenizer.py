"""Byte-level tokenizers that cut text as published language models' do, with merges of their own."""

from __future__ import annotations

from helpers.tiny_languages import CHATML, LLAMA3
from helpers.tiny_model import TEXTS
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from granvit.questions import BBOX2CAPTION, CAPTION2BBOX, GLOBAL

# As the tokenizer.json of each family has it, written out once more: (pattern, control tokens).
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
WAYS = {"qwen2": (_QWEN2, CHATML), "llama-bpe": (_LLAMA3, LLAMA3), "smollm": (None, CHATML)}


def byte_tokenizer(way: str) -> PreTrainedTokenizerFast:
    """`way` is llama.cpp's name of how the text is cut before merging: a key of `WAYS`."""
    pattern, control = WAYS[way]
    tokenizer = Tokenizer(models.BPE(ignore_merges=way == "llama-bpe"))
    if way == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    steps = [
        pre_tokenizers.Digits(individual_digits=True)
        if pattern is None
        else pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*TEXTS, GLOBAL, *BBOX2CAPTION, CAPTION2BBOX, "[0.125, 0.500] 125, 500"], trainer)
    tokenizer.add_special_tokens(list(control))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=control[-2], pad_token=control[-1])
