"""Pictures that look unlike each other, and damaged copies of them, for the tests of copies, curation and leakage."""

import io
import random

import numpy as np
from PIL import Image

from granvit.corpus.store import Corpus, CorpusWriter
from granvit.regions import Region, RegionImage


def picture(seed: int, size: tuple[int, int] = (512, 480)) -> Image.Image:
    """Noise with the spectrum of photographs, smooth at large and rough at small: each seed another scene."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft2(rng.normal(size=(256, 256)))
    across, along = np.meshgrid(np.fft.rfftfreq(256), np.fft.fftfreq(256))
    scene = np.fft.irfft2(spectrum / (np.hypot(across, along) + 1 / 256) ** 1.2)
    scene = (scene - scene.min()) / (scene.max() - scene.min()) * 255
    colours = np.stack([scene, np.roll(scene, 40, 1), 255 - scene], axis=2).astype(np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def cropped(image: Image.Image, keep: float, seed: int = 0) -> Image.Image:
    """A part of `keep` of width and height, anywhere in the picture."""
    rng = random.Random(seed)
    width, height = round(image.width * keep), round(image.height * keep)
    x, y = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    return image.crop((x, y, x + width, y + height))


def halved(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)


def mirrored(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


COPIES = {
    "recompressed": lambda image, seed: jpeg(image, 30),
    "halved": lambda image, seed: jpeg(halved(image)),
    "mirrored": lambda image, seed: jpeg(mirrored(image)),
    "cropped": lambda image, seed: jpeg(cropped(image, 0.9, seed)),
    "all of it": lambda image, seed: jpeg(mirrored(halved(cropped(image, 0.9, seed))), 30),
}


def record(name: str, data: bytes | None, size: tuple[int, int] = (512, 480), **options) -> RegionImage:
    """A record that passes all filters."""
    options = {"regions": [Region((10, 10, 200, 200), f"a thing of {name}")], "source": "web", **options}
    return RegionImage(name, data, *size, uri=f"{name}.jpg", **options)


def corpus(path, records) -> Corpus:
    with CorpusWriter(path, rows_per_shard=20) as writer:
        for item in records:
            writer.write(item)
    return Corpus(path)
