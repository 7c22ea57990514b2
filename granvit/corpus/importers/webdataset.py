"""WebDataset: tar shards in which the files of one sample share a name.

Untrusted tar files are read member by member into memory: nothing is ever unpacked to the disk.
"""

from __future__ import annotations

import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from lzma import LZMAError
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Self

from granvit import image_limits
from granvit.corpus.check import UNKNOWN_SIZE, LeftOut, Refused, Rejection, shown
from granvit.corpus.importers.base import (
    Found,
    as_caption,
    as_size,
    as_split,
    as_text,
    decode_text,
    importer,
    parse_object,
    read_regions,
)
from granvit.corpus.importers.conversations import conversations_of
from granvit.corpus.importers.image_folder import HEAD_BYTES, LEFT_OUT, chosen, kind_of
from granvit.corpus.importers.image_folder import SUFFIXES as PICTURES
from granvit.corpus.importers.jsonl import left_out_of, region_of, text_only
from granvit.corpus.layout import CorpusError
from granvit.errors import GranvitError
from granvit.files import open_regular
from granvit.links import LinkOutsideError
from granvit.regions import RegionImage

SUFFIXES = (".tar", ".tar.gz", ".tgz")

# What is larger would only fill the memory: a picture is not.
MAX_MEMBER_BYTES = image_limits.MAX_BYTES
# The picture and what is said of it.
MAX_SAMPLE_BYTES = MAX_MEMBER_BYTES + (16 << 20)
# Names longer than a header's field, and the like; `tarfile` reads them whole, however long they are said to be.
_MAX_EXTENSION_BYTES = 1 << 20
_EXTENSIONS = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
)  # fmt: skip
# Pictures do not compress, texts do by a tenth or a hundredth; zeros do by a thousand, and reading them takes minutes.
_MAX_UNPACKED_BYTES, _MAX_RATIO = 1 << 30, 100

# The files of a sample by their ending; in place of one that was refused, why.
Parts = dict[str, bytes | Refused]

_DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error, LZMAError, ValueError, RecursionError)


class _Header(tarfile.TarInfo):
    """A member's header that states no more than it can be."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type in _EXTENSIONS and header.size > _MAX_EXTENSION_BYTES:
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header


def members(
    file: Path, wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, bytes | Refused] | LeftOut]:
    """Names and contents of the regular files in a tar, in its order; folders are passed over.

    In place of a content stands why there is none: "unsafe-member" for a name that leads out of the archive, a link
    or a device, "too-large", and, as the last one, "damaged-tar", "too-costly" or "link-outside" where no more can be
    read. A file that is not `wanted` has no content. What macOS and pax add beside files is counted.
    """
    try:
        with _opened(file, "r:*") as tar:
            for member in _headers(tar, file):
                content = b""
                if refused := _refusal(member):
                    yield member.name, refused
                    continue
                if wanted(member.name) or _is_beside(member.name):
                    content = _content(tar, member)
                if what := _added(member.name, content):
                    yield LeftOut(what, 1, f"{file.name}:{member.name}")
                else:
                    yield member.name, content
    except _DAMAGE as error:
        yield "", Refused("damaged-tar", f"{file.name}: {' '.join(str(error).split())}")
    except Refused as refused:
        yield "", refused


def samples(shard: Path, wanted: Callable[[str], bool] = lambda ending: True) -> Iterator[tuple[str, Parts] | LeftOut]:
    """The samples of a WebDataset shard in order: members that follow each other and share a path up to the first dot.

    Files whose ending, without its dot, is not `wanted` have no content. Damage to the shard belongs to the last
    sample, of which files may be missing. A sample whose files are not together in the shard, so that what belongs to
    which cannot be decided, has a refusal "not-grouped" under the ending "", for each of its parts.
    """
    scattered = _scattered(shard)
    current, parts, size = "", Parts(), 0
    for item in members(shard, lambda name: wanted(_split(name)[1])):
        if isinstance(item, LeftOut):
            yield item
            continue
        name, content = item
        if not name:
            parts[""] = content
            break
        key, ending = _split(name)
        if key != current or ending in parts:
            if parts:
                yield current, parts
            current, parts, size = key, Parts(), 0
            if key in scattered:
                parts[""] = Refused("not-grouped", f"files of {key!r} are in several places of {shard.name}")
        size += len(content) if isinstance(content, bytes) else 0
        if size > MAX_SAMPLE_BYTES:
            parts.update({ending: b"" for ending, content in parts.items() if isinstance(content, bytes)})
            content = Refused("too-large", f"the sample has more than {MAX_SAMPLE_BYTES} bytes")
        parts[ending] = content
    if parts:
        yield current, parts


def _split(name: str) -> tuple[str, str]:
    """The key of the sample that a file belongs to, and the file's ending without its first dot."""
    folder, _, file = name.rpartition("/")
    stem, _, ending = file.partition(".")
    return f"{folder}/{stem}" if folder else stem, ending.lower()


