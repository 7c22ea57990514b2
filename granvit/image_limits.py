"""What decoding a picture may cost, found from the structure of its file before anything of it is decoded.

The number of pixels bounds the work for an honest file. Here is the rest: small files that name a large work, by
repeating what a decoder does for each part (`images.MAX_PIXELS` is the limit for the pixels themselves).
"""

from __future__ import annotations

import re
import struct

MAX_BYTES = 256 << 20  # encoded
# An encoder makes some 10 scans of a progressive JPEG, of which each visits all pixels; the largest picture has 16.
MAX_SCANNED_PIXELS = 16 * 89_478_485
MAX_SEGMENTS = 10_000  # of a JPEG
MAX_CHUNKS = 100_000  # of a PNG; Pillow and others write some 8 to 64 kB into each
MAX_STRIPS = 1 << 20  # of a TIFF, or tiles
MAX_TILE_PIXELS = 89_478_485  # decoded whole, however small the picture that is cut out of them
MAX_PREAMBLE = 1 << 20  # bytes in front of the first frame of a GIF, which Pillow joins again and again
MAX_HEADER = 1 << 16  # bytes of a PPM, which Pillow reads one by one
MAX_DIRECTORY = 64 << 20  # bytes that the entries of an EXIF or TIFF directory may refer to, beyond its own length
MAX_SLOW_BYTES = 8 << 20  # of what Pillow decodes in Python: run lengths in BMP, PPM as text or of odd depths
MAX_JPEG2000_SAMPLES = 120_000_000  # of all components; decoding takes 12 bytes for each
MAX_PRECINCTS = 100_000  # of a JPEG 2000, in all components; usually there are some tens, or thousands in tiles
MAX_PACKETS = 5_000_000  # one for each precinct in each layer
SLOW_CODECS = ("bmp_rle", "ppm_plain", "ppm")

_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_SOS, _EOI, _APP1 = 0xDA, 0xD9, 0xE1
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_ALONE = (0x01, 0xD8)  # markers without a body
# Two numbers behind the magic, with blanks and comments between.
_PPM_SIZE = re.compile(rb"P\w+(?:(?:\s|#[^\r\n]*[\r\n])+[^\s#]+){2}")
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_STRIPS, _TILE_SIDES = (273, 324), (322, 323)


def excess(data: bytes) -> str:
    """What about an encoded picture would cost too much to decode, in words; "" where nothing does.

    Damage is not for here to judge: what cannot be followed is left to the decoder.
    """
    if len(data) > MAX_BYTES:
        return f"{len(data)} bytes, at most {MAX_BYTES} are read"
    try:
        for magic, check in _CHECKS.items():
            if data.startswith(magic):
                return check(data)
    except (struct.error, IndexError):  # cut off
        pass
    return ""


def directory_excess(tiff: bytes) -> str:
    """As `excess`, for the first directory of a TIFF, which EXIF is one of, too.

    Each of its 65,535 entries may refer to the same bytes, which are copied for each.
    """
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return ""
    big = struct.unpack_from(order + "H", tiff, 2)[0] == 43
    start = struct.unpack_from(order + ("Q" if big else "L"), tiff, 8 if big else 4)[0]
    number = struct.unpack_from(order + ("Q" if big else "H"), tiff, start)[0]
    entry = struct.Struct(order + ("HHQ" if big else "HHL"))
    first, step = start + (8 if big else 2), 20 if big else 12
    referred, tile = 0, 1
    for at in range(first, min(first + number * step, len(tiff) - step + 1), step):
        tag, kind, count = entry.unpack_from(tiff, at)
        size = count * _TYPE_BYTES.get(kind, 0)
        referred += min(size, len(tiff))
        if tag in _STRIPS and count > MAX_STRIPS:
            return f"{count} strips or tiles, the limit is {MAX_STRIPS}"
        if tag in _TILE_SIDES and count == 1 and kind in (3, 4):
            tile *= struct.unpack_from(order + ("H" if kind == 3 else "L"), tiff, at + entry.size)[0]
    if tile > MAX_TILE_PIXELS:
        return f"tiles of {tile} pixels, the limit is {MAX_TILE_PIXELS}"
    if referred > len(tiff) + MAX_DIRECTORY:
        return f"a directory that refers to {referred} bytes of {len(tiff)}"
    return ""


