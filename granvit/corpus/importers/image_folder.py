"""A folder of pictures without annotations, the start of an annotated corpus.

Which files of a folder are pictures is recognised by their first bytes, and by their names where these say nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from granvit.corpus.check import UNKNOWN_SIZE, LeftOut, Refused, Rejection
from granvit.corpus.importers.base import Found, as_split, importer, read_image
from granvit.corpus.layout import CorpusError
from granvit.errors import GranvitError
from granvit.files import open_regular
from granvit.links import LinkOutsideError, walk
from granvit.regions import RegionImage

# picture: to be read. unsupported: one that is not read here. macos: what macOS adds beside files. other: no picture.
FileKind = Literal["picture", "unsupported", "macos", "other"]

# What is counted and not read, in the words of the summary.
LEFT_OUT: dict[FileKind, str] = {"macos": "files that macOS adds", "other": "files that are no pictures"}

HEAD_BYTES = 64

SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".jpe", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff",
    ".avif", ".jp2", ".j2k", ".jpx", ".jpf", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
# Raw photographs are TIFFs by their first bytes, of which a decoder of TIFF finds the preview.
RAW_SUFFIXES = (
    ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".raf", ".orf", ".rw2", ".pef", ".srw",
    ".3fr", ".iiq", ".erf", ".kdc", ".dcr", ".mrw", ".x3f",
)  # fmt: skip
UNSUPPORTED_SUFFIXES = (
    ".heic", ".heif", ".hif", ".jxl", ".pdf", ".ps", ".eps", ".ai", ".psd", ".psb", ".svg", ".svgz", ".djvu", ".dcm",
    ".ico", ".icns", ".tga", ".dds", ".exr", ".hdr", ".xcf", ".emf", ".wmf", ".pcx", ".qoi", ".jxr", ".wdp",
)  # fmt: skip

_PICTURES = (
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+",
    b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51",
)  # fmt: skip
_UNSUPPORTED = (
    b"%PDF-", b"%!PS", b"8BPS", b"\xff\x0a", b"\0\0\0\x0cJXL ", b"gimp xcf", b"AT&TFORM", b"\x76\x2f\x31\x01", b"qoif",
    b"<svg", b"DDS ",
)  # fmt: skip
_BRANDS = {b"avif": "picture", b"avis": "picture"} | dict.fromkeys(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"crx "), "unsupported"
)
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)
_APPLE_DOUBLE = b"\0\x05\x16\x07"


def kind_of(name: str, head: bytes) -> FileKind:
    """What a file is, by its name and its first `HEAD_BYTES` bytes."""
    path = PurePosixPath(name)
    suffix = path.suffix.lower()
    beside = path.name.startswith("._") and head.startswith(_APPLE_DOUBLE)
    if beside or "__MACOSX" in path.parts or path.name == ".DS_Store":
        return "macos"
    if suffix in RAW_SUFFIXES or head.startswith(_UNSUPPORTED) or _brand(head) == "unsupported":
        return "unsupported"
    if _is_picture(head) or suffix in SUFFIXES:
        return "picture"
    return "unsupported" if suffix in UNSUPPORTED_SUFFIXES else "other"


def listing(root: Path) -> Iterator[tuple[str, FileKind]]:
    """Paths of all files below `root`, relative to it and with slashes, in order, each with what it is.

    What cannot be opened although it should be a picture is given as one: reading it tells why.
    """
    for name in walk(root):
        try:
            with open_regular(root / name) as file:
                head = file.read(HEAD_BYTES)
        except LinkOutsideError:
            kind = kind_of(name, b"")
            yield name, "picture" if kind == "other" and "." not in PurePosixPath(name).name else kind
            continue
        except (GranvitError, OSError):
            head = b""
        yield name, kind_of(name, head)


def chosen(root: Path, suffixes: tuple[str, ...], others: str = "") -> tuple[list[Path], list[LeftOut]]:
    """The files right in `root` with one of the endings, in order of their names, and what was passed over.

    That is what macOS adds beside them, and, where `others` says in the summary's words what they are, files of other
    endings.
    """
    found = []
    left_out = []
    for file in sorted(path for path in root.iterdir() if not path.is_dir()):
        if _is_of_macos(file):
            left_out.append(LeftOut(LEFT_OUT["macos"], 1, file.name))
        elif file.name.lower().endswith(suffixes):
            found.append(file)
        elif others:
            left_out.append(LeftOut(others, 1, file.name))
    return found, left_out


def _is_of_macos(file: Path) -> bool:
    if not file.name.startswith("._"):
        return file.name == ".DS_Store"
    try:
        with open_regular(file) as opened:
            return kind_of(file.name, opened.read(HEAD_BYTES)) == "macos"
    except (GranvitError, OSError):
        return False


def pictures(root: Path) -> Iterator[str]:
    """The paths of `listing` that are pictures."""
    return (name for name, kind in listing(root) if kind == "picture")


def unsupported(name: str) -> Refused:
    """Why a picture of another format is refused."""
    form = PurePosixPath(name).suffix or "this format"
    return Refused("unsupported-format", f"{form} is not read: convert it to PNG or JPEG")


def _is_picture(head: bytes) -> bool:
    if head.startswith(_PICTURES) or _brand(head) == "picture":
        return True
    if head.startswith(b"BM"):
        return int.from_bytes(head[14:18], "little") in _BMP_HEADERS
    if head[:1] == b"P" and head[1:2] in b"123456":
        return head[2:3].isspace()
    return head.startswith(b"RIFF") and head[8:12] == b"WEBP"


def _brand(head: bytes) -> str:
    """What a file of the family of ISO media is, by the kinds that it states, the major one first; "" for others."""
    if head[4:8] != b"ftyp":
        return ""
    stated = [head[8:12], *(head[at : at + 4] for at in range(16, min(len(head), int.from_bytes(head[:4])) - 3, 4))]
    return next((_BRANDS[brand] for brand in stated if brand in _BRANDS), "")


@importer("image_folder", without_regions=True)
def read(src: Path, *, source: str = "", licence: str = "", split: str = "") -> Iterator[Found]:
    """`src` is a folder; all pictures below it are taken, known by their contents, in the order of their paths.

    There are no regions, hence no boxes. A picture in a format that is not read here, such as HEIC, PDF or a camera's
    raw one, is refused as "unsupported-format"; files that are no pictures are counted. Terms: yours to state with
    `licence`.

    Raises:
        CorpusError: `src` is not a folder.
    """
    if not src.is_dir():
        raise CorpusError(f"{src} is not a folder")
    source = source or src.resolve().name
    for uri, kind in listing(src):
        if kind in LEFT_OUT:
            yield LeftOut(LEFT_OUT[kind], 1, uri)
            continue
        try:
            if kind == "unsupported":
                raise unsupported(uri)
            yield RegionImage(
                id=f"{source}/{uri}",
                image=read_image(src, uri),
                width=UNKNOWN_SIZE[0],
                height=UNKNOWN_SIZE[1],
                regions=[],
                uri=uri,
                source=source,
                licence=licence,
                split=as_split(split),
            )
        except Refused as refused:
            yield Rejection(refused.reason, f"{source}/{uri}", uri, None, refused.detail)