def _scattered(shard: Path) -> set[str]:
    """The keys whose files are in several places of a shard. Only names are read, and damage is reported later."""
    runs: Counter[str] = Counter()
    current, endings = "", set[str]()
    try:
        with _opened(shard, "r:*") as tar:
            for member in _headers(tar, shard):
                if _is_beside(member.name) or _is_of_pax(member.name) or _refusal(member):
                    continue
                key, ending = _split(member.name)
                if key != current or ending in endings:
                    runs[key] += 1
                    current, endings = key, set()
                endings.add(ending)
    except (*_DAMAGE, Refused):
        pass
    return {key for key, count in runs.items() if count > 1}


def unless_refused(content: bytes | Refused) -> bytes:
    """The content, where there is one; where not, why is raised."""
    if isinstance(content, Refused):
        raise content
    return content


def places(file: Path) -> Iterator[tuple[str, tuple[int, int] | Refused]]:
    """Names of the regular files in an uncompressed tar, each with where it begins and its length in bytes.

    As `members` otherwise, but no content is read, and what macOS and pax add is passed over.
    """
    try:
        with _opened(file, "r:") as tar:
            for member in _headers(tar, file):
                if refused := _refusal(member):
                    yield member.name, refused
                    continue
                head = b""
                if _is_beside(member.name) and (stream := tar.extractfile(member)):
                    head = stream.read(HEAD_BYTES)
                if not _added(member.name, head):
                    yield member.name, (member.offset_data, member.size)
    except _DAMAGE as error:
        yield "", Refused("damaged-tar", f"{file.name}: {' '.join(str(error).split())}")
    except Refused as refused:
        yield "", refused


@contextmanager
def _opened(file: Path, mode: str) -> Iterator[tarfile.TarFile]:
    try:
        stream = open_regular(file)
    except LinkOutsideError as error:
        raise Refused("link-outside", str(error)) from error
    except GranvitError as error:
        raise Refused("damaged-tar", str(error)) from error
    with stream, tarfile.open(fileobj=stream, mode=mode, tarinfo=_Header) as tar:  # type: ignore[call-overload]
        yield tar


def _headers(tar: tarfile.TarFile, file: Path) -> Iterator[tarfile.TarInfo]:
    """The members but folders, up to the end mark.

    Raises:
        Refused: "too-costly" where a small file unpacks to too much. Also what `_DAMAGE` lists.
    """
    most = max(_MAX_UNPACKED_BYTES, _MAX_RATIO * file.stat().st_size)
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # it would keep them all
        if member.offset_data + member.size > most:
            raise Refused("too-costly", f"{file.name} unpacks to more than {most} bytes, with {member.name!r:.100}")
        if not member.isdir():
            yield member
    _require_end_mark(tar)


def _is_beside(name: str) -> bool:
    """Whether a name is one of those that macOS gives to what it adds; only the content then tells."""
    return "__MACOSX" in name or PurePosixPath(name).name.startswith(("._", ".DS_Store"))


def _is_of_pax(name: str) -> bool:
    return any(part.startswith("PaxHeader") for part in PurePosixPath(name).parts)


def _added(name: str, content: bytes) -> str:
    """What macOS or pax added this file for, in the summary's words; "" for a file of the data set."""
    if _is_of_pax(name):
        return "headers of pax that were unpacked as files"
    return LEFT_OUT["macos"] if kind_of(name, content[:HEAD_BYTES]) == "macos" else ""


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
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


_TEXTS = ("json", "txt")


