"""Encoder + projector + language model -> one stock LLaVA, from checkpoints or from-scratch parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import nn
from transformers import (
    AddedToken,
    AutoModelForCausalLM,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from granvit.coordinates import get_codec
from granvit.errors import GranvitError
from granvit.loading.chat_template import check_template
from granvit.loading.models import build, quiet
from granvit.model.dialog import OWN_TEMPLATES, template_for
from granvit.model.encoders import Encoder, load_encoder
from granvit.model.families import body_of, canvas_of, family_of, patch_of, registers_of
from granvit.model.forward import Llava, encode, scale_projector
from granvit.model.languages import load_language
from granvit.model.locations import add_tokens, rows_of, start_tokens, unknown_tokens
from granvit.model.region_model import RegionModel, Settings, pinpoints, stock_classes

IMAGE_TOKEN = "<image>"
# Parameters of both parts together from which on they are taken over and not copied.
_LARGE = 50_000_000


def assemble(
    encoder: str | Path | PreTrainedModel | Encoder,
    language: str | Path | tuple[PreTrainedModel, PreTrainedTokenizerBase],
    settings: Settings,
    seed: int = 0,
    canvas: int | None = None,
) -> RegionModel:
    """Join a vision tower and a language model of known families by a fresh 2-layer MLP.

    `encoder` and `language` are local directories, hub names, or loaded models; `canvas` is the side of the square
    input in pixels where `encoder` is a name (its own where None). Features are those of the tower's `hidden_states`
    that its family is read at, so that the result is exactly what stock LLaVA computes.

    A codec's tokens that the language model has never seen are added to it (`granvit.model.locations`), and the model
    says so, as `new_tokens`: a stage that keeps the language model frozen has to train their embeddings.

    Raises:
        ValueError: another architecture, a canvas that patches do not tile, or a codec of which the language model has
            some tokens and lacks others.
    """
    if isinstance(encoder, PreTrainedModel):
        encoder = Encoder.of(encoder)
    elif not isinstance(encoder, Encoder):
        encoder = load_encoder(encoder, canvas)
    tower = encoder.tower
    model, tokenizer = load_language(language)
    codec = get_codec(settings.codec)
    vision, family = tower.config, family_of(tower.config)
    side, patch = canvas_of(vision), patch_of(vision)
    if side % patch:
        raise GranvitError(f"patches of {patch} px do not tile a canvas of {side} px")
    if settings.tiles and (registers_of(vision) or not isinstance(vision.image_size, int)):
        raise GranvitError(f"tiles: the stock LLaVA-NeXT takes no {family.name} tower (registers, or sides as lists)")
    template, end = template_for(tokenizer.get_vocab(), tokenizer.chat_template)
    if template not in OWN_TEMPLATES:
        check_template(template, tokenizer.special_tokens_map, str(tokenizer.name_or_path or "language model"))
    tokenizer.chat_template = template
    if end is not None:
        tokenizer.eos_token = end
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken(IMAGE_TOKEN, special=True)]})
    new = bool(unknown_tokens(tokenizer, codec))
    if new:
        add_tokens(tokenizer, codec)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:  # never shrink: real checkpoints pad their vocabulary
        with quiet():  # no words about how new embeddings start: no question reads the image token's
            model.resize_token_embeddings(len(tokenizer))
    if new:
        start_tokens(model.get_input_embeddings(), rows_of(tokenizer, codec), codec)
    config_class, model_class, _ = stock_classes(settings)
    config = config_class(
        vision_config=vision,
        text_config=model.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=(side // patch) ** 2 + registers_of(vision),
        projector_hidden_act="gelu",
        vision_feature_layer=family.layer,
        vision_feature_select_strategy=family.strategy,
        tie_word_embeddings=model.config.tie_word_embeddings,
        **({"image_grid_pinpoints": pinpoints(settings, side)} if settings.tiles else {}),
    )
    torch.manual_seed(seed)
    large = sum(p.numel() for part in (tower, model) for p in part.parameters()) > _LARGE
    llava: Llava = (_taken_over if large else _copied)(model_class, config, tower, model)
    llava.tie_weights()
    for setting in ("eos_token_id", "pad_token_id", "bos_token_id"):
        setattr(llava.generation_config, setting, getattr(tokenizer, setting))
    with torch.no_grad():
        picture = torch.rand(2, 3, side, side) * 2 - 1
        scale_projector(llava, encode(llava.model.vision_tower, picture))
        if settings.tiles:  # as large as a word
            words = llava.get_input_embeddings().weight
            llava.model.image_newline = nn.Parameter(torch.randn(words.shape[1], device=words.device) * words.std())
    joined = RegionModel(llava.eval(), _processor(tokenizer, encoder, settings), settings)
    joined.new_tokens = new
    return joined


def _copied(
    kind: type[Any], config: LlavaConfig | LlavaNextConfig, tower: PreTrainedModel, model: PreTrainedModel
) -> Llava:
    """A LLaVA initialised as a whole, then given the parts' weights: how all runs of the presets have started."""
    llava: Llava = build(kind, config, attn_implementation="sdpa")
    llava.model.vision_tower.load_state_dict(tower.state_dict())
    llava.model.language_model.load_state_dict(model.model.state_dict())
    llava.lm_head.load_state_dict(model.lm_head.state_dict())
    return llava


