"""Encoder + projector + language model -> one stock LLaVA, from checkpoints or from-scratch parts."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from transformers import (
    AddedToken,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from granvit.coordinates import get_codec
from granvit.model.chat import template_for
from granvit.model.forward import encode, scale_projector, siglip_body
from granvit.model.region_model import RegionModel, Settings

log = logging.getLogger(__name__)

IMAGE_TOKEN = "<image>"
ENCODER_TYPES = ("siglip_vision_model", "siglip")
LANGUAGE_TYPES = ("qwen2", "llama")


def assemble(
    encoder: str | Path | PreTrainedModel,
    language: str | Path | tuple[PreTrainedModel, PreTrainedTokenizerBase],
    settings: Settings,
    seed: int = 0,
) -> RegionModel:
    """Join a SigLIP-type tower and a Qwen2 or Llama language model by a fresh 2-layer MLP.

    `encoder` and `language` are local directories, hub names, or models at hand. Features are the tower's
    `hidden_states[-1]`, all patches, so that the result is exactly what stock LLaVA computes.

    Raises:
        ValueError: another architecture, a canvas that patches do not tile, or a codec whose tokens the
            language model has never seen.
    """
    tower = load_encoder(encoder)
    model, tokenizer = load_language(language)
    codec = get_codec(settings.codec)
    unknown = [t for t in codec.tokens if t not in tokenizer.get_vocab()]
    if unknown:
        raise ValueError(
            f"codec {settings.codec!r} needs {len(unknown)} tokens (such as {unknown[0]}) that the language model has "
            "never seen, and stage 1 keeps it frozen: use 'decimal' or 'int1000', or a language model that has them"
        )
    vision = tower.config
    if vision.image_size % vision.patch_size:
        raise ValueError(f"patches of {vision.patch_size} px do not tile a canvas of {vision.image_size} px")
    template, end = template_for(tokenizer.get_vocab(), tokenizer.chat_template)
    tokenizer.chat_template = template
    if end is not None:
        tokenizer.eos_token = end
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken(IMAGE_TOKEN, special=True)]})
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:  # never shrink: real checkpoints pad their vocabulary
        model.resize_token_embeddings(len(tokenizer))
    config = LlavaConfig(
        vision_config=vision,
        text_config=model.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        projector_hidden_act="gelu",
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=model.config.tie_word_embeddings,
    )
    torch.manual_seed(seed)
    llava = LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    llava.model.vision_tower.load_state_dict(tower.state_dict())
    llava.model.language_model.load_state_dict(model.model.state_dict())
    llava.lm_head.load_state_dict(model.lm_head.state_dict())
    llava.tie_weights()
    for setting in ("eos_token_id", "pad_token_id", "bos_token_id"):
        setattr(llava.generation_config, setting, getattr(tokenizer, setting))
    with torch.no_grad():
        picture = torch.rand(2, 3, vision.image_size, vision.image_size) * 2 - 1
        scale_projector(llava, encode(llava.model.vision_tower, picture))
    return RegionModel(llava.eval(), _processor(tokenizer, vision.image_size, vision.patch_size, settings), settings)


def load_encoder(encoder: str | Path | PreTrainedModel) -> PreTrainedModel:
    """A SigLIP-type vision tower: the tower alone, or the vision half of a whole SigLIP checkpoint.

    Raises:
        ValueError: the checkpoint is of another architecture.
    """
    if isinstance(encoder, PreTrainedModel):
        return encoder
    config = _config(encoder, "encoder")
    if config.model_type not in ENCODER_TYPES:
        raise ValueError(f"{encoder}: encoder of type {config.model_type!r}, supported: {', '.join(ENCODER_TYPES)}")
    loaded = AutoModel.from_pretrained(encoder, dtype=torch.float32, use_safetensors=True)
    return loaded.vision_model if config.model_type == "siglip" else loaded


def load_language(
    language: str | Path | tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A Qwen2 or Llama causal language model with its tokenizer.

    Raises:
        ValueError: the checkpoint is of another architecture.
    """
    if isinstance(language, tuple):
        return language
    config = _config(language, "language model")
    if config.model_type not in LANGUAGE_TYPES:
        raise ValueError(
            f"{language}: language model of type {config.model_type!r}, supported: {', '.join(LANGUAGE_TYPES)}"
        )
    model = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32, use_safetensors=True)
    return model, _load_tokenizer(language)


def _config(name: str | Path, what: str) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: no {what} of that name, in a folder or on the hub: {error}") from error


def _load_tokenizer(language: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer as its `tokenizer.json` says.

    For a Qwen2 model `AutoTokenizer` takes Qwen2's own way of splitting text, whatever that file says: a model with
    another tokenizer (as the presets') would read other tokens than those it was trained on.
    """
    if get_tokenizer_config(language).get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast"):
        return PreTrainedTokenizerFast.from_pretrained(language)
    return AutoTokenizer.from_pretrained(language)


def _processor(tokenizer: PreTrainedTokenizerBase, canvas: int, patch: int, settings: Settings) -> LlavaProcessor:
    """The stock processor that makes the very canvas that `View` makes."""
    shared = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3, "do_convert_rgb": True}
    if settings.fit == "letterbox":
        images = LlavaImageProcessorPil(
            do_pad=True,
            do_center_crop=False,
            size={"shortest_edge": canvas},
            crop_size={"height": canvas, "width": canvas},
            **shared,
        )
    else:
        images = SiglipImageProcessorPil(size={"height": canvas, "width": canvas}, **shared)
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template,
        image_token=IMAGE_TOKEN,
    )


def save_language(model: RegionModel, folder: Path | str) -> None:
    """The language model alone as a stock causal LM with its tokenizer, for another `assemble`."""
    llava = model.llava
    alone = AutoModelForCausalLM.from_config(llava.config.text_config)
    alone.model.load_state_dict(llava.model.language_model.state_dict())
    alone.lm_head.load_state_dict(llava.lm_head.state_dict())
    alone.tie_weights()
    alone.save_pretrained(folder)
    model.processor.tokenizer.save_pretrained(folder)


def save_encoder(model: RegionModel, folder: Path | str) -> None:
    """The tower alone as a stock `SiglipVisionModel` with its image processor: the encoder for any other stack.

    Its features are `hidden_states[-1]`; the final layer norm behind them was never trained (see `encode`).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tower = model.llava.model.vision_tower
    config = type(tower.config)(**{**tower.config.to_dict(), "architectures": [type(tower).__name__]})
    config.save_pretrained(folder)
    # The names that SigLIP checkpoints have everywhere; transformers 5 reads them too.
    weights = {f"vision_model.{name}": tensor.contiguous() for name, tensor in siglip_body(tower).state_dict().items()}
    save_torch_state_dict(weights, folder)
    model.processor.image_processor.save_pretrained(folder)
