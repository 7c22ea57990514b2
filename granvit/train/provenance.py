"""Where a stage's samples come from, as plain data: enough to make the same feed again in another process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from granvit.corpus.derive import training_part
from granvit.corpus.store import Corpus, Subset
from granvit.corpus.synthetic.synthesize import LazySynthetic
from granvit.errors import GranvitError
from granvit.train.feed import Records
from granvit.train.recipes.saved import read_stage
from granvit.train.stages.config import StageConfig


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
