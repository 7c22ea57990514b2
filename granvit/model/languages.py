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

from granvit.errors import GranvitError
from granvit.loading.gguf_file import gguf_of, read_gguf, tokenizer_of
from granvit.loading.models import LoadError, load, load_gguf, load_model, read_settings_of
from granvit.loading.run_folder import named_checkpoint
from granvit.model.families import LANGUAGES
from granvit.model.settings import SETTINGS_FILE


def load_language(
    language: str | Path | tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model of a known family with its tokenizer, in float32.

    `language` may also be a GGUF file, or a folder with one, which is dequantised; its config says so then, as
    `dequantized_from`.

    Raises:
        ValueError: there is no such checkpoint, it is a run or a whole granvit model, of another architecture, lacks
            weights, or attends within a sliding window, which packed questions would not respect.
    """
    if isinstance(language, tuple):
        _check(language[0].config, type(language[0]).__name__)
        return language
    refuse_whole(language)
    if (path := gguf_of(language)) is not None:
        return _load_gguf(path)
    try:
        config = load(AutoConfig, language)
    except LoadError as error:
        raise GranvitError(
            f"{language}: no language model of that name, in a folder or on the hub: {error.within(language)}"
        ) from error
    _check(config, language)
    return load_model(AutoModelForCausalLM, language, dtype=torch.float32), _load_tokenizer(language)


def refuse_whole(language: str | Path) -> None:
    """Refuses a run or a granvit checkpoint in a language model's place.

    Raises:
        GranvitError: it is one; the message says what takes those.
    """
    folder = named_checkpoint(language)
    if str(folder) and (Path(folder) / SETTINGS_FILE).exists():
        raise GranvitError(
            f"{language}: a whole granvit model, and a language model alone is wanted here; --init goes on from a run"
        )


def _load_gguf(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    file = read_gguf(path)
    tokenizer = tokenizer_of(file)
    model = load_gguf(AutoModelForCausalLM, file, torch.float32)
    _check(model.config, path)
    model.config.dequantized_from = f"{path.name} ({file.kind})"
    return model, tokenizer


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
    stated = (read_settings_of(language, "tokenizer_config.json") or {}).get("tokenizer_class")
    if stated in ("TokenizersBackend", "PreTrainedTokenizerFast"):
        return load(PreTrainedTokenizerFast, language)
    return load(AutoTokenizer, language)
