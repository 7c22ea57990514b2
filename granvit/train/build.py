"""What a run is made of: the model of a recipe, and the corpora it learns from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from granvit.coordinates import get_codec
from granvit.corpus.select import training_part
from granvit.corpus.store import Corpus
from granvit.corpus.synthesize import make, synthesize
from granvit.corpus.synthetic import sample_texts
from granvit.corpus.undrawn import Undrawn
from granvit.errors import GranvitError
from granvit.files import locked
from granvit.images import decode
from granvit.model.assemble import assemble
from granvit.model.encoders import Encoder, load_encoder
from granvit.model.languages import load_language
from granvit.model.presets import SIZES, fit_projector, nano_encoder, nano_language
from granvit.model.region_model import RegionModel
from granvit.model.tokenizer import train_tokenizer
from granvit.train.encoder_warmup import word_scores
from granvit.train.feed import Records
from granvit.train.recipes.base import EmbeddedCorpus, Recipe

ASSETS = Path(__file__).parent.parent / "assets"
NANO_LANGUAGE = ASSETS / "nano-language"
NANO_ENCODERS = {"nano": ASSETS / "nano-encoder", "nano-reader": ASSETS / "nano-reader"}
# What a warmed-up language model was shown as each patch's place, (patches, hidden).
PLACES = "places.safetensors"
# The head of the encoder's warm-up: which word is in which patch.
WORDS = "words.safetensors"
# Bytes and merges of the from-scratch tokenizer.
_VOCABULARY = 1024
# Seeds of held-out pictures are far from those of training pictures.
_HELD_OUT_SEED = 1_000_000


def build_model(recipe: Recipe) -> RegionModel:
    """The untrained model of a recipe.

    Raises:
        ValueError: a part cannot be had, or the parts do not fit together; the message names it.
    """
    torch.manual_seed(recipe.seed)
    if recipe.encoder in SIZES:
        encoder = Encoder.of(nano_encoder(**SIZES[recipe.encoder].encoder))
    else:
        encoder = load_encoder(NANO_ENCODERS.get(recipe.encoder, recipe.encoder), recipe.canvas)
    if recipe.language in SIZES:
        codec = get_codec(recipe.settings.codec)
        tokenizer = train_tokenizer(sample_texts(), _VOCABULARY, codec)
        language = (nano_language(tokenizer, codec, **SIZES[recipe.language].language), tokenizer)
    else:
        language = load_language(NANO_LANGUAGE if recipe.language == "nano" else recipe.language)
    model = assemble(encoder, language, recipe.settings, recipe.seed)
    if recipe.language == "nano":
        model.places = load_file(NANO_LANGUAGE / PLACES)["places"]
        if len(model.places) != model.grid**2:
            raise GranvitError(
                f"the language model 'nano' knows {len(model.places)} places, {recipe.encoder} has {model.grid**2} "
                "patches: set canvas to ten patches a side, or take another language model"
            )
        model.words = load_file(NANO_ENCODERS[recipe.encoder] / WORDS) if recipe.encoder in NANO_ENCODERS else None
        start_projector(model)
    return model


def start_projector(model: RegionModel, canvases: Tensor | None = None, pictures: int = 64) -> None:
    """Fit the fresh projector to what the parts of a preset already know, on pictures of the embedded corpus.

    Every patch says the place that the language model was shown for it (`model.places`) and, where the encoder comes
    with the head of its warm-up (`model.words`), the words which that head finds there rather than elsewhere.

    Args:
        canvases: other pictures than those, uint8 (N, H, W, 3).
        pictures: how many of the embedded corpus.
    """
    assert model.places is not None
    if canvases is None:
        drawn = (make(index, seed=0, size=model.canvas, documents=0.1).image or b"" for index in range(pictures))
        canvases = torch.from_numpy(np.stack([np.asarray(decode(picture)) for picture in drawn]))
    targets = model.places.expand(len(canvases), -1, -1)
    if model.words is not None:
        with torch.no_grad():
            embeddings: Tensor = model.llava.get_input_embeddings().weight
            found = word_scores(model.patches(model.features(canvases)), model.words).sigmoid()
            # What all patches say alike tells nothing of the place.
            found = 2 * (found - found.mean(dim=1, keepdim=True)).clamp(min=0)
            targets = targets + found @ embeddings[: found.shape[-1]]
    fit_projector(model.llava, model.normalise(canvases), targets)


def embedded_corpora(corpus: EmbeddedCorpus, folder: Path | str = "runs/corpora") -> tuple[Corpus, Corpus]:
    """The embedded corpus to train on and the one held out, drawn on first use into `folder`."""
    made = []
    low, high = corpus.objects
    for split, count, seed in (("train", corpus.train, corpus.seed), ("val", corpus.val, corpus.seed + _HELD_OUT_SEED)):
        name = f"embedded-{split}-{count}-{corpus.size}px-{corpus.documents}-{low}to{high}-{corpus.prints}-{seed}"
        settings = (count, seed, corpus.size, corpus.documents, split, corpus.objects, corpus.prints)
        with locked(Path(folder) / name, wait=True):  # of several processes one draws
            made.append(synthesize(Path(folder) / name, *settings))
    return made[0], made[1]


def sources_of(recipe: Recipe, corpora: Sequence[str]) -> list[tuple[Records, float]]:
    """What a run trains on: the training images of corpora given as DIR or DIR=WEIGHT, else the embedded corpus.

    A recipe of symbolic images alone needs no pictures: its embedded corpus is laid out and never drawn.

    Raises:
        CorpusError: a folder is no corpus, or holds no training images. ValueError: a weight is not positive.
    """
    embedded = recipe.corpus
    if not corpora and all(stage.sample.symbolic for stage in recipe.stages):
        drawn = (embedded.seed, embedded.size, embedded.documents, embedded.objects, embedded.prints)
        return [(Undrawn(embedded.train, *drawn), 1.0)]
    if not corpora:
        return [(embedded_corpora(embedded)[0], 1.0)]
    sources: list[tuple[Records, float]] = []
    for given in corpora:
        folder, weight = _weighted(given)
        sources.append((training_part(Corpus(folder)), weight))
    return sources


def _weighted(given: str) -> tuple[str, float]:
    """`DIR` or `DIR=WEIGHT` -> folder and weight; a folder's own name may hold an equals sign."""
    folder, equals, weight = given.rpartition("=")
    if not equals or Path(given).is_dir():
        return given, 1.0
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise GranvitError(f"--corpus {given!r}: the weight {weight!r} is not a positive number")
    return folder, number
