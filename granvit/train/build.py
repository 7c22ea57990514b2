"""What a run is made of: the model of a recipe, the corpora it learns from, and their provenance.

Provenance is plain data: where a stage's samples come from, enough to make the same feed again in another process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from granvit.corpus.derive import training_part
from granvit.corpus.store import Corpus, Subset
from granvit.corpus.synthetic.scenes import SOURCES
from granvit.corpus.synthetic.synthesize import LazySynthetic, make, synthesize
from granvit.errors import GranvitError
from granvit.files import locked
from granvit.images import decode
from granvit.loading.run_folder import named_checkpoint
from granvit.model.assemble import assemble
from granvit.model.encoders import load_encoder
from granvit.model.languages import load_language
from granvit.model.locations import start_places
from granvit.model.provenance import Sources, joined, read_sources
from granvit.model.region_model import RegionModel
from granvit.model.settings import SETTINGS_FILE
from granvit.train.feed import Records
from granvit.train.recipes.base import FROM_INIT, NAMED_PARTS, EmbeddedCorpus, Recipe
from granvit.train.recipes.saved import read_stage
from granvit.train.stages.config import StageConfig

# Seeds of held-out pictures are far from those of training pictures.
_HELD_OUT_SEED = 1_000_000


def check_parts(recipe: Recipe) -> None:
    """Whether a recipe names the parts that it begins with.

    Raises:
        GranvitError: it goes on from a trained model, which is for `--init` to name.
    """
    if FROM_INIT in (recipe.encoder, recipe.language):
        raise GranvitError(f"{recipe.name} goes on from a trained model: name a run or a checkpoint with --init")


def build_model(recipe: Recipe) -> RegionModel:
    """The untrained model of a recipe.

    Raises:
        ValueError: a part cannot be had, or the parts do not fit together; the message names it.
    """
    check_parts(recipe)
    torch.manual_seed(recipe.seed)
    for name in (recipe.language, recipe.encoder):
        if name in NAMED_PARTS:
            model: RegionModel = import_module(NAMED_PARTS[name]).build_model(recipe)
            return model
    encoder = load_encoder(recipe.encoder, recipe.canvas)
    model = assemble(encoder, load_language(recipe.language), recipe.settings, recipe.seed)
    inner = Path(named_checkpoint(recipe.encoder))
    if (inner / SETTINGS_FILE).exists():  # the encoder of a checkpoint of ours, in a transfer
        model.sources = read_sources(inner)
    if model.new_tokens:
        start_places(model.llava, model.normalise(drawn_canvases(model.canvas)))
    return model


def drawn_canvases(side: int, pictures: int | None = None) -> Tensor:
    """Pictures of the embedded corpus that fill a canvas of so many pixels, uint8 (N, H, W, 3).

    Without a number 64, and fewer of large canvases, so that what is fitted on them takes seconds.
    """
    count = pictures or max(4, min(64, 64 * 224**2 // side**2))
    drawn = (make(index, seed=0, size=side, documents=0.1).image or b"" for index in range(count))
    return torch.from_numpy(np.stack([np.asarray(decode(picture)) for picture in drawn]))


def learned_from(sources: Sequence[tuple[Records, float]]) -> Sources:
    """The names of the sources that a run's records come from; None where they are in no corpus that tells."""
    return joined(*(_names(records) for records, _ in sources))


def _names(records: Records) -> Sources:
    if isinstance(records, LazySynthetic):
        return SOURCES
    whole = records.corpus if isinstance(records, Subset) else records
    return frozenset(whole.manifest["images_by_source"]) if isinstance(whole, Corpus) else None


def counted(sources: Sequence[tuple[Records, float]]) -> tuple[int, int]:
    """How many records of these have an image, and how many are conversations about none."""
    text_only = sum(_text_only(records) for records, _ in sources)
    return sum(len(records) for records, _ in sources) - text_only, text_only


def counted_words(sources: Sequence[tuple[Records, float]]) -> str:
    """The same for people."""
    images, text_only = counted(sources)
    return f"{images:,} to train on" + (f" and {text_only:,} conversations without one" if text_only else "")


