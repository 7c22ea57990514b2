"""Tar files that strangers made, read member by member into memory: nothing is ever unpacked to the disk."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from lzma import LZMAError
from pathlib import Path, PurePosixPath, PureWindowsPath

from granvit.corpus.quarantine import Refused

SUFFIXES = (".tar", ".tar.gz", ".tgz")

# An encoded image of `images.MAX_PIXELS` is far below this; what is larger would only fill the memory.
MAX_MEMBER_BYTES = 256 << 20

# The files of a sample by their ending; in place of one that was refused, why.
Parts = dict[str, bytes | Refused]

_DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error, LZMAError, ValueError)


def members(file: Path) -> Iterator[tuple[str, bytes | Refused]]:
    """Names and contents of the regular files in a tar, in its order; folders are passed over.

    In place of a content stands why there is none: "unsafe-member" for a name that leads out of the archive, a link
    or a device, "too-large", and, as the last one, "damaged-tar" where the archive ends before it should.
    """
    try:
        with tarfile.open(file, "r:*") as tar:
            for member in tar:
                if not member.isdir():
                    yield member.name, _content(tar, member)
            _require_end_mark(tar)
    except _DAMAGE as error:
        yield "", Refused("damaged-tar", f"{file.name}: {' '.join(str(error).split())}")


def samples(shard: Path) -> Iterator[tuple[str, Parts]]:
    """The samples of a WebDataset shard in order: members that follow each other and share a path up to the first dot.

    Damage to the shard belongs to the last one, of which files may be missing.
    """
    current, parts = "", Parts()
    for name, content in members(shard):
        if not name:
            parts[""] = content
            break
        folder, _, file = name.rpartition("/")
        stem, _, ending = file.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        if key != current or ending.lower() in parts:
            if parts:
                yield current, parts
            current, parts = key, Parts()
        parts[ending.lower()] = content
    if parts:
        yield current, parts


def unless_refused(content: bytes | Refused) -> bytes:
    """The content, where there is one; where not, why is raised."""
    if isinstance(content, Refused):
        raise content
    return content


def places(file: Path) -> Iterator[tuple[str, tuple[int, int] | Refused]]:
    """Names of the regular files in an uncompressed tar, each with where it begins and its length in bytes.

    As `members` otherwise, but no content is read.
    """
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                if not member.isdir():
                    yield member.name, _refusal(member) or (member.offset_data, member.size)
            _require_end_mark(tar)
    except _DAMAGE as error:
        yield "", Refused("damaged-tar", f"{file.name}: {' '.join(str(error).split())}")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | Refused:
    if refused := _refusal(member):
        return refused
    stream = tar.extractfile(member)
    assert stream is not None, "a regular file has a content"
    data = stream.read()
    if len(data) != member.size:
        raise tarfile.ReadError(f"{member.name!r} is cut off after {len(data)} of {member.size} bytes")
    return data


def _refusal(member: tarfile.TarInfo) -> Refused | None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or PureWindowsPath(member.name).drive:
        return Refused("unsafe-member", f"{member.name!r} leads out of the archive")
    # A sparse file is stored in little and read as much.
    if not member.isreg() or member.issparse():
        return Refused("unsafe-member", f"{member.name!r} is no regular file")
    if member.size > MAX_MEMBER_BYTES:
        return Refused("too-large", f"{member.name!r} has {member.size} bytes")
    return None


def _require_end_mark(tar: tarfile.TarFile) -> None:
    """A tar ends with blocks of zeros. `tarfile` also stops, and says nothing, at a damaged header."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    block = tar.fileobj.read(tarfile.BLOCKSIZE)
    if any(block):
        raise tarfile.ReadError(f"damaged after {tar.offset} bytes")
    if not block:
        raise tarfile.ReadError(f"ends after {tar.offset} bytes without its end mark")
