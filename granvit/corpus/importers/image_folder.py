"""A folder of pictures without annotations: the start of an annotated corpus."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from granvit.corpus.importers.base import as_split, importer, read_image
from granvit.corpus.layout import CorpusError
from granvit.corpus.quarantine import UNKNOWN_SIZE, Refused, Rejection
from granvit.regions import RegionImage

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm")


@importer("image_folder", without_regions=True)
def read(src: Path, *, source: str = "", licence: str = "", split: str = "") -> Iterator[RegionImage | Rejection]:
    """`src` is a folder; all pictures below it are taken, known by their names' endings, in the order of their paths.

    There are no regions, hence no boxes; other files are passed over. Terms: yours to state with `licence`.

    Raises:
        CorpusError: `src` is not a folder.
    """
    if not src.is_dir():
        raise CorpusError(f"{src} is not a folder")
    source = source or src.resolve().name
    for uri in pictures(src):
        try:
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


def pictures(src: Path) -> Iterator[str]:
    """Paths of all pictures below `src`, relative to it and with slashes, in order."""
    for folder, subfolders, names in os.walk(src):
        subfolders.sort()
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES):
                yield (Path(folder) / name).relative_to(src).as_posix()