def _of_jpeg(data: bytes) -> str:
    at, segments, scans, pixels, exif = 2, 0, 0, 0, b""
    while (found := _MARKER.search(data, at)) and data[found.start() + 1] != _EOI:
        if not scans and found.start() - at > MAX_PREAMBLE:
            return f"{found.start() - at} bytes between segments"
        marker, body = data[found.start() + 1], found.end()
        segments += 1
        if segments > MAX_SEGMENTS:
            return f"more than {MAX_SEGMENTS} segments"
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, body + 3)
            pixels = max(pixels, height * width)
        scans += marker == _SOS
        if scans * pixels > MAX_SCANNED_PIXELS:
            return f"more than {scans - 1} scans of {pixels} pixels"
        length = 0 if marker in _ALONE else max(2, struct.unpack_from(">H", data, body)[0])
        if marker == _APP1 and data.startswith(b"Exif\0\0", body + 2):
            exif += data[body + 8 : body + length]  # what does not fit into one segment is continued in the next
        at = body + length
    if not found and not scans and len(data) - at > MAX_PREAMBLE:
        return f"{len(data) - at} bytes without a segment"
    return directory_excess(exif) if exif else ""


def _of_png(data: bytes) -> str:
    at, chunks = 8, 0
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">L4s", data, at)
        chunks += 1
        if chunks > MAX_CHUNKS:
            return f"more than {MAX_CHUNKS} chunks"
        if kind == b"eXIf" and (wrong := directory_excess(data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0"))):
            return wrong
        at += 12 + length
    return ""


def _of_gif(data: bytes) -> str:
    flags = data[10]
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while at < min(len(data), MAX_PREAMBLE) and data[at] not in b",;":
        if data[at] != 0x21:  # no block begins here: Pillow goes on by one byte
            at += 1
            continue
        at += 2
        while data[at]:
            at += 1 + data[at]
        at += 1
    return f"more than {MAX_PREAMBLE} bytes in front of the first frame" if at >= MAX_PREAMBLE else ""


def _of_ppm(data: bytes) -> str:
    if len(data) > MAX_HEADER and not _PPM_SIZE.match(data, 0, MAX_HEADER):
        return f"no size within the first {MAX_HEADER} bytes"
    return ""


def _of_jpeg2000(data: bytes) -> str:
    """Of the first code stream, which is the picture: its size, tiles and components, then its levels and precincts."""
    at = data.find(b"\xff\x4f\xff\x51")
    if at < 0:
        return ""
    length, _, x1, y1, x0, y0, tile_width, tile_height, _, _, parts = struct.unpack_from(">HHLLLLLLLLH", data, at + 4)
    width, height = x1 - x0, y1 - y0
    if width * height * parts > MAX_JPEG2000_SAMPLES:
        return f"{parts} components of {width}x{height}, the limit is {MAX_JPEG2000_SAMPLES} samples"
    if not tile_width or not tile_height:
        return ""
    tiles = -(-width // tile_width) * -(-height // tile_height)
    coding = data.find(b"\xff\x52", at + 4 + length)
    if coding < 0:
        return ""
    style, _, layers, _, levels = struct.unpack_from(">BBHBB", data, coding + 4)
    precincts = 0
    for level in range(levels + 1):
        size = data[coding + 14 + level] if style & 1 else 0xFF  # the logarithms of width and height
        across, down = (
            -(-side >> (levels - level)) >> bits for side, bits in ((width, size & 15), (height, size >> 4))
        )
        precincts += max(tiles, (across + 1) * (down + 1))
    if precincts * parts > MAX_PRECINCTS or precincts * parts * layers > MAX_PACKETS:
        return f"{precincts} precincts in {layers} layers of {parts} components"
    return ""


def _of_webp(data: bytes) -> str:
    at, chunks = 12, 0
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sL", data, at)
        chunks += 1
        if chunks > MAX_CHUNKS:
            return f"more than {MAX_CHUNKS} chunks"
        if kind == b"EXIF" and (wrong := directory_excess(data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0"))):
            return wrong
        at += 8 + length + length % 2
    return ""


_CHECKS = {
    b"\xff\xd8": _of_jpeg,
    b"\x89PNG": _of_png,
    b"GIF8": _of_gif,
    b"P": _of_ppm,
    b"II": directory_excess,
    b"MM": directory_excess,
    b"RIFF": _of_webp,
    b"\0\0\0\x0cjP": _of_jpeg2000,
    b"\xff\x4f\xff\x51": _of_jpeg2000,
}
