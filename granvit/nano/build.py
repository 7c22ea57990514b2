"""The model of a recipe whose parts are shipped ones or come from nothing."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from granvit.coordinates import get_codec
from granvit.corpus.synthetic.scenes import sample_texts
from granvit.errors import GranvitError
from granvit.model.assemble import assemble
from granvit.model.encoders import Encoder, load_encoder
from granvit.model.languages import load_language
from granvit.model.region_model import RegionModel
from granvit.nano.assets import ENCODERS, LANGUAGE, PLACES, WORDS
from granvit.nano.models import nano_encoder, nano_language
from granvit.nano.projector import start_projector
from granvit.nano.tokenizer import train_tokenizer
from granvit.train.recipes.base import Recipe

UNTRAINED = "nano-untrained"
# Bytes and merges of the from-scratch tokenizer.
_VOCABULARY = 1024


def build_model(recipe: Recipe) -> RegionModel:
    """The untrained model of a recipe.

    Raises:
        ValueError: a part cannot be had, or the parts do not fit together; the message names it.
    """
    if recipe.encoder == UNTRAINED:
        encoder = Encoder.of(nano_encoder())
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
    return model


def earlier_folders(recipe: Recipe) -> list[Path]:
    """Where the shipped parts of a recipe keep what stages go on from."""
    if recipe.language != "nano":
        return []
    return [LANGUAGE, *([ENCODERS[recipe.encoder]] if recipe.encoder in ENCODERS else [])]
