"""Files and folders that are whole or absent: atomic writes, one writer at a time, and names that lead nowhere else."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO

from granvit.errors import BusyError, GranvitError
from granvit.links import check_link

# A JSON file of this package nests a few levels; one more for each corpus that a corpus was made of.
_MAX_NESTING = 300
_MAX_JSON_BYTES = 1 << 28
_HOLDER_BYTES = 10_000
# Seconds between two tries of a lock that is waited for.
_LOOK_AGAIN = 0.2


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_in_place(finished: Path, final: Path) -> None:
    """Rename a finished file or folder, whose files are on the disk, such that a crash leaves it whole or absent."""
    sync(finished)
    final.parent.mkdir(parents=True, exist_ok=True)
    os.replace(finished, final)
    sync(final.parent)


@contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """A file beside `path` to write; it becomes `path` when the block ends without an error, and is removed otherwise.

    The file has the mode that the umask gives, whatever wrote it (safetensors makes its files 0600). What is there and
    no file, like /dev/stdout, is written to as it is.

    Raises:
        BusyError: another process writes `path`.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        yield path
        return
    unfinished = _beside(path, "partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        try:
            yield unfinished
            unfinished.chmod(0o666 & ~_umask())
            put_in_place(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 atomically; what UTF-8 cannot hold, a lone surrogate, becomes an escape."""
    with atomic_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def staged_folder(out: Path | str, check: Callable[[Path], None] = lambda out: None) -> Iterator[Path]:
    """An empty folder beside `out` that becomes `out` when the block ends without an error; till then `out` stays.

    One process at a time. What a killed one left behind is cleared away, or put back where `out` had been moved aside
    already; so the same command, given again, begins as if nothing had happened.

    Args:
        out: the folder to make or to replace; a link is followed.
        check: called with `out` once it is held, to refuse what must not be replaced. Not called where `out` is what
            the same command had just put there when it was killed: it is made again.

    Raises:
        BusyError: another process writes `out`. GranvitError: `out` cannot be renamed, being a mount point.
    """
    out = Path(os.path.realpath(out))
    if out.is_mount():
        raise GranvitError(f"{out} is a mount point, which cannot be replaced as a whole: name a folder below it")
    with locked(out) as lock:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging, old = _beside(out, "partial"), _beside(out, "old")
        if old.exists() and not out.exists():
            os.replace(old, out)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(staging, ignore_errors=True)
        if not lock.had_made(out):
            check(out)
        staging.mkdir()
        _held[staging] = lock
        try:
            yield staging
            apply_umask(staging)
            lock.making(staging)
            if out.exists():
                os.replace(out, old)
            put_in_place(staging, out)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            del _held[staging]
            shutil.rmtree(staging, ignore_errors=True)


def refuse_non_empty(out: Path) -> None:
    """A check for `staged_folder` where nothing is ever replaced.

    Raises:
        GranvitError: `out` is a file, or holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise GranvitError(f"{out} is there already; name another folder")


def remove_folder(folder: Path) -> None:
    """Remove a folder, if it is there, such that a kill leaves no half of it under its name."""
    away = removal_name(folder)
    shutil.rmtree(away, ignore_errors=True)
    if folder.exists():
        os.replace(folder, away)
        shutil.rmtree(away, ignore_errors=True)


def removal_name(folder: Path) -> Path:
    """What a folder is called while `remove_folder` is at it."""
    return _beside(folder, "removed")


class Lock:
    """A lock that is held. Its file tells others who holds it, and a later process what a killed one was about."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        try:
            left = json.loads(os.pread(descriptor, _HOLDER_BYTES, 0))
        except (ValueError, RecursionError):
            left = None
        self._left: dict[str, Any] = left if isinstance(left, dict) else {}
        self._holder: dict[str, Any] = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "command": " ".join(sys.argv)[:200],
            "in": os.getcwd(),
        }
        self._write(self._holder)

    def _write(self, facts: dict[str, Any]) -> None:
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(facts).encode(), 0)
        os.fsync(self._descriptor)

    def making(self, folder: Path) -> None:
        """Note that `folder` is finished, and is about to be put in its place."""
        self._write({**self._holder, "made": _identity(folder)})

    def had_made(self, folder: Path) -> bool:
        """Whether `folder` is what a killed process of the same command had put there, untouched since."""
        same = all(self._left.get(name) == self._holder[name] for name in ("command", "in"))
        return same and folder.exists() and self._left.get("made") == _identity(folder)


def _identity(folder: Path) -> list[int]:
    """What a folder keeps when it is renamed, and loses when anything is put into it."""
    facts = folder.stat()
    return [facts.st_ino, facts.st_mtime_ns]


# What this process holds: places with a lock file, and the folders that are to be put there.
_held: dict[Path, Lock] = {}


@contextmanager
def locked(path: Path | str, wait: bool = False) -> Iterator[Lock]:
    """Hold a folder or file, present or not, against every other writer of this machine or shared disk.

    The lock is the kernel's on `.NAME.lock` beside it: it ends with the process, however that ends. A process that
    holds a place, or a folder around it, has it already. With `wait` another holder is waited for.

    Raises:
        BusyError: another process holds it; the message says which, since the file holds its number, host and command.
    """
    path = Path(os.path.realpath(path))
    for around in (path, *path.parents):
        if around in _held:
            yield _held[around]
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _beside(path, "lock")
    descriptor = _lock(file, path, wait)
    try:
        _held[path] = Lock(descriptor)
        yield _held[path]
    finally:
        _held.pop(path, None)
        file.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(file: Path, path: Path, wait: bool) -> int:
    while True:
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise GranvitError(
                f"{file}: {error.strerror}: {path.name} is made beside its place, so in {path.parent}"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The one that held it may have removed the file between our opening and locking it.
            if os.path.samestat(os.stat(file), os.fstat(descriptor)):
                return descriptor
        except FileNotFoundError:
            pass
        except BlockingIOError:
            if not wait:
                holder = _holder(os.pread(descriptor, _HOLDER_BYTES, 0))
                os.close(descriptor)
                raise BusyError(f"{path}: another process is writing here ({holder})") from None
            time.sleep(_LOOK_AGAIN)
        except OSError as error:
            os.close(descriptor)
            raise GranvitError(f"{file}: cannot be locked: {error.strerror}") from error
        os.close(descriptor)


def _holder(content: bytes) -> str:
    try:
        holder = json.loads(content)
        return f"process {holder['pid']} on {holder['host']}: {holder['command']}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return "it has just begun"


def apply_umask(folder: Path) -> None:
    """Give every file below a folder the mode that the umask allows: who may read one may read all."""
    mode = 0o666 & ~_umask()
    for root, _, names in os.walk(folder):
        for name in names:
            os.chmod(os.path.join(root, name), mode)


def _umask() -> int:
    mask = os.umask(0o077)  # it can only be read by setting it; a file that another thread makes meanwhile is private
    os.umask(mask)
    return mask


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{ending}")


def is_inside(name: str) -> bool:
    """Whether a relative name, stated in untrusted data, stays below the folder that it is taken from."""
    path = PurePosixPath(name)
    absolute = path.is_absolute() or bool(PureWindowsPath(name).drive)
    return bool(name) and not absolute and ".." not in path.parts and "\\" not in name and "\0" not in name


def child(folder: Path, name: str) -> Path:
    """`folder / name` for a name that a file states.

    Raises:
        GranvitError: the name leads out of the folder.
    """
    if not is_inside(name):
        raise GranvitError(f"{name!r} is not a path below {folder}")
    return folder / name


def open_regular(path: Path) -> BinaryIO:
    """A regular file opened for reading; a pipe or device, which could block for ever, is refused.

    Raises:
        GranvitError: it is no regular file, or a link leads to it that must not be followed (see `links.within`).
        OSError: it cannot be opened.
    """
    check_link(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):  # named here: `open` knows only the descriptor's number
        os.close(descriptor)
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    file = open(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise GranvitError(f"{path}: not a regular file")
    return file


def sha256(file: Path) -> str:
    """The checksum of a file, as hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_regular(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes, see `open_regular`.

    Raises:
        GranvitError: as `open_regular`, or it is larger. OSError: it cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise GranvitError(f"{path}: {size:,} bytes, at most {limit:,} are read")
        return file.read()


def read_json(path: Path, error: type[GranvitError] = GranvitError) -> Any:
    """The value of a JSON file that this package wrote, read as untrusted: it may have been edited.

    Raises:
        `error`: it is no regular file, no UTF-8, no JSON, nests too deep, or states a number that is none.
        OSError: it cannot be read.
    """
    try:
        value = json.loads(read_regular(path, _MAX_JSON_BYTES), parse_constant=_no_number)
        check_nesting(value, _MAX_NESTING)
    except (ValueError, RecursionError) as wrong:  # of which are bytes that are no UTF-8, and numbers too long to read
        if isinstance(wrong, GranvitError):
            raise error(str(wrong)) from wrong
        reason = "it nests too deep" if isinstance(wrong, RecursionError) else str(wrong)
        raise error(f"{path}: damaged: {reason}") from wrong
    return value


def check_replaceable(option: str, path: Path, field: str) -> None:
    """Refuses to write a JSON file in place of any that the same command did not write, which has `field`.

    Raises:
        GranvitError: the name has another ending, or what is there is something else; `option` begins the message.
    """
    if path.suffix.lower() != ".json":
        raise GranvitError(f"{option} {path}: the name must end in .json")
    if not path.exists():
        return
    try:
        content = read_json(path)
    except GranvitError:
        content = None
    if not isinstance(content, dict) or field not in content:
        raise GranvitError(f"{option} {path}: what is there is something else; name another file")


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def check_nesting(value: Any, most: int) -> None:
    """Raises RecursionError where lists and objects are nested in more than about `most` levels."""
    level = [value]
    for _ in range(most):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise RecursionError


_NAMES = {dict: "an object", list: "a list", str: "a text", int: "a whole number"}


def checked_field(
    row: Any, name: str, kind: type, file: Path, inside: str = "", error: type[GranvitError] = GranvitError
) -> Any:
    """The member `name` of an object that was read from a file: of the type `kind`, and not negative where a number.

    Args:
        inside: what leads to the object within the file, like "shards[3].".

    Raises:
        `error`: `row` is no object, lacks the member, or has another type of it; the message names file and member.
    """
    if not isinstance(row, dict):
        raise error(f"{file}: damaged: {inside.rstrip('.') or 'its content'} is {_short(row)}, it should be an object")
    if name not in row:
        raise error(f"{file}: damaged: {inside}{name} is missing")
    value = row[name]
    if not isinstance(value, kind) or isinstance(value, bool) and kind is int:
        raise error(f"{file}: damaged: {inside}{name} is {_short(value)}, it should be {_NAMES[kind]}")
    if isinstance(value, int) and kind is int and not 0 <= value < 1 << 53:
        raise error(f"{file}: damaged: {inside}{name} is {_short(value)}, it should be a number from 0 up")
    return value


def _short(value: Any) -> str:
    shown = json.dumps(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
