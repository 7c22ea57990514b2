"""A causal language model with its tokenizer, from a checkpoint of any family in the table."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from granvit.errors import GranvitError
from granvit.model.families import LANGUAGES


def load_language(
    language: str | Path | tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model of a known family with its tokenizer, in float32.

    Raises:
        ValueError: there is no such checkpoint, it is of another architecture, lacks weights, or attends within a
            sliding window, which packed questions would not respect.
    """
    if isinstance(language, tuple):
        _check(language[0].config, type(language[0]).__name__)
        return language
    try:
        config = AutoConfig.from_pretrained(language, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise GranvitError(f"{language}: no language model of that name, in a folder or on the hub: {error}") from error
    _check(config, language)
    model, info = AutoModelForCausalLM.from_pretrained(
        language, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
    )
    lacking = sorted(info["missing_keys"]) + sorted(key for key, *_ in info["mismatched_keys"])
    if lacking:
        raise GranvitError(f"{language}: weights missing or of the wrong shape: {lacking[:5]}")
    return model, _load_tokenizer(language)


def _check(config: PretrainedConfig, name: str | Path) -> None:
    if config.model_type not in LANGUAGES:
        known = ", ".join(f"{kind} ({names})" for kind, names in LANGUAGES.items())
        raise GranvitError(f"{name}: language model of type {config.model_type!r}, supported: {known}")
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise GranvitError(
            f"{name}: config.json: layer_types has sliding windows, which packed questions do not respect"
        )


def _load_tokenizer(language: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer as its `tokenizer.json` says.

    For a Qwen2 model `AutoTokenizer` takes Qwen2's own way of splitting text, whatever that file says: a model with
    another tokenizer (as the presets') would read other tokens than those it was trained on.
    """
    if get_tokenizer_config(language).get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast"):
        return PreTrainedTokenizerFast.from_pretrained(language)
    return AutoTokenizer.from_pretrained(language, trust_remote_code=False)
