"""From the bytes of an image file to an upright RGB picture, or a stated reason why not.

Files come from anywhere, so this is a boundary: whatever is wrong with one leaves as an `ImageError`, and a
picture that leaves is RGB, EXIF-upright and of a reasonable size.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from granvit import image_limits
from granvit.errors import GranvitError
from granvit.files import read_regular

# A picture as callers have it: decoded, the bytes of a file, or the file.
Picture = Image.Image | bytes | str | Path

MIN_SIDE = 8
# Pillow's own threshold for a suspected decompression bomb: where Pillow would only warn, we refuse.
MAX_PIXELS = 89_478_485
# No picture within these limits needs a larger file.
_LARGEST_FILE = 1 << 30
# Only what decodes inside Pillow: its EPS reader, for one, starts Ghostscript on the file.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")

# What every reader shows alike.
_ENDINGS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}
_PLAIN_MODES = ("RGB", "L", "P", "1")

# Tags of a TIFF.
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262

_QUARTER_TURNED = (5, 6, 7, 8)
# What makes a picture of each EXIF orientation upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(GranvitError):
    """An image that cannot be used.

    Attributes:
        reason: one of "not-an-image", "truncated", "undecodable", "too-small", "too-many-pixels", "too-costly",
            "unsupported-depth".
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        # The default would pass the joined message as `reason` when a worker process hands the error over.
        return ImageError, (self.reason, self.detail)


def upright_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels of the upright image, from the header alone where the format allows.

    A PNG may state its orientation behind the pixels, so one without it in front is read to the end.

    Raises:
        ImageError: the header cannot be read, or states a size out of bounds.
    """
    with _open(data) as image:
        width, height = image.size
        # Pillow states a TIFF's size as it will be after turning, all others as they are stored.
        turned = image.format != "TIFF" and _orientation(image) in _QUARTER_TURNED
        return (height, width) if turned else (width, height)


def decode(data: bytes) -> Image.Image:
    """The upright RGB picture; of an animation, the first frame. Transparency is laid over white.

    Raises:
        ImageError: the bytes are not a complete image of a usable size.
    """
    with _open(data) as image:
        return upright_rgb(image)


def open_picture(image: Picture) -> Image.Image:
    """An EXIF-upright RGB picture from a path, the bytes of a file, or a PIL image: the same for all three.

    Raises:
        ImageError: the file is damaged or not a picture. OSError: it cannot be read.
        GranvitError: the path leads to no regular file, or cannot be one.
    """
    if isinstance(image, Image.Image):
        return upright_rgb(image)
    if isinstance(image, bytes):
        return decode(image)
    try:
        return decode(read_regular(Path(image), _LARGEST_FILE))
    except UnicodeEncodeError:
        raise GranvitError(f"{ascii(str(image))}: no file can have this name") from None


def upright_rgb(image: Image.Image) -> Image.Image:
    """A PIL image as `decode` gives the same picture's file: upright by its EXIF, RGB, transparency over white.

    16-bit grey is scaled to 8 bits. The result may be `image` itself, where nothing is to be changed.

    Raises:
        ImageError: it is lazily opened and its file is damaged, its size is out of bounds, or its pixels have no
            defined white: floating point, or integers of more than 16 bits.
    """
    _check_size(image)
    try:
        raw = _raw_mode(image)
        image.load()
        rgb = _to_rgb(image, raw)
        # After `load`: Pillow turns a TIFF upright while loading it, and then drops the orientation.
        turn = _UPRIGHT.get(_orientation(image))
        return rgb if turn is None else rgb.transpose(turn)
    except ImageError:
        raise
    except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything
        reason = "truncated" if "truncated" in str(error).lower() else "undecodable"
        raise ImageError(reason, str(error)) from error


def thumbnail(data: bytes, side: int) -> Image.Image:
    """The upright picture in grey, squashed to side x side pixels.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size, whichever still holds `side` pixels, brightness alone: libjpeg
    then computes a few coefficients of each 8 x 8 block, and what is left of the time goes into reading the file.

    Raises:
        ImageError: as `decode`.
    """
    with _open(data) as image:
        full = image.size
        try:
            image.draft("L", (side, side))  # of the formats, only JPEG knows how to
            raw = _raw_mode(image)
            image.load()
            plain = image.mode == "L" and not image.has_transparency_data
            grey = image if plain else _to_rgb(image, raw).convert("L")
        except ImageError:
            raise
        except Exception as error:  # as in `decode`
            reason = "truncated" if "truncated" in str(error).lower() else "undecodable"
            raise ImageError(reason, str(error)) from error
        # Reduced sizes are rounded up; the true edge lies within the last pixel.
        scale = next(n for n in (1, 2, 4, 8) if -(-full[0] // n) == grey.width and -(-full[1] // n) == grey.height)
        edge = (0, 0, full[0] / scale, full[1] / scale) if scale > 1 else None
        # Of the filters the one that gives most nearly the same for each reduced size; BOX takes whole pixels only.
        small = grey.resize((side, side), Image.Resampling.BILINEAR, box=edge)
        turn = _UPRIGHT.get(_orientation(image))
        return small if turn is None else small.transpose(turn)


def as_plain_file(data: bytes) -> tuple[bytes, str]:
    """The picture as a file for programs that know nothing of EXIF, transparency or rare formats, and its ending.

    An upright, opaque JPEG, PNG or WebP passes unchanged. A turned JPEG is encoded again, at quality 95; whatever else
    there is becomes a PNG of what `decode` gives. Boxes then lie where they should in every reader.

    Raises:
        ImageError: as `decode`.
    """
    with _open(data) as image:
        form, plain = image.format, image.mode in _PLAIN_MODES and not image.has_transparency_data
        if form in _ENDINGS and plain and _orientation(image) == 1:
            return data, _ENDINGS[form]
    out = io.BytesIO()
    if form in ("JPEG", "MPO"):  # MPO: a JPEG with further ones behind it, of which the first is the picture
        decode(data).save(out, "JPEG", quality=95)
        return out.getvalue(), ".jpg"
    decode(data).save(out, "PNG")
    return out.getvalue(), ".png"


def _open(data: bytes) -> Image.Image:
    """The image with its header read and its size accepted; no pixel is decoded."""
    if excess := image_limits.excess(data):
        raise ImageError("too-costly", excess)
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("too-many-pixels", str(error)) from error
    except UnidentifiedImageError as error:  # its own message is the address of a buffer
        raise ImageError("not-an-image", "no known image format" if data else "the file is empty") from error
    except Exception as error:  # as in `decode`: damaged headers raise nearly anything
        raise ImageError("not-an-image", str(error)) from error
    _check_size(image)
    tiles = getattr(image, "tile", None)
    if tiles and tiles[0][0] in image_limits.SLOW_CODECS and len(data) > image_limits.MAX_SLOW_BYTES:
        raise ImageError("too-costly", f"{len(data)} bytes of {tiles[0][0]}, which Pillow decodes in Python")
    return image


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError("too-many-pixels", f"{width}x{height}, the limit is {MAX_PIXELS} pixels")
    if min(width, height) < MIN_SIDE:
        raise ImageError("too-small", f"{width}x{height}, a side must have {MIN_SIDE} pixels")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8. Damaged EXIF counts as none, as it does in viewers and annotation tools."""
    # ImageMagick writes EXIF into a text of a PNG, in hexadecimal, behind three lines that say so.
    raw = image.info.get("exif") or str(image.info.get("Raw profile type exif", "")).split("\n", 3)[-1]
    try:
        exif = raw if isinstance(raw, bytes) else bytes.fromhex(raw)
        if image_limits.directory_excess(exif.removeprefix(b"Exif\0\0")):
            return 1
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
    return value if value in range(1, 9) else 1


