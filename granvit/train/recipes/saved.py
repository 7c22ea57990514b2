"""Recipes and stages out of the JSON that runs leave: checked, since people edit such files too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from granvit.errors import GranvitError
from granvit.files import read_json
from granvit.train.identity import ONE_STAGES, cut_of, images_in_a_step
from granvit.train.recipes.base import Recipe
from granvit.train.stages.config import KINDS, StageConfig

Config = TypeVar("Config")

# What a recipe's file says besides of the model that the run went on from.
STARTED_FROM = ("init", "init_weights")


def read_recipe(path: Path) -> Recipe:
    """The recipe of a run's recipe.json, ready to be given back to `granvit train`.

    Of how many images a step is stays as it was, whatever the number of processes.

    Raises:
        GranvitError: it cannot be read, or a setting is missing, unknown or of another type; the message names it.
    """
    recipe, processes = read_run(path)
    return replace(recipe, stages=[_on_any_number(stage, processes) for stage in recipe.stages])


def read_run(path: Path) -> tuple[Recipe, int]:
    """The recipe of a run as it was resolved, and on how many processes it ran.

    Raises:
        GranvitError: as `read_recipe`.
    """
    try:
        facts = read_json(path)
    except OSError as error:
        raise GranvitError(f"{path}: cannot be read: {error.strerror}") from error
    if not isinstance(facts, dict) or not isinstance(facts.get("stages"), list):
        raise GranvitError(f"{path}: not the recipe of a run: stages is missing")
    for name in STARTED_FROM:
        facts.pop(name, None)
    processes = facts.pop("processes", 1)
    if type(processes) is not int or processes < 1:
        raise GranvitError(f"{path}: processes is {processes!r}, expected a positive number")
    stages = [read_stage(stage, f"{path}: stages.{n}") for n, stage in enumerate(facts.pop("stages"))]
    return replace(_made(Recipe, {**facts, "stages": []}, f"{path}: "), stages=stages), processes


def _on_any_number(stage: StageConfig, processes: int) -> StageConfig:
    """The stage of a run on so many processes, with steps of as many images on any other number of them."""
    loop = stage.loop
    if not loop.accumulate:
        return stage
    images = images_in_a_step(cut_of(loop, processes))
    return replace(stage, loop=replace(loop, accumulate=0), images_per_step=images)


def read_stage(facts: Any, where: str) -> StageConfig:
    """The stage of facts that `StageConfig.facts` gave; `where` begins the message of an error.

    Raises:
        GranvitError: as `read_recipe`.
    """
    if not isinstance(facts, Mapping) or facts.get("kind") not in KINDS:
        kind = facts.get("kind") if isinstance(facts, Mapping) else None
        raise GranvitError(
            f"{where}.kind: expected one of {', '.join(KINDS)}, not {kind!r}; a stage of another package is known "
            "once that is imported (warm-ups by `import granvit.nano`)"
        )
    return _made(KINDS[facts["kind"]], {k: v for k, v in facts.items() if k != "kind"}, f"{where}.")


def _made(kind: type[Config], facts: Mapping[str, Any], where: str) -> Config:
    """A dataclass from JSON, which knows lists and no tuples."""
    assert is_dataclass(kind)
    types, known = get_type_hints(kind), {field.name: field for field in fields(kind)}
    for name in facts:
        if name not in known and name not in ONE_STAGES:
            raise GranvitError(f"{where}{name}: there is no such setting")
    for name, field in known.items():
        if name not in facts and field.default is MISSING and field.default_factory is MISSING:
            raise GranvitError(f"{where}{name} is missing")
    values = {name: _value(types[name], value, where + name) for name, value in facts.items() if name in known}
    made: Config = kind(**values)
    return made


def _value(kind: Any, value: Any, where: str) -> Any:
    """A value as the type hint `kind` wants it."""
    origin, inner = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        return _made(kind, value, f"{where}.")
    if origin in (Union, UnionType):
        if value is None and NoneType in inner:
            return None
        return _value(next(arm for arm in inner if arm is not NoneType), value, where)
    if origin is tuple and isinstance(value, list):
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        if len(kinds) == len(value):
            return tuple(_value(k, v, f"{where}.{n}") for n, (k, v) in enumerate(zip(kinds, value, strict=True)))
    elif origin is list and isinstance(value, list):
        return [_value(inner[0], v, f"{where}.{n}") for n, v in enumerate(value)]
    elif isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {_value(inner[0], k, where): _value(inner[1], v, f"{where}.{k}") for k, v in value.items()}
    elif origin is Literal:
        if value in inner:
            return value
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif kind in (int, str, bool) and type(value) is kind:
        return value
    expected = ", ".join(map(repr, inner)) if origin is Literal else getattr(kind, "__name__", str(kind))
    raise GranvitError(f"{where} is {value!r}, expected {expected}")
