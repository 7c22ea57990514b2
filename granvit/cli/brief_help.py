"""A recipe's help in two lengths: the settings that people change first, and with `--help-all` every one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, fields, is_dataclass, make_dataclass
from functools import partial
from inspect import cleandoc
from typing import Annotated, Any, get_type_hints

import tyro

ALL = "--help-all"
_NOTE = f"Shown are the settings that are changed most often; {ALL} shows every one."


def shortened(command: Any, args: Sequence[str]) -> tuple[Any, list[str]]:
    """The command and its arguments as tyro is to see them: where help is asked for, without what is seldom changed."""
    if ALL in args:
        return command, ["--help"]
    if not {"-h", "--help"} & set(args):
        return command, list(args)
    twin = _twin(command, {f.name: f.default_factory() for f in fields(command) if callable(f.default_factory)})
    twin.__doc__ = f"{cleandoc(command.__doc__ or '')}\n\n{_NOTE}"
    return twin, list(args)


def _twin(kind: type[Any], values: dict[str, Any]) -> Any:
    """A class with the same settings, of which those marked as seldom changed don't show. `values` are its defaults."""
    hints = get_type_hints(kind, include_extras=True)
    settings = []
    for setting in fields(kind):
        hint, value = hints[setting.name], values.get(setting.name, setting.default)
        if setting.metadata.get("seldom"):
            hint = Annotated[hint, tyro.conf.Suppress]
        settings.append((setting.name, hint, field(default_factory=partial(_of_twins, value))))
    frozen = kind.__dataclass_params__.frozen
    twin = make_dataclass(kind.__name__, settings, bases=(kind,), frozen=frozen)
    twin.__doc__ = kind.__doc__
    return twin


def _of_twins(value: Any) -> Any:
    if isinstance(value, list):
        return [_of_twins(one) for one in value]
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return _twin(type(value), vars(value))()