def _raw_mode(image: Image.Image) -> str:
    """How the file of a lazily opened image holds its pixels, such as "L;2"; "" where they are in memory already."""
    tiles = getattr(image, "tile", None)
    args = tiles[0][3] if tiles else ""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _to_rgb(image: Image.Image, raw: str) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.mode == "F":
        raise ImageError("unsupported-depth", "floating-point pixels have no defined white")
    if image.has_transparency_data:
        rgba = _to_rgba(image, raw)
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    # `convert` returns a copy even of RGB; the loaded original is equally good and costs nothing.
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_rgba(image: Image.Image, raw: str) -> Image.Image:
    if image.mode == "La":  # alpha is multiplied in already; Pillow goes from there to LA alone
        return image.convert("LA").convert("RGBA")
    # A PNG states its transparent colour in its own depth, Pillow has brought the pixels to 8 bits.
    transparent = image.info.get("transparency")
    if raw in ("L;2", "L;4") and isinstance(transparent, int):
        image.info["transparency"] = transparent * (85 if raw == "L;2" else 17)
    elif raw == "RGB;16B" and isinstance(transparent, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    return image.convert("RGBA")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8 bits. Pillow's own conversion cuts at 255, which turns such a scan white."""
    tags = getattr(image, "tag_v2", {})  # a TIFF's
    # Mode "I" has 32 bits. What these hold is known of files of 16 bits alone, which Pillow opens as that too.
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise ImageError("unsupported-depth", "integers of 32 bits have no defined white")
    white = 4095 if tags.get(_BITS_PER_SAMPLE) == (12,) else 65535
    values_hw = np.asarray(image).astype(np.uint32)
    grey_hw = ((values_hw * 255 + white // 2) // white).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero; of the depths, Pillow turns all others itself
        grey_hw = 255 - grey_hw
    if isinstance(transparent := image.info.get("transparency"), int):
        grey_hw[values_hw == transparent] = 255
    return Image.fromarray(grey_hw).convert("RGB")
