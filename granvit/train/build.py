"""What a run is made of: the model of a recipe, and the corpora it learns from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch

from granvit.corpus.derive import training_part
from granvit.corpus.store import Corpus
from granvit.corpus.synthetic.synthesize import LazySynthetic, synthesize
from granvit.errors import GranvitError
from granvit.files import locked
from granvit.model.assemble import assemble
from granvit.model.encoders import load_encoder
from granvit.model.languages import load_language
from granvit.model.region_model import RegionModel
from granvit.train.feed import Records
from granvit.train.recipes.base import NAMED_PARTS, EmbeddedCorpus, Recipe

# Seeds of held-out pictures are far from those of training pictures.
_HELD_OUT_SEED = 1_000_000


def build_model(recipe: Recipe) -> RegionModel:
    """The untrained model of a recipe.

    Raises:
        ValueError: a part cannot be had, or the parts do not fit together; the message names it.
    """
    torch.manual_seed(recipe.seed)
    for name in (recipe.language, recipe.encoder):
        if name in NAMED_PARTS:
            model: RegionModel = import_module(NAMED_PARTS[name]).build_model(recipe)
            return model
    encoder = load_encoder(recipe.encoder, recipe.canvas)
    return assemble(encoder, load_language(recipe.language), recipe.settings, recipe.seed)


def earlier_folders(recipe: Recipe) -> list[Path]:
    """Where parts of that name keep what stages go on from (`RunContext.earlier`); none for stock checkpoints."""
    for name in (recipe.language, recipe.encoder):
        if name in NAMED_PARTS:
            folders: list[Path] = import_module(NAMED_PARTS[name]).earlier_folders(recipe)
            return folders
    return []


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

    Where no stage looks at pictures, the embedded corpus is laid out and never drawn.

    Raises:
        CorpusError: a folder is no corpus, or holds no training images. ValueError: a weight is not positive.
    """
    embedded = recipe.corpus
    if not corpora and not any(stage.reads_pictures for stage in recipe.stages):
        drawn = (embedded.seed, embedded.size, embedded.documents, embedded.objects, embedded.prints)
        return [(LazySynthetic(embedded.train, *drawn), 1.0)]
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