def _text_only(records: Records) -> int:
    if isinstance(records, Subset):
        return len(records.corpus.without_image().intersection(records.indices))
    if isinstance(records, Corpus):
        return len(records.without_image())
    return sum(record.text_only for record in records) if isinstance(records, list | tuple) else 0


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
        name += "" if corpus.style == "plain" else f"-{corpus.style}"
        settings = (count, seed, corpus.size, corpus.documents, split, corpus.objects, corpus.prints)
        with locked(Path(folder) / name, wait=True):  # of several processes one draws
            made.append(synthesize(Path(folder) / name, *settings, style=corpus.style))
    return made[0], made[1]


def sources_of(recipe: Recipe, corpora: Sequence[str]) -> list[tuple[Records, float]]:
    """What a run trains on: the training images of corpora given as DIR or DIR=WEIGHT, else the embedded corpus.

    Where no stage looks at pictures, the embedded corpus is laid out and never drawn.

    Raises:
        CorpusError: a folder is no corpus, or holds no training images. ValueError: a weight is not positive.
    """
    embedded = recipe.corpus
    if not corpora and not any(stage.reads_pictures for stage in recipe.stages):
        drawn = (embedded.seed, embedded.size, embedded.documents, embedded.objects, embedded.prints, embedded.style)
        return [(LazySynthetic(embedded.train, *drawn), 1.0)]
    if not corpora:
        return [(embedded_corpora(embedded)[0], 1.0)]
    sources: list[tuple[Records, float]] = []
    for given in corpora:
        folder, weight = _weighted(given)
        sources.append((training_part(Corpus(folder)), weight))
    return sources


def folder_of(given: str) -> Path:
    """The folder of a corpus given as DIR or DIR=WEIGHT."""
    return Path(_weighted(given)[0])


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


def provenance_of(stage: StageConfig, sources: Sequence[tuple[Records, float]]) -> dict[str, Any]:
    """The settings of a stage, and its corpora: where each lies, its share, and what tells it from others."""
    return {"stage": stage.facts(), "sources": [{**source_of(records), "weight": w} for records, w in sources]}


def source_of(records: Records) -> dict[str, Any]:
    """One corpus: "path", "images" and the checksums of its "shards"; of one without files the settings, "undrawn"."""
    if isinstance(records, LazySynthetic):
        return {"undrawn": vars(records), "images": len(records)}
    whole = records.corpus if isinstance(records, Subset) else records
    if not isinstance(whole, Corpus):
        return {"images": len(records)}
    return {"path": str(whole.path.resolve()), "images": len(records), "shards": _checksums(whole)}


def stage_of(provenance: Mapping[str, Any]) -> StageConfig:
    """The settings that `provenance_of` took down.

    Raises:
        GranvitError: there are none, or none that this version knows; the message names the setting.
    """
    if "stage" not in provenance:
        raise GranvitError("the run was not started from a recipe, so nothing tells how its samples are made")
    return read_stage(provenance["stage"], "the run's stage")


def reopen(provenance: Mapping[str, Any], corpora: Sequence[str] = ()) -> list[tuple[Records, float]]:
    """The sources that `provenance_of` took down; `corpora`, in the same order, say where the folders are now.

    Raises:
        CorpusError: a folder is no corpus.
        ValueError: a corpus is not the one that was there, or `corpora` are not as many.
    """
    facts = provenance["sources"]
    if corpora and len(corpora) != len(facts):
        raise GranvitError(f"--corpus names {len(corpora)} folder(s), the run read {len(facts)}")
    folders = list(corpora) or [fact.get("path") for fact in facts]
    return [(_reopened(fact, folder), fact["weight"]) for fact, folder in zip(facts, folders, strict=True)]


def _reopened(fact: Mapping[str, Any], folder: str | None) -> Records:
    if "undrawn" in fact:
        settings = fact["undrawn"]
        return LazySynthetic(**{**settings, "objects": tuple(settings["objects"])})
    if folder is None:
        raise GranvitError("a source of the run was no corpus on a disk; it can't be read again")
    corpus = Corpus(Path(folder))
    if _checksums(corpus) != fact["shards"]:
        raise GranvitError(f"{folder}: not the corpus that the run read: its shards have other checksums")
    records = corpus if len(corpus) == fact["images"] else training_part(corpus)
    if len(records) != fact["images"]:
        raise GranvitError(f"{folder}: the run read {fact['images']} of its images, not {len(records)}")
    return records


def _checksums(corpus: Corpus) -> list[str]:
    return [shard["sha256"] for shard in corpus.manifest["shards"]]
