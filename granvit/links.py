"""Which files below an untrusted folder are read: a link in it leads no further, unless links are followed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from granvit.errors import GranvitError

_Item = TypeVar("_Item")

_PLACES: ContextVar[tuple[str, ...]] = ContextVar("places", default=())


class LinkOutsideError(GranvitError):
    """A link leads out of the place that the user named."""


@contextmanager
def within(*places: Path, follow_links: bool = False) -> Iterator[None]:
    """Here, `check_link` refuses what a link leads to outside of these folders, or of the folders of these files.

    What lies beside a place, where some layouts have their pictures, is no link's end: such a file has to be in the
    folder that it shares with the place. With `follow_links`, and outside of any `within`, every link is followed.
    """
    with _set(() if follow_links else _named(places)):
        yield


def read_within(items: Iterable[_Item], *places: Path, follow_links: bool = False) -> Iterator[_Item]:
    """`items`, such as a generator that reads files, each of them made `within` these places; who takes them is not."""
    named, source = () if follow_links else _named(places), iter(items)
    while True:
        with _set(named):
            try:
                item = next(source)
            except StopIteration:
                return
        yield item


@contextmanager
def _set(named: tuple[str, ...]) -> Iterator[None]:
    token = _PLACES.set(named)
    try:
        yield
    finally:
        _PLACES.reset(token)


def _named(places: Iterable[Path]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(path for place in places for path in _both(place)))


def _both(place: Path) -> tuple[str, str]:
    """A place as it is named, and what it is where it is itself a link: that one has been named, so it is followed."""
    folder = os.path.abspath(place if place.is_dir() else place.parent)
    real = os.path.realpath(place)
    return folder, real if place.is_dir() else os.path.dirname(real)


def check_link(path: Path) -> None:
    """See `within`.

    Raises:
        LinkOutsideError: the path leads elsewhere.
    """
    places = _PLACES.get()
    if not places:
        return
    file = os.path.abspath(path)
    # Of a folder's many files that are no links, the folder alone has to be resolved, and once.
    if os.path.islink(file) or not _stays(os.path.dirname(file), places):
        _check(file, places)


@lru_cache(maxsize=1024)
def _stays(folder: str, places: tuple[str, ...]) -> bool:
    try:
        _check(folder, places)
    except LinkOutsideError:
        return False
    return True


def _check(path: str, places: tuple[str, ...]) -> None:
    file, real = path, os.path.realpath(path)
    shared = max((os.path.commonpath([place, file]) for place in places), key=len)
    allowed = (os.path.realpath(shared), *(os.path.realpath(place) for place in places))
    if not any(_is_below(real, folder) for folder in allowed):
        raise LinkOutsideError(f"{path} is a link to {real}, outside of {shared}: --follow-links follows it")


def walk(root: Path) -> Iterator[str]:
    """All that is in a folder and its subfolders, folders apart: relative to it, with slashes, in order of the names.

    A link to a folder is followed where `check_link` allows; where not, it is given itself, as if it were a file, and
    refused when it is read. One in a circle, or to a folder that another link led to already, is passed over: what it
    leads to has been given.
    """
    return _walk(os.fspath(root), "", linked=False, seen=set())


def _walk(folder: str, relative: str, linked: bool, seen: set[str]) -> Iterator[str]:
    real = os.path.realpath(folder)
    if linked:
        seen.add(real)
    with os.scandir(folder) as listed:
        entries = sorted(listed, key=lambda entry: entry.name)
    folders = []
    for entry in entries:
        name = relative + entry.name
        if not entry.is_dir():
            yield name
        elif not entry.is_symlink():
            folders.append((entry.path, name, linked))
        elif not _allowed(entry.path):
            yield name
        else:
            target = os.path.realpath(entry.path)
            if target not in seen and not _is_below(real, target):
                folders.append((entry.path, name, True))
    for path, name, by_link in folders:
        if not (by_link and os.path.realpath(path) in seen):
            yield from _walk(path, f"{name}/", by_link, seen)


def _allowed(path: str) -> bool:
    try:
        check_link(Path(path))
    except LinkOutsideError:
        return False
    return True


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
