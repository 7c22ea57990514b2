"""Files and folders that are whole or absent: atomic writes, one writer at a time, and names that lead nowhere else."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

from granvit.errors import BusyError, GranvitError


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """A file beside `path` to write; it becomes `path` when the block ends without an error, and is removed otherwise.

    The file has the mode that the umask gives, whatever wrote it (safetensors makes its files 0600).
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.partial")
    try:
        yield unfinished
        unfinished.chmod(0o666 & ~_umask())
        sync(unfinished)
        os.replace(unfinished, path)
        sync(path.parent)
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
        check: called with `out` once it is held, to refuse what must not be replaced.

    Raises:
        BusyError: another process writes `out`.
    """
    out = Path(os.path.realpath(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out):
        staging, old = _beside(out, "partial"), _beside(out, "old")
        if old.exists() and not out.exists():
            os.replace(old, out)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(staging, ignore_errors=True)
        check(out)
        staging.mkdir()
        try:
            yield staging
            apply_umask(staging)
            if out.exists():
                os.replace(out, old)
            os.replace(staging, out)
            sync(out.parent)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def locked(path: Path | str) -> Iterator[None]:
    """Hold a folder or file, present or not, against every other writer of this machine or shared disk.

    The lock is the kernel's on `.NAME.lock` beside it: it ends with the process, however that ends.

    Raises:
        BusyError: another process holds it; the message says which, since the file holds its number, host and command.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _beside(path, "lock")
    descriptor = _lock(file, path)
    try:
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "command": " ".join(sys.argv)[:200]}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(file: Path, path: Path) -> int:
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            told = os.pread(descriptor, 1000, 0)
            os.close(descriptor)
            raise BusyError(f"{path}: another process is writing here ({_holder(told)})") from None
        # The one that held it may have removed the file between our opening and locking it.
        with_name = os.stat(file) if file.exists() else None
        if with_name is not None and os.path.samestat(with_name, os.fstat(descriptor)):
            return descriptor
        os.close(descriptor)


def _holder(told: bytes) -> str:
    try:
        holder = json.loads(told)
        return f"process {holder['pid']} on {holder['host']}: {holder['command']}"
    except (ValueError, KeyError, TypeError):
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
    """Whether a relative name, which a file of somebody's states, stays below the folder that it is taken from."""
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


def read_regular(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes; a pipe or device, which could block for ever, is refused.

    Raises:
        GranvitError: it is no regular file, or larger. OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise GranvitError(f"{path}: not a regular file")
        if facts.st_size > limit:
            raise GranvitError(f"{path}: {facts.st_size} bytes, at most {limit} are read")
        return file.read()
