"""A folder of pictures without annotations: the start of an annotated corpus."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from granvit.corpus.check import UNKNOWN_SIZE, LeftOut, Refused, Rejection
from granvit.corpus.importers.base import Found, as_split, importer, read_image
from granvit.corpus.importers.pictures import LEFT_OUT, listing, unsupported
from granvit.corpus.layout import CorpusError
from granvit.regions import RegionImage


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
