"""Shared by the tests of importers: pictures to find, and an import in which every piece is accounted for."""

import io
from pathlib import Path

from PIL import Image

from granvit.corpus.check import Rejection, read_quarantine, verify
from granvit.corpus.importers import import_corpus
from granvit.corpus.store import Corpus
from granvit.regions import RegionImage


def picture(size: tuple[int, int] = (40, 30), form: str = "JPEG", **options) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, (10, 200, 10)).save(data, form, **options)
    return data.getvalue()


def save(file: Path, size: tuple[int, int] = (40, 30)) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(picture(size, "PNG" if file.suffix == ".png" else "JPEG"))
    return file


def bring(name: str, src: Path, out: Path, **options) -> tuple[list[RegionImage], list[Rejection]]:
    """The records of an import and what it refused; nothing may be lost between the two, and the corpus be sound."""
    summary = import_corpus(name, src, out, **options)
    records, refused = list(Corpus(out)), read_quarantine(out / "quarantine.jsonl")
    assert summary.images_seen == len(records) + sum(r.whole for r in refused)
    regions = sum(len(r.regions) for r in records) + sum(r.region is not None for r in refused)
    assert summary.regions_seen == regions + summary.regions_with_image
    said = sum(len(r.conversations) for r in records) + sum(r.conversation is not None for r in refused)
    assert summary.conversations_seen == said + summary.conversations_with_image
    assert summary.conversations_with_image == sum(r.conversations for r in refused)
    assert verify(out) == []
    return records, refused
