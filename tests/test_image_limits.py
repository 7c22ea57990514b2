"""Small files that name a large work: each is refused before it is decoded, and its honest kin is not."""

import io
import re
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from granvit import image_limits, images
from granvit.images import ImageError, decode, upright_size


def encode(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def refused_soon(data: bytes) -> str:
    """The detail of a refusal that costs next to nothing, whichever way the picture is looked at."""
    start = time.process_time()
    for look in (decode, upright_size, images.as_plain_file, lambda data: images.thumbnail(data, 8)):
        with pytest.raises(ImageError) as error:
            look(data)
        assert error.value.reason == "too-costly"
    assert time.process_time() - start < 2
    return error.value.detail


def with_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan is there again and again."""
    data = encode(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    last = [found.start() for found in re.finditer(b"\xff\xda", data)][-1]
    return data[:-2] + data[last:-2] * scans + data[-2:]


def test_a_jpeg_of_more_scans_than_its_size_allows():
    assert "scans of 9000000 pixels" in refused_soon(with_scans(3000, 1000))
    assert decode(with_scans(100, 1000)).size == (100, 100)


@pytest.mark.parametrize("side", [64, 2000])
def test_an_honest_progressive_jpeg(side):
    noise_hw3 = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    assert decode(encode(Image.fromarray(noise_hw3), "JPEG", progressive=True, quality=95)).size == (side, side)


def test_scans_of_a_preview_are_not_the_pictures():
    preview = b"Exif\0\0" + b"\xff\xda\x00\x02" * 16_000
    data = encode(Image.new("RGB", (3000, 3000)), "JPEG")
    assert decode(data[:2] + b"\xff\xe1" + struct.pack(">H", len(preview) + 2) + preview + data[2:]).size == (
        3000,
        3000,
    )


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def directory(entries: int, size: int) -> bytes:
    """A TIFF directory of which each entry refers to the same `size` bytes."""
    head = b"II*\0" + struct.pack("<LH", 8, entries)
    rows = b"".join(struct.pack("<HHLL", 40_000 + n, 7, size, 14 + 12 * entries) for n in range(entries))
    return head + rows + bytes(4) + bytes(size)


def parts() -> dict[str, bytes]:
    """A file of each kind whose parts are far too many, or refer to far too much."""
    picture = Image.new("RGB", (16, 16))
    png, jpeg, gif = (encode(picture, form) for form in ("PNG", "JPEG", "GIF"))
    exif = b"Exif\0\0" + directory(5_000, 60_000)[:65_000]
    segments = b"".join(
        b"\xff\xe1\xff\xff" + b"Exif\0\0" + directory(5_000, 400_000)[at : at + 65_527]
        for at in range(0, 450_000, 65_527)
    )
    text = b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n1\n" + directory(20_000, 100_000).hex().encode())
    assert len(exif) > 60_000
    return {
        "segments": jpeg[:2] + b"\xff\xfe\x00\x02" * 20_000 + jpeg[2:],
        "fill": jpeg[:2] + b"\xff" * (2 << 20) + jpeg[2:],
        "jpeg-exif": jpeg[:2] + segments + jpeg[2:],
        "chunks": png[:33] + chunk(b"tEXt", b"a") * 200_000 + png[33:],
        "png-exif": png[:33] + chunk(b"eXIf", directory(5_000, 60_000)) + png[33:],
        "gif-comments": gif.replace(b",", b"\x21\xfe" + (b"\xff" + b"a" * 255) * 6_000 + b"\0,", 1),
        "ppm-comment": b"P5 #" + b"a" * 200_000 + b"\n16 16 255\n" + bytes(256),
        "ppm-odd": b"P5 4000 3000 100\n" + bytes(12_000_000),
        "tiff": directory(5_000, 60_000),
        "png-text": png[:33] + chunk(b"zTXt", text) + png[33:],
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(parts().keys() - {"png-text"}))
def test_a_file_of_too_many_parts(name):
    assert refused_soon(parts()[name])


def test_exif_in_a_text_that_refers_to_too_much_is_no_orientation():
    start = time.process_time()
    assert decode(parts()["png-text"]).size == (16, 16)
    assert time.process_time() - start < 1


def test_a_tiff_cut_out_of_an_enormous_tile():
    data = bytearray(encode(Image.new("L", (64, 64)), "TIFF", compression="tiff_deflate"))
    at = struct.unpack_from("<L", data, 4)[0]
    for entry in range(at + 2, at + 2 + 12 * struct.unpack_from("<H", data, at)[0], 12):
        tag = struct.unpack_from("<H", data, entry)[0]
        if tag == 278:
            struct.pack_into("<HHLL", data, entry, 322, 4, 1, 60_000)
        if tag == 279:
            struct.pack_into("<HHLL", data, entry, 323, 4, 1, 60_000)
    assert "tiles of 3600000000 pixels" in refused_soon(bytes(data))


def test_more_bytes_than_a_picture_has(monkeypatch):
    monkeypatch.setattr(image_limits, "MAX_BYTES", 1000)
    assert refused_soon(encode(Image.new("L", (16, 16)), "BMP"))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "PPM", "BMP", "AVIF", "JPEG2000"])
def test_any_cut_is_left_to_the_decoder(form):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.effect_noise((64, 48), 60).convert("RGB"), form, exif=exif)
    assert image_limits.excess(data) == ""
    assert not any(image_limits.excess(data[:end]) for end in range(0, len(data), 7))


def test_a_jpeg2000_of_more_samples_than_its_decoder_has_memory_for():
    data = bytearray(encode(Image.new("RGB", (64, 64)), "JPEG2000"))
    size = data.index(b"\xff\x4f\xff\x51") + 8
    header = data.index(b"ihdr") + 4
    struct.pack_into(">LL", data, size, 8000, 8000)
    struct.pack_into(">LL", data, header, 8000, 8000)
    assert "3 components of 8000x8000" in refused_soon(bytes(data))


def test_a_jpeg2000_of_tiny_precincts():
    data = bytearray(encode(Image.new("RGB", (1000, 800)), "JPEG2000", precinct_size=(64, 64)))
    coding = data.index(b"\xff\x52")
    levels = data[coding + 9]
    assert image_limits.excess(bytes(data)) == ""
    data[coding + 14 : coding + 15 + levels] = b"\x11" * (levels + 1)
    assert "precincts in 1 layers of 3 components" in refused_soon(bytes(data))
    tiled = encode(Image.new("RGB", (1000, 800), (255, 0, 0)), "JPEG2000", tile_size=(64, 64))
    assert decode(tiled).size == (1000, 800)
