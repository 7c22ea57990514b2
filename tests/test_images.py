"""Every kind of file that has hurt someone, built here: it decodes to the right pixels or names its reason."""

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

from granvit import images
from granvit.images import ImageError, decode, upright_size

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encode(image: Image.Image, fmt: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def corners() -> Image.Image:
    """60x40, one colour per quadrant, so that any turn or flip shows."""
    image = Image.new("RGB", (60, 40))
    for box, colour in {(0, 0): RED, (30, 0): GREEN, (0, 20): BLUE, (30, 20): WHITE}.items():
        image.paste(colour, (*box, box[0] + 30, box[1] + 20))
    return image


def quadrants(image: Image.Image) -> list[tuple[int, ...]]:
    w, h = image.size
    points = [(w // 4, h // 4), (3 * w // 4, h // 4), (w // 4, 3 * h // 4), (3 * w // 4, 3 * h // 4)]
    return [tuple(int(round(v / 255) * 255) for v in image.getpixel(p)) for p in points]


def reason(data: bytes) -> str:
    with pytest.raises(ImageError) as error:
        decode(data)
    return error.value.reason


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000"])
def test_usual_formats_decode(fmt):
    image = decode(encode(corners(), fmt))
    assert (image.mode, image.size) == ("RGB", (60, 40))
    assert quadrants(image) == [RED, GREEN, BLUE, WHITE]
    assert upright_size(encode(corners(), fmt)) == (60, 40)


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_comes_out_upright(fmt, orientation):
    # How the camera stores the upright scene so that `orientation` restores it.
    stored = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(corners().transpose(stored) if stored is not None else corners(), fmt, exif=exif)
    assert quadrants(decode(data)) == [RED, GREEN, BLUE, WHITE]
    assert decode(data).size == upright_size(data) == (60, 40)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"MM\x00*\x00\x00\xff\xff garbage", b"garbage", b""])
@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_is_no_orientation(fmt, exif):
    data = encode(corners(), fmt, exif=b"Exif\x00\x00" + exif)
    assert decode(data).size == upright_size(data) == (60, 40)


def test_cmyk_keeps_its_colours():
    data = encode(corners().convert("CMYK"), "JPEG")
    assert quadrants(decode(data)) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("fmt", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(fmt):
    ramp_hw = np.tile(np.linspace(0, 65535, 32).astype(np.uint16), (16, 1))
    got_hw = np.asarray(decode(encode(Image.fromarray(ramp_hw), fmt)))[..., 0]
    assert np.abs(got_hw - ramp_hw / 257).max() <= 0.5


def test_more_than_16_bits_is_refused():
    assert reason(encode(Image.fromarray(np.full((16, 16), 70_000, np.int32)), "TIFF")) == "unsupported-depth"
    assert reason(encode(Image.fromarray(np.full((16, 16), 0.5, np.float32)), "TIFF")) == "unsupported-depth"


def test_palette_without_transparency():
    assert quadrants(decode(encode(corners().quantize(4)))) == [RED, GREEN, BLUE, WHITE]


def test_transparency_is_laid_over_white():
    palette = corners().quantize(4)
    red = palette.getpixel((1, 1))
    assert quadrants(decode(encode(palette, transparency=red))) == [WHITE, GREEN, BLUE, WHITE]
    half = Image.new("RGBA", (16, 16), (255, 0, 0, 128))
    assert decode(encode(half)).getpixel((8, 8)) == (255, 127, 127)
    clear_grey = Image.new("LA", (16, 16), (0, 0))
    assert decode(encode(clear_grey)).getpixel((8, 8)) == WHITE


@pytest.mark.parametrize("fmt", ["GIF", "PNG", "WEBP"])
def test_animation_gives_its_first_frame(fmt):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN)]
    data = encode(frames[0], fmt, save_all=True, append_images=frames[1:], duration=50)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert quadrants(decode(data)) == [RED] * 4


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
def test_truncated_file(fmt):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encode(noise, fmt)
    assert reason(data[: len(data) // 2]) in {"truncated", "undecodable", "not-an-image"}
    assert reason(data[: len(data) // 2]) == "truncated" or fmt == "WEBP"


def test_not_an_image():
    assert reason(b"") == "not-an-image"
    assert reason(b"<html>404</html>") == "not-an-image"
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\nshowpage\n") == "not-an-image"


def test_too_small():
    assert reason(encode(Image.new("RGB", (1, 1)))) == "too-small"
    assert reason(encode(Image.new("RGB", (images.MIN_SIDE - 1, 100)))) == "too-small"
    assert decode(encode(Image.new("RGB", (images.MIN_SIDE, 100)))).size == (images.MIN_SIDE, 100)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and carries no pixels: decoding it would fail in another way than its size."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 15_000, 60_000])
def test_bomb_is_refused_from_its_header(side):
    assert reason(png_header(side, side)) == "too-many-pixels"
    with pytest.raises(ImageError):
        upright_size(png_header(side, side))


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_pillows_bomb_warning_becomes_our_error():
    assert reason(png_header(10_000, 10_000)) == "too-many-pixels"


def test_errors_cross_process_borders():
    error = pickle.loads(pickle.dumps(ImageError("too-small", "1x1")))
    assert (error.reason, error.detail) == ("too-small", "1x1")


@pytest.mark.parametrize(("form", "ending"), [("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".webp")])
def test_what_every_reader_shows_alike_passes_unchanged(form, ending):
    data = io.BytesIO()
    Image.new("RGB", (40, 30), (10, 200, 10)).save(data, form)
    assert images.as_plain_file(data.getvalue()) == (data.getvalue(), ending)


@pytest.mark.parametrize(
    ("mode", "form", "options"),
    [
        ("RGB", "JPEG", {"orientation": 6}), ("RGB", "PNG", {"orientation": 3}), ("RGB", "WEBP", {"orientation": 8}),
        ("RGBA", "PNG", {}), ("CMYK", "JPEG", {}), ("I;16", "PNG", {}), ("P", "GIF", {}), ("RGB", "TIFF", {}),
    ],
)  # fmt: skip
def test_anything_else_becomes_what_is_decoded(mode, form, options):
    ramp_hw = np.tile(np.arange(0, 240, 6, dtype=np.uint8), (30, 1))
    picture = Image.fromarray(ramp_hw.astype(np.uint16) * 257 if mode == "I;16" else ramp_hw)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = options.get("orientation", 1)
    data = io.BytesIO()
    (picture if mode == "I;16" else picture.convert(mode)).save(data, form, exif=exif)
    plain, ending = images.as_plain_file(data.getvalue())
    assert ending == (".jpg" if form == "JPEG" else ".png")
    with Image.open(io.BytesIO(plain)) as shown:
        assert (shown.mode, shown.getexif().get(ExifTags.Base.Orientation, 1)) == ("RGB", 1)
        expected = np.asarray(images.decode(data.getvalue()), int)
        assert np.abs(np.asarray(shown, int) - expected).max() <= (4 if form == "JPEG" else 0)


def png(depth: int, colour: int, row: bytes, *extra: bytes, side: int = 16) -> bytes:
    """A PNG of `side` equal rows, each of the samples in `row`; written here, for Pillow writes few of the depths."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress((b"\0" + row) * side))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + body + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("depth", "row", "transparent"),
    [(1, b"\x00\xff", 0), (2, bytes(2) + b"\xff\xff", 0), (2, bytes(2) + b"\x55\x55", 1),
     (4, bytes(4) + b"\x77" * 4, 7), (8, bytes(8) + b"\x40" * 8, 0x40), (16, bytes(16) + b"\x40\x10" * 8, 0x4010)],
)  # fmt: skip
def test_a_transparent_grey_is_white_at_every_depth(depth, row, transparent):
    data = png(depth, 0, row, chunk(b"tRNS", struct.pack(">H", transparent)))
    left, right = decode(data).getpixel((0, 0)), decode(data).getpixel((15, 0))
    assert (left, right) == (WHITE, WHITE) if transparent == 0 else ((0, 0, 0), WHITE)


def test_a_transparent_colour_of_16_bits_is_white():
    row = struct.pack(">HHH", 0x1020, 0x3040, 0x5060) * 8 + struct.pack(">HHH", 0xFFFF, 0, 0) * 8
    data = png(16, 2, row, chunk(b"tRNS", struct.pack(">HHH", 0x1020, 0x3040, 0x5060)))
    assert (decode(data).getpixel((0, 0)), decode(data).getpixel((15, 0))) == (WHITE, RED)


def tiff(bits: int, photometric: int, row: bytes, side: int = 16) -> bytes:
    """A little-endian TIFF of one uncompressed grey strip."""
    tags = [(256, 4, side), (257, 4, side), (258, 3, bits), (259, 3, 1), (262, 3, photometric),
            (273, 4, 8 + 2 + 9 * 12 + 4), (277, 3, 1), (278, 4, side), (279, 4, len(row) * side)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + row * side


@pytest.mark.parametrize(
    ("bits", "photometric", "row", "grey"),
    [
        (16, 1, struct.pack("<H", 0x4040) * 16, 0x40),
        (16, 0, struct.pack("<H", 0x4040) * 16, 255 - 0x40),
        (12, 1, bytes([0x40, 0x04, 0x04]) * 8, 64),  # 0x404 of 0xFFF
        (8, 0, b"\x40" * 16, 255 - 0x40),
    ],
)
def test_grey_of_a_scan_is_as_bright_as_it_was_scanned(bits, photometric, row, grey):
    assert decode(tiff(bits, photometric, row)).getpixel((3, 3)) == (grey,) * 3


def as_file_and_image(data: bytes) -> tuple[Image.Image, Image.Image]:
    with Image.open(io.BytesIO(data)) as image:
        return decode(data), images.upright_rgb(image)


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "PA", "La", "RGBa", "HSV", "RGBX"]
)
@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP", "GIF"])
def test_an_opened_image_becomes_what_its_file_does(mode, form):
    ramp_hw = np.add.outer(np.arange(24, dtype=np.uint8) * 7, np.arange(32, dtype=np.uint8) * 2)
    image = Image.fromarray(ramp_hw.astype(np.uint16) * 257) if mode == "I;16" else None
    if image is None:
        rgba = Image.merge(
            "RGBA", [Image.fromarray(band) for band in (ramp_hw, ramp_hw.T.reshape(24, 32), ramp_hw[::-1], ramp_hw)]
        )
        via = {"PA": "P", "La": "LA", "LA": "L", "RGBa": "RGBA", "RGBA": "RGBA"}.get(mode, "RGB")
        image = rgba.convert(via).convert(mode)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    try:
        data = encode(image, form, exif=exif)
    except (OSError, ValueError):
        pytest.skip(f"{form} has no {mode}")
    try:
        from_file, from_image = as_file_and_image(data)
    except ImageError as error:  # Pillow 12 cannot read the YCbCr that it writes into a TIFF
        assert (mode, form, error.reason) == ("YCbCr", "TIFF", "truncated")
        return
    assert (from_file.mode, from_file.size) == ("RGB", (32, 24) if form == "GIF" else (24, 32))
    assert from_image.tobytes() == from_file.tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "La", "RGBa"])
def test_what_is_clear_in_memory_is_white(mode):
    clear = Image.new("LA" if mode == "La" else "RGBA", (16, 16)).convert(mode) if mode != "PA" else None
    clear = clear or Image.merge("RGBA", [Image.new("L", (16, 16))] * 4).convert("P").convert("PA")
    if mode == "PA":
        clear.putalpha(0)
    assert images.upright_rgb(clear).getpixel((3, 3)) == WHITE


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_without_a_white_are_refused_in_memory_too(mode):
    with pytest.raises(ImageError, match="unsupported-depth"):
        images.upright_rgb(Image.new(mode, (16, 16), 100))


def test_an_image_in_memory_of_a_useless_size_is_refused():
    with pytest.raises(ImageError, match="too-small"):
        images.upright_rgb(Image.new("RGB", (100, 4)))


def test_a_jpeg_in_adobes_four_inks_is_not_inverted():
    inks = Image.merge("CMYK", [Image.new("L", (16, 16), ink) for ink in (0, 255, 255, 0)])  # red
    assert quadrants(decode(encode(inks, "JPEG", quality=95))) == [RED] * 4
    assert quadrants(decode(encode(inks, "TIFF"))) == [RED] * 4


def test_lab_colours_are_converted_by_their_profile():
    lab = ImageCms.profileToProfile(
        Image.new("RGB", (16, 16), BLUE),
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        outputMode="LAB",
    )
    assert quadrants(decode(encode(lab, "TIFF"))) == [BLUE] * 4


def test_the_first_picture_of_several_in_one_file_is_taken():
    for form in ("MPO", "TIFF"):
        data = encode(
            Image.new("RGB", (16, 16), RED), form, save_all=True, append_images=[Image.new("RGB", (16, 16), BLUE)]
        )
        assert quadrants(decode(data)) == [RED] * 4
