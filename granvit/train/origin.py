"""Where a stage's samples come from, as plain data: enough to make the same feed again in another process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from granvit.corpus.select import Subset, training_part
from granvit.corpus.store import Corpus
from granvit.corpus.undrawn import Undrawn
from granvit.errors import GranvitError
from granvit.train.config import LoopConfig
from granvit.train.feed import Records
from granvit.train.recipes.base import StageRecipe
from granvit.train.sampling import SampleConfig


def origin_of(stage: StageRecipe, sources: Sequence[tuple[Records, float]]) -> dict[str, Any]:
    """The settings of a stage, and its corpora: where each lies, its share, and what tells it from others."""
    return {"stage": asdict(stage), "sources": [{**source_of(records), "weight": w} for records, w in sources]}


def source_of(records: Records) -> dict[str, Any]:
    """One corpus: "path", "images" and the checksums of its "shards"; of one without files the settings, "undrawn"."""
    if isinstance(records, Undrawn):
        return {"undrawn": vars(records), "images": len(records)}
    whole = records.corpus if isinstance(records, Subset) else records
    if not isinstance(whole, Corpus):
        return {"images": len(records)}
    return {"path": str(whole.path.resolve()), "images": len(records), "shards": _checksums(whole)}


def stage_of(origin: Mapping[str, Any]) -> StageRecipe:
    """The settings that `origin_of` took down.

    Raises:
        ValueError: there are none, or another version of this package wrote them.
    """
    if "stage" not in origin:
        raise GranvitError("the run was not started from a recipe, so nothing tells how its samples are made")
    facts = dict(origin["stage"])
    try:
        sample, loop = _made(SampleConfig, facts.pop("sample")), _made(LoopConfig, facts.pop("loop"))
        return StageRecipe(**{**facts, "sample": sample, "loop": loop})
    except (KeyError, TypeError) as error:
        raise GranvitError(f"the stage's settings are of another version: {error}") from error


def _made(kind: type, facts: Mapping[str, Any]) -> Any:
    """A dataclass from JSON, which knows lists and no tuples."""
    tuples = {field.name for field in fields(kind) if isinstance(field.default, tuple)}
    return kind(**{name: tuple(value) if name in tuples else value for name, value in facts.items()})


def reopen(origin: Mapping[str, Any], corpora: Sequence[str] = ()) -> list[tuple[Records, float]]:
    """The sources that `origin_of` took down; `corpora`, in the same order, say where the folders are now.

    Raises:
        CorpusError: a folder is no corpus.
        ValueError: a corpus is not the one that was there, or `corpora` are not as many.
    """
    facts = origin["sources"]
    if corpora and len(corpora) != len(facts):
        raise GranvitError(f"--corpus names {len(corpora)} folder(s), the run read {len(facts)}")
    folders = list(corpora) or [fact.get("path") for fact in facts]
    return [(_reopened(fact, folder), fact["weight"]) for fact, folder in zip(facts, folders, strict=True)]


def _reopened(fact: Mapping[str, Any], folder: str | None) -> Records:
    if "undrawn" in fact:
        settings = fact["undrawn"]
        return Undrawn(**{**settings, "objects": tuple(settings["objects"])})
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
