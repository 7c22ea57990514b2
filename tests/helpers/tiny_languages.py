"""Language models of every family as their makers publish them: without pictures, with a byte-level tokenizer."""

from __future__ import annotations

from pathlib import Path

from helpers.tiny_model import TEXTS, make_language
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
LLAMA3 = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>")
# SmolLM and SmolLM2 are Llamas that speak ChatML.
MAKES = {
    "qwen2": ("qwen2", CHATML),
    "qwen3": ("qwen3", CHATML),
    "llama3": ("llama", LLAMA3),
    "smollm2": ("llama", CHATML),
    "smollm3": ("smollm3", CHATML),
}


def save_as_published(make: str, folder: Path) -> PreTrainedModel:
    """A language model that knows nothing of pictures, with a byte-level tokenizer."""
    kind, special = MAKES[make]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False))
    raw.add_special_tokens(list(special))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=special[-1], pad_token=special[-1])
    model = make_language(kind, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model
