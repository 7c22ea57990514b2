"""From-scratch models small enough for two CPU cores: what they are made of, how they start, and the shipped ones."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from granvit.coordinates import Codec, get_codec
from granvit.corpus.synthetic.scenes import SOURCES, sample_texts
from granvit.errors import GranvitError
from granvit.model.assemble import assemble
from granvit.model.dialog import PLAIN
from granvit.model.encoders import Encoder, load_encoder
from granvit.model.families import body_of
from granvit.model.languages import load_language
from granvit.model.locations import fourier_features, patch_fourier_features, start_places
from granvit.model.region_model import RegionModel
from granvit.nano.projector import start_foreign, start_projector
from granvit.nano.symbolic import WHERE
from granvit.questions import BBOX2CAPTION, CAPTION2BBOX, GLOBAL
from granvit.train.build import drawn_canvases
from granvit.train.recipes.base import Recipe

ASSETS = Path(__file__).parent.parent / "assets"
LANGUAGE = ASSETS / "nano-language"
ENCODERS = {"nano": ASSETS / "nano-encoder", "nano-reader": ASSETS / "nano-reader"}
# What a warmed-up language model was shown as each patch's place: "places", (patches, hidden).
PLACES = "places.safetensors"
# The head of an encoder's warm-up: which word is in which patch.
WORDS = "words.safetensors"
# Bytes and merges of the from-scratch tokenizer.
_VOCABULARY = 1024
UNTRAINED, SMALL = "nano-untrained", "small-untrained"


def nano_language(
    tokenizer: PreTrainedTokenizerBase, codec: Codec, width: int = 128, layers: int = 4, heads: int = 4
) -> Qwen2ForCausalLM:
    """An untrained Qwen2 of about a million parameters.

    The embeddings of location tokens start as Fourier features of their position, so that neighbours are alike.
    """
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            initializer_range=0.05,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    if codec.tokens:
        first = tokenizer.convert_tokens_to_ids(codec.tokens[0])
        assert isinstance(first, int)
        count = len(codec.tokens)
        code = fourier_features((torch.arange(count) + 0.5) / count)
        code = code @ torch.randn(code.shape[1], width)
        weight = model.get_input_embeddings().weight
        with torch.no_grad():
            weight[first : first + count] = code / code.std() * weight.std()
    return model


def nano_encoder(
    canvas: int = 160, width: int = 160, layers: int = 5, heads: int = 5, patch: int = 16
) -> SiglipVisionModel:
    """An untrained SigLIP tower of about 1.7 million parameters; its position embeddings start as sines (MAE)."""
    tower = SiglipVisionModel(
        SiglipVisionConfig(
            image_size=canvas,
            patch_size=patch,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            vision_use_head=False,
        )
    )
    code = patch_fourier_features(canvas // patch)
    code = code @ torch.randn(code.shape[1], width) / math.sqrt(code.shape[1])
    body = body_of(tower)
    with torch.no_grad():
        body.embeddings.position_embedding.weight.copy_(code)
        for layer in body.encoder.layers:  # small residual branches: at the start every patch speaks of itself (GPT-2)
            layer.self_attn.out_proj.weight.div_(math.sqrt(2 * layers))
            layer.mlp.fc2.weight.div_(math.sqrt(2 * layers))
    return tower


def small_encoder() -> SiglipVisionModel:
    """An untrained SigLIP tower of 14.6 million parameters, for pictures of 224 pixels."""
    return nano_encoder(canvas=224, width=384, layers=8, heads=6)


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


def build_model(recipe: Recipe) -> RegionModel:
    """The untrained model of a recipe.

    Raises:
        ValueError: a part cannot be had, or the parts do not fit together; the message names it.
    """
    if recipe.encoder == UNTRAINED:
        encoder = Encoder.of(nano_encoder())
    elif recipe.encoder == SMALL:
        encoder = Encoder.of(small_encoder())
    else:
        encoder = load_encoder(ENCODERS.get(recipe.encoder, recipe.encoder), recipe.canvas)
    if recipe.language == UNTRAINED:
        codec = get_codec(recipe.settings.codec)
        tokenizer = train_tokenizer(sample_texts(), _VOCABULARY, codec)
        language = (nano_language(tokenizer, codec), tokenizer)
    else:
        language = load_language(LANGUAGE if recipe.language == "nano" else recipe.language)
    model = assemble(encoder, language, recipe.settings, recipe.seed)
    if recipe.language == "nano":
        places = load_file(LANGUAGE / PLACES)["places"]
        if len(places) != model.grid**2:
            raise GranvitError(
                f"the language model 'nano' knows {len(places)} places, {recipe.encoder} has {model.grid**2} "
                "patches: set canvas to ten patches a side, or take another language model"
            )
        known = recipe.encoder in ENCODERS
        start_projector(model, places, load_file(ENCODERS[recipe.encoder] / WORDS) if known else None)
    elif model.new_tokens:
        if recipe.encoder in ENCODERS:
            _, spelling = load_language(LANGUAGE)  # the head counts by its tokens
            start_foreign(model, load_file(ENCODERS[recipe.encoder] / WORDS), spelling)
        else:
            start_places(model.llava, model.normalise(drawn_canvases(model.canvas)))
    if recipe.language == "nano" or recipe.encoder in ENCODERS:
        model.sources = SOURCES  # which the shipped parts learned from
    return model


def earlier_folders(recipe: Recipe) -> list[Path]:
    """Where the shipped parts of a recipe keep what stages go on from."""
    if recipe.language != "nano":
        return []
    return [LANGUAGE, *([ENCODERS[recipe.encoder]] if recipe.encoder in ENCODERS else [])]
