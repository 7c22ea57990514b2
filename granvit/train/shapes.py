"""Models as shapes alone: the published ones, and that of any recipe, without a weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, models
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from granvit.coordinates import get_codec
from granvit.errors import GranvitError
from granvit.loading.models import LoadError, build, load
from granvit.loading.run_folder import checkpoint_of, named_checkpoint
from granvit.model.adapter import root_of
from granvit.model.assemble import assemble
from granvit.model.encoders import Encoder
from granvit.model.families import ENCODERS, HOLDERS, LANGUAGES
from granvit.model.languages import refuse_whole
from granvit.model.region_model import RegionModel
from granvit.train.build import build_model
from granvit.train.recipes.base import FROM_INIT, NAMED_PARTS, Recipe


def _siglip(width: int, inner: int, layers: int, heads: int, side: int, patch: int) -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=side,
        patch_size=patch,
        vision_use_head=False,
    )


def _language(
    kind: type[PretrainedConfig],
    width: int,
    layers: int,
    heads: int,
    keys: int,
    inner: int,
    words: int,
    tied: bool = True,
) -> PretrainedConfig:
    return kind(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        max_position_embeddings=32_768,
        tie_word_embeddings=tied,
    )


# Published shapes, for a machine that has neither the checkpoint nor a network.
SHAPES: dict[str, PretrainedConfig] = {
    "google/siglip2-so400m-patch16-512": _siglip(1152, 4304, 27, 16, 512, 16),
    "google/siglip2-so400m-patch14-384": _siglip(1152, 4304, 27, 16, 384, 14),
    "google/siglip2-base-patch16-256": _siglip(768, 3072, 12, 12, 256, 16),
    "google/siglip2-base-patch16-512": _siglip(768, 3072, 12, 12, 512, 16),
    # What the recipe small-encoder makes, and small starts from.
    "runs/small-encoder/checkpoint": _siglip(384, 1536, 8, 6, 224, 16),
    "Qwen/Qwen2.5-0.5B-Instruct": _language(Qwen2Config, 896, 24, 14, 2, 4864, 151_936),
    "Qwen/Qwen2.5-1.5B-Instruct": _language(Qwen2Config, 1536, 28, 12, 2, 8960, 151_936),
    "Qwen/Qwen2.5-3B-Instruct": _language(Qwen2Config, 2048, 36, 16, 2, 11_008, 151_936),
    "Qwen/Qwen2.5-7B-Instruct": _language(Qwen2Config, 3584, 28, 28, 4, 18_944, 152_064, tied=False),
    "meta-llama/Meta-Llama-3-8B-Instruct": _language(LlamaConfig, 4096, 32, 32, 8, 14_336, 128_256, tied=False),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _language(LlamaConfig, 576, 30, 9, 3, 1536, 49_152),
}


def published(name: str) -> Any:
    """A config of its own of a model in the table."""
    return type(SHAPES[name]).from_dict(SHAPES[name].to_dict())


def planned_model(recipe: Recipe, init: Path | None = None) -> RegionModel:
    """The recipe's model as shapes alone, on the device "meta".

    Shipped and from-scratch parts are small and made as they are; of others the config is read, from a folder, the hub,
    or the table of published shapes. Words are those of a small tokenizer: only how many there are counts here. With
    `init` it is the model of that run or checkpoint.

    Raises:
        GranvitError: a part's config is neither in a folder, nor on the hub, nor in the table.
    """
    if init is not None:
        whole = load(AutoConfig, root_of(checkpoint_of(init)))  # of adapters what they belong to
        return _joined(whole.vision_config, whole.text_config, recipe)
    if FROM_INIT in (recipe.encoder, recipe.language):
        raise GranvitError(
            f"{recipe.name} goes on from a trained model: name it with --init RUN, or its parts with --encoder and "
            "--language"
        )
    if recipe.encoder in NAMED_PARTS or recipe.language in NAMED_PARTS:
        return build_model(recipe)
    encoder = _config_of(str(named_checkpoint(recipe.encoder)))
    if encoder.model_type in HOLDERS:
        encoder = encoder.vision_config
    if encoder.model_type not in ENCODERS:
        raise GranvitError(f"{recipe.encoder}: no plan for encoders of type {encoder.model_type!r}")
    if recipe.canvas is not None:
        encoder.image_size = recipe.canvas
    refuse_whole(recipe.language)
    language = _config_of(recipe.language)
    if language.model_type not in LANGUAGES:
        raise GranvitError(f"{recipe.language}: no plan for language models of type {language.model_type!r}")
    return _joined(encoder, language, recipe)


def _joined(encoder: Any, language: Any, recipe: Recipe) -> RegionModel:
    tokenizer = _tokenizer(recipe)
    language.eos_token_id, language.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    with torch.device("meta"):
        tower: PreTrainedModel = build(AutoModel, encoder)
        body: PreTrainedModel = build(AutoModelForCausalLM, language)
        return assemble(Encoder.of(tower), (body, tokenizer), recipe.settings, recipe.seed)


def _config_of(name: str) -> Any:
    try:
        return load(AutoConfig, name)
    except LoadError as error:
        if name in SHAPES:
            return published(name)
        known = ", ".join(SHAPES)
        raise GranvitError(f"{name}: {error.within(name)}; without it shapes are known of {known}") from error


def _tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """A stand-in, whose texts nobody reads."""
    end, pad = "<|im_end|>", "<|pad|>"
    names = ["<|im_start|>", end, pad, *get_codec(recipe.settings.codec).tokens]
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?", eos_token=end, pad_token=pad)
