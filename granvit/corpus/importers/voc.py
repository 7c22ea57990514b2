"""PASCAL VOC's detection annotations, and what annotation tools write in their format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

from granvit.corpus.importers.base import as_split, importer, read_image
from granvit.corpus.importers.voc_xml import box_of, read_xml, size_of
from granvit.corpus.layout import CorpusError
from granvit.corpus.quarantine import Refused, Rejection
from granvit.regions import Region, RegionImage

_SPLITS = ("train", "val", "test")


@importer("voc")
def read(src: Path, *, source: str = "voc", licence: str = "", split: str = "") -> Iterator[RegionImage | Rejection]:
    """`src` is a folder such as ``VOCdevkit/VOC2012``, with ``Annotations/*.xml`` and ``JPEGImages/*``.

    An annotation and its picture have the same name up to the ending; the names that the XML states are not used. The
    split is that of the list ``ImageSets/Main/train.txt``, ``val.txt`` or ``test.txt`` which names the picture, where
    there are such, and else `split`. An object's ``name`` becomes the text, ``difficult`` becomes ignore; its parts
    (head, hand, foot) are not read. XML with a document type is refused: it could hold entities.

    Boxes: xmin, ymin, xmax, ymax in pixels counted from 1, the last ones included, so that 1 is taken from xmin and
    ymin. Tools that count from 0 are off by that one pixel. Terms: the photos are Flickr's, under its terms of use.

    Raises:
        CorpusError: `src` lacks one of the two folders.
    """
    for name in ("Annotations", "JPEGImages"):
        if not (src / name).is_dir():
            raise CorpusError(f"{src} lacks the folder {name}/; the layout is Annotations/*.xml and JPEGImages/*")
    lists = {name: src / f"ImageSets/Main/{name}.txt" for name in _SPLITS}
    split_of = {stem: name for name, file in lists.items() if file.is_file() for stem in file.read_text().split()}
    annotations = {file.stem: file for file in sorted((src / "Annotations").glob("*.xml"))}
    for picture in sorted((src / "JPEGImages").iterdir()):
        uri = f"JPEGImages/{picture.name}"
        try:
            if picture.stem not in annotations:
                raise Refused("missing-annotation", f"no file Annotations/{picture.stem}.xml")
            root = read_xml(annotations.pop(picture.stem))
            width, height = size_of(root)
            yield RegionImage(
                id=f"{source}/{uri}",
                image=read_image(src, uri),
                width=width,
                height=height,
                regions=[_region(element) for element in root.findall("object")],
                uri=uri,
                source=source,
                licence=licence,
                split=split_of.get(picture.stem) or as_split(split),
            )
        except Refused as refused:
            yield Rejection(refused.reason, f"{source}/{uri}", uri, None, refused.detail)
    for file in annotations.values():
        yield Rejection("missing-image", "", f"Annotations/{file.name}", None, f"no picture JPEGImages/{file.stem}.*")


def _region(element: Element) -> Region:
    difficult = (element.findtext("difficult") or "").strip()
    return Region(box_of(element), text=element.findtext("name") or "", ignore=difficult == "1")