@importer("webdataset", without_regions=True)
def read(src: Path, *, source: str = "", licence: str = "", split: str = "", encoding: str = "") -> Iterator[Found]:
    """`src` is a folder of shards, ``*.tar``, ``*.tar.gz`` or ``*.tgz``, or one of them.

    Members that follow each other and have the same path up to the first dot are one sample: a picture, and beside it
    ``.json`` and ``.txt``, both optional. A JSON object with "regions" is in the layout of the importer jsonl ("image"
    and the size may be absent, "id" may be there); of any other, such as img2dataset's, "caption" is read. Of both
    "conversations" and "qa" are read as there, and may come without a picture. The text file, in `encoding`, is a
    caption too, where the JSON has none. Members of other endings are counted and not read. A sample whose files are in
    several places of a shard is refused as "not-grouped"; a key that an earlier shard has too is distinguished by its
    shard's name.

    Shards are read in memory and never unpacked. Members whose path leads out of the archive, links and devices are
    refused as "unsafe-member". A shard that is cut off gives the samples in front of the damage but the last one, which
    is refused as "damaged-tar": some of its files may be missing. A sample has at most some 270 MB, and a compressed
    shard unpacks to at most a hundred times its size.

    Boxes: x1, y1, x2, y2 in absolute pixels. Terms: the data set's own; state them with `licence`.

    Raises:
        CorpusError: there are no shards.
    """
    shards, others = ([src], []) if src.is_file() else chosen(src, SUFFIXES, "files that are no shards")
    if not shards:
        raise CorpusError(f"{src} holds no shards: {', '.join(f'*{suffix}' for suffix in SUFFIXES)}")
    yield from others
    name = src.resolve().name
    seen: set[str] = set()
    for shard in shards:
        keys = set[str]()
        for item in samples(shard, lambda ending: ending in _TEXTS or f".{ending}" in PICTURES):
            if isinstance(item, LeftOut):
                yield item
                continue
            key, parts = item
            keys.add(key)
            unique = f"{shard.name.partition('.')[0]}/{key}" if key in seen else key
            uri = f"{shard.name}:{key}"
            try:
                files = {ending: unless_refused(content) for ending, content in parts.items()}
                row = parse_object(files["json"]) if "json" in files else {}
                yield _record(uri, unique, files, row, source, source or name, licence, split, encoding)
                if "regions" in row:
                    yield from left_out_of(row, uri)
            except Refused as refused:
                regions, said = _parts_in(parts)
                yield Rejection(refused.reason, "", uri, None, refused.detail, regions, conversations=said)
            pictures = [ending for ending in parts if f".{ending}" in PICTURES]
            yield LeftOut("further pictures of a sample", max(0, len(pictures) - 1), uri)
            unread = [ending for ending in parts if ending and ending not in _TEXTS and f".{ending}" not in PICTURES]
            yield from (LeftOut(f"members .{ending}", 1, uri) for ending in unread)
        seen |= keys


def _record(
    uri: str,
    key: str,
    files: dict[str, bytes],
    row: dict[str, Any],
    source: str,
    default: str,
    licence: str,
    split: str,
    encoding: str,
) -> RegionImage:
    pictures = [ending for ending in files if f".{ending}" in PICTURES]
    if not pictures and "json" not in files:
        raise Refused("missing-image", f"the sample has only {', '.join(sorted(files))}")
    ours = "regions" in row
    said = conversations_of(row)
    if not pictures:
        if not said:
            raise Refused("missing-image", f"the sample has only {', '.join(sorted(files))}")
        origin = source or as_text(row.get("source")) or default
        return replace(text_only(row, said, key, origin, licence), split=as_split(split or row.get("split")))
    if ours and not isinstance(row["regions"], list):
        raise Refused("bad-field", f"regions should be a list, got {shown(row['regions'])}")
    origin = source or (as_text(row.get("source")) if ours else "") or default
    width, height = as_size(row.get("width"), row.get("height")) if ours else UNKNOWN_SIZE
    return RegionImage(
        id=(as_text(row.get("id")) if ours else "") or f"{origin}/{key}",
        image=files[pictures[0]],
        width=width,
        height=height,
        regions=read_regions(row["regions"], region_of) if ours else [],
        uri=uri,
        source=origin,
        licence=licence or as_text(row.get("licence")),
        caption=as_caption(row.get("caption")) or _text(files.get("txt", b""), encoding) or None,
        split=as_split(split or row.get("split")),
        conversations=said,
    )


def _parts_in(parts: Parts) -> tuple[int, int]:
    """How many regions and conversations a sample states that is refused."""
    try:
        row = parse_object(unless_refused(parts.get("json", b"")))
    except Refused as refused:
        return refused.regions, 0
    regions = row.get("regions")
    return len(regions) if isinstance(regions, list) else 0, len(conversations_of(row))


def _text(data: bytes, encoding: str) -> str:
    try:
        return decode_text(data, encoding).strip()
    except UnicodeError as error:
        raise Refused("bad-encoding", f"the .txt is not {encoding or 'UTF-8'}: {error!s:.100}") from error
