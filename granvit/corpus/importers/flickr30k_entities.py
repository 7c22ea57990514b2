"""Flickr30k Entities: phrases of five captions a photo, and the boxes of what they mention."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

from granvit.corpus.check import LeftOut, Refused, Rejection
from granvit.corpus.importers.base import NO_BOX, Box, Found, importer, read_image, read_text, refusal_is_fatal
from granvit.corpus.importers.voc import box_of, read_xml, size_of, splits_of
from granvit.corpus.layout import CorpusError
from granvit.geometry import hull
from granvit.regions import Region, RegionImage

_FOLDERS = ("flickr30k-images", "flickr30k_images", "flickr30k_images/flickr30k_images", "images")
_SPLITS = ("train", "val", "test")

# [/EN#283585/people/other Two young guys]: the chain, its types, the phrase.
_MENTION = re.compile(r"\[/EN#(\d+)(?:/[^\s\[\]]*)? ([^\[\]]+)\]")


@importer("flickr30k_entities")
def read(
    src: Path,
    *,
    images: Path | None = None,
    encoding: str = "",
    source: str = "flickr30k_entities",
    licence: str = "",
) -> Iterator[Found]:
    """`src` is the folder with ``Annotations/*.xml`` and ``Sentences/*.txt``, one of each for every photo.

    A line of a sentences file is a caption, its mentions in brackets: ``[/EN#1/people Two young guys] wave .``; what is
    mentioned under one number is a chain. An ``object`` of the XML names the chains that it belongs to. The first
    phrase of a chain becomes the text, the others alternatives; scenes and what is not visible have no box and give
    no region. The longest of the five captions is kept, but those listed in ``UNRELATED_CAPTIONS``; what is not kept
    is counted. Splits are those of ``train.txt``, ``val.txt`` and ``test.txt``, where there are such, read as VOC's.
    The photos, ``ID.jpg``, are in ``flickr30k-images/`` or ``images/`` there or beside it, or in `images`.

    Boxes: xmin, ymin, xmax, ymax in pixels counted from 1, the last ones included, as in VOC. Where a chain has several
    boxes ("three men") its region is the box around them all: no single one is what the phrase says. Terms: for
    non-commercial research and education; the photos under Flickr's terms of use.

    Raises:
        CorpusError: `src` lacks one of the two folders, or no folder of photos.
    """
    for name in ("Annotations", "Sentences"):
        if not (src / name).is_dir():
            raise CorpusError(f"{src} lacks the folder {name}/; the layout is Annotations/*.xml and Sentences/*.txt")
    beside = [base / name for base in (src, src.resolve().parent) for name in _FOLDERS]
    root = images or next((folder for folder in beside if folder.is_dir()), None)
    if root is None:
        raise CorpusError(f"{src}: none of {', '.join(_FOLDERS)} is in it or beside it: name the folder of the photos")
    lists = {name: src / f"{name}.txt" for name in _SPLITS}
    annotations = sorted((src / "Annotations").glob("*.xml"))
    listed = {name: [file] for name, file in lists.items() if file.is_file()}
    split_of, unused = splits_of(listed, [f"{file.stem}.jpg" for file in annotations], encoding)
    yield from unused
    unrelated = _unrelated(src / "UNRELATED_CAPTIONS", encoding)
    sentences = {file.stem: file for file in sorted((src / "Sentences").glob("*.txt"))}
    left_out = Counter[str]()
    for annotation in annotations:
        key, uri = annotation.stem, f"{annotation.stem}.jpg"
        regions: list[Region] = []
        try:
            if key not in sentences:
                raise Refused("missing-annotation", f"no file Sentences/{key}.txt")
            lines = _lines(read_text(sentences.pop(key), encoding))
            parsed = {index: _parse(line) for index, line in lines if f"{key} {index + 1}" not in unrelated}
            captions = [caption for caption in parsed.values() if caption]
            xml = read_xml(annotation, encoding)
            regions = _regions(xml, captions, left_out)
            left_out["further caption of an image"] += max(len(captions) - 1, 0)
            left_out["caption in UNRELATED_CAPTIONS"] += len(lines) - len(parsed)
            width, height = size_of(xml)
            yield RegionImage(
                id=f"{source}/{uri}",
                image=read_image(root, uri),
                width=width,
                height=height,
                regions=regions,
                uri=uri,
                source=source,
                licence=licence,
                caption=max((caption.text for caption in captions), key=len, default=None),
                split=split_of.get(key, ""),
            )
        except Refused as refused:
            yield Rejection(refused.reason, f"{source}/{uri}", uri, None, refused.detail, len(regions))
            continue
        for index in (index for index, caption in parsed.items() if not caption):
            detail = f"line {index + 1}: a mention is not [/EN#CHAIN/TYPE PHRASE]"
            yield Rejection("bad-caption", f"{source}/{uri}", f"Sentences/{key}.txt", index, detail)
    for file in sentences.values():
        yield Rejection(
            "missing-annotation", "", f"Sentences/{file.name}", None, f"no file Annotations/{file.stem}.xml"
        )
    for what, count in left_out.items():
        yield LeftOut(what, count)


def _lines(text: str) -> list[tuple[int, str]]:
    """The lines that hold something, numbered from 0."""
    return list(enumerate(line for line in text.split("\n") if line.strip()))


def _unrelated(file: Path, encoding: str) -> set[str]:
    """ "ID LINE" of each caption that is listed as none of its photo."""
    if not file.is_file():
        return set()
    with refusal_is_fatal(file):
        return {" ".join(line.split()) for _, line in _lines(read_text(file, encoding))}


@dataclass(frozen=True)
class _Caption:
    """A caption as people read it, without brackets, and what it mentions: (chain, phrase) in its order."""

    text: str
    mentions: list[tuple[str, str]]


def _parse(line: str) -> _Caption | None:
    """The caption of a line, None where its brackets are damaged."""
    text = _MENTION.sub(r"\2", line).strip()
    return None if "[/EN#" in text else _Caption(text, _MENTION.findall(line))


def _regions(xml: Element, captions: list[_Caption], left_out: Counter[str]) -> list[Region]:
    boxes: dict[str, list[Box]] = {}
    for element in xml.findall("object"):
        stated = [_box(bndbox) for bndbox in element.findall("bndbox")]
        left_out["object without a box"] += not stated
        around = [hull(stated)] if stated else []
        for name in element.findall("name") if stated else ():
            boxes.setdefault((name.text or "").strip(), []).extend(around)
    phrases: dict[str, list[str]] = {}
    for caption in captions:
        for chain, phrase in caption.mentions:
            phrases.setdefault(chain, []).append(phrase)
    left_out["phrase without a box"] += sum(len(said) for chain, said in phrases.items() if chain not in boxes)
    # Chains of the same box are one region: "a bride" and, later in the caption, "her".
    regions: dict[Box, Region] = {}
    for chain, parts in boxes.items():
        region = regions.setdefault(hull(parts), Region(hull(parts), ""))
        region.alternatives += phrases.get(chain, [])
    for region in regions.values():
        region.text, *region.alternatives = region.alternatives or [""]
    return list(regions.values())


def _box(bndbox: Element) -> Box:
    """A box, or one that makes the region of its chain, which is around all of the chain's boxes, one to refuse."""
    try:
        return box_of(bndbox)
    except Refused:
        return NO_BOX