def _taken_over(
    kind: type[Any], config: LlavaConfig | LlavaNextConfig, tower: PreTrainedModel, model: PreTrainedModel
) -> Llava:
    """A LLaVA of the very parts, whose weights are in memory once; nothing but the projector is initialised."""
    with torch.device("meta"):
        llava: Llava = build(kind, config, attn_implementation="sdpa")
    for part in (tower, model):
        part.set_attn_implementation("sdpa")
    llava.model.vision_tower, llava.model.language_model, llava.lm_head = tower, model.model, model.lm_head
    projector = llava.model.multi_modal_projector.to_empty(device=tower.device)
    projector.apply(llava._init_weights)
    return llava


def _processor(
    tokenizer: PreTrainedTokenizerBase, encoder: Encoder, settings: Settings
) -> LlavaProcessor | LlavaNextProcessor:
    """The stock processor that makes the very canvases of a `View`, and as many image tokens as the tower gives."""
    vision = encoder.tower.config
    family, kind = family_of(vision), stock_classes(settings)[2]
    processor: LlavaProcessor | LlavaNextProcessor = kind(
        image_processor=_image_processor(encoder, settings),
        tokenizer=tokenizer,
        patch_size=patch_of(vision),
        vision_feature_select_strategy=family.strategy,
        num_additional_image_tokens=family.class_token + registers_of(vision),
        chat_template=tokenizer.chat_template,
        image_token=IMAGE_TOKEN,
    )
    return processor


def _image_processor(encoder: Encoder, settings: Settings) -> Any:
    canvas = canvas_of(encoder.tower.config)
    shared = {
        "image_mean": list(encoder.mean),
        "image_std": list(encoder.std),
        "resample": 3,
        "do_convert_rgb": True,
    }
    square = {"height": canvas, "width": canvas}
    if settings.tiles:
        grids = pinpoints(settings, canvas)
        return LlavaNextImageProcessorPil(size=square, crop_size=square, image_grid_pinpoints=grids, **shared)
    if settings.fit == "squash":
        return SiglipImageProcessorPil(size=square, **shared)
    side = {"shortest_edge": canvas}
    return LlavaImageProcessorPil(do_pad=True, do_center_crop=False, size=side, crop_size=square, **shared)


def save_language(model: RegionModel, folder: Path | str) -> None:
    """The language model alone as a stock causal LM with its tokenizer, for another `assemble`."""
    llava = model.llava
    alone = build(AutoModelForCausalLM, llava.config.text_config)
    alone.model.load_state_dict(llava.model.language_model.state_dict())
    alone.lm_head.load_state_dict(llava.lm_head.state_dict())
    alone.tie_weights()
    alone.save_pretrained(folder)
    model.processor.tokenizer.save_pretrained(folder)


def save_encoder(model: RegionModel, folder: Path | str) -> None:
    """The tower alone as a stock model of its family with its image processor: the encoder for any other stack.

    Its features are the `hidden_states` that its family is read at; the norm behind them was never trained (see
    `encode`).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tower = model.llava.model.vision_tower
    config = type(tower.config)(**{**tower.config.to_dict(), "architectures": [type(tower).__name__]})
    config.save_pretrained(folder)
    # The names that these checkpoints have everywhere; transformers 5 reads them too.
    name_of = family_of(tower.config).published
    weights = {name_of(name): tensor.contiguous() for name, tensor in body_of(tower).state_dict().items()}
    save_torch_state_dict(weights, folder)
    images = model.processor.image_processor
    if model.settings.tiles:  # the encoder's own pictures are single canvases
        encoder = Encoder(tower, tuple(images.image_mean), tuple(images.image_std))
        images = _image_processor(encoder, replace(model.settings, tiles=""))
    images.save_pretrained(folder)
