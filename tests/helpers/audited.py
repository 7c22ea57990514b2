"""Shared by the tests of audits: small corpora with boxes at known places."""

import io
import zlib
from dataclasses import replace
from pathlib import Path

from PIL import Image

from granvit.corpus.store import Corpus, CorpusWriter
from granvit.regions import Region, RegionImage


def picture(name: str, size: tuple[int, int] = (200, 100)) -> bytes:
    """A plain picture whose colour, and so whose file, is the name's own."""
    buffer = io.BytesIO()
    Image.new("RGB", size, tuple(zlib.crc32(name.encode()).to_bytes(4, "big")[:3])).save(buffer, "PNG")
    return buffer.getvalue()


def record(id: str, *regions: Region, source: str = "shop", **changes) -> RegionImage:
    plain = RegionImage(id, picture(id), 200, 100, list(regions), source=source)
    return replace(plain, **changes)


def text(box, words: str, **changes) -> Region:
    return replace(Region(box, words, "text"), **changes)


def corpus(path: Path, *records: RegionImage) -> Corpus:
    with CorpusWriter(path) as writer:
        for one in records:
            writer.write(one)
    return Corpus(path)
