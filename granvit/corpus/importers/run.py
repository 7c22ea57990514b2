"""Running an importer: every record through the gate, the good ones into a corpus, the others into its quarantine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from granvit.corpus.check import LeftOut, Quarantine, Rejection, check_record, whole_rejection
from granvit.corpus.derive import split_by_hash
from granvit.corpus.importers.base import WITHOUT_REGIONS, Found, check_encoding, get_importer
from granvit.corpus.layout import QUARANTINE, CorpusError
from granvit.corpus.store import CorpusWriter
from granvit.links import read_within
from granvit.regions import SPLITS, RegionImage, picture_id
from granvit.sampling import unit_hash

Group = Literal["id", "first-line"]


@dataclass
class ImportSummary:
    """What became of everything an importer came across.

    ``images_seen == images_written + images_quarantined``, and ``regions_seen == regions_written +
    regions_quarantined + regions_with_image``, the last being those that went with a quarantined image; and the same
    for conversations. An image is a record, also one of conversations alone.

    Attributes:
        without_picture: how many of the images written are conversations alone.
        reasons: quarantine entries by reason, images, regions and conversations together.
        changes: what was kept but altered, see `Checked`.
        left_out: what the data set states and a record has no place for, and how often, see `LeftOut`.
        examples: of each of these a detail, such as where the first one is.
    """

    images_seen: int = 0
    images_written: int = 0
    images_quarantined: int = 0
    regions_seen: int = 0
    regions_written: int = 0
    regions_quarantined: int = 0
    regions_with_image: int = 0
    conversations_seen: int = 0
    conversations_written: int = 0
    conversations_quarantined: int = 0
    conversations_with_image: int = 0
    without_picture: int = 0
    splits: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"images   {self.images_written} of {self.images_seen} written"]
        if self.without_picture:
            lines[-1] += f" ({self.without_picture} without a picture, conversations alone)"
        lines.append(f"regions  {self.regions_written} of {self.regions_seen} written")
        if self.regions_with_image:
            lines[-1] += f" ({self.regions_with_image} went with their quarantined image)"
        if self.conversations_seen:
            lines.append(f"conversations  {self.conversations_written} of {self.conversations_seen} written")
            if self.conversations_with_image:
                lines[-1] += f" ({self.conversations_with_image} went with their quarantined image)"
        if named := [f"{self.splits[name]} {name}" for name in SPLITS if name and self.splits[name]]:
            lines.append(f"splits   {', '.join(named)}")
        lines += [f"  quarantined  {count:>7}  {reason}" for reason, count in self.reasons.most_common()]
        lines += [f"  kept, but    {count:>7}  {change}" for change, count in self.changes.most_common() if count]
        for what, count in self.left_out.most_common():
            example = f" ({self.examples[what]})" if what in self.examples else ""
            lines.append(f"  left out     {count:>7}  {what}{example}")
        return "\n".join(lines)


def import_corpus(
    name: str,
    src: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    val_fraction: float = 0.0,
    group: Group = "id",
    overwrite: bool = False,
    progress: bool = False,
    rows_per_shard: int = 2_000,
    follow_links: bool = False,
    **options: Any,
) -> ImportSummary:
    """Make a corpus of one or several folders or files in a public layout.

    Args:
        name: a key of `IMPORTERS`.
        src: the place, or several of the same layout.
        out: the corpus folder; what is refused goes to its quarantine.jsonl.
        val_fraction: the share in [0, 1) of the source's training (or unassigned) images that becomes split "val",
            chosen by a hash, so the same image is chosen each time; 0 keeps the source's splits.
        group: what is hashed: "id", or "first-line", the text of the first text region, which keeps the receipts
            of one company in one split. Tiles go where their picture goes, by its id or its first tile's line.
        overwrite: replace the corpus at `out`.
        progress: show a progress bar.
        follow_links: what a link leads to outside of the places is read too, and not refused as "link-outside".
        options: passed to the importer; what a path among them names is one of the places.

    Raises:
        CorpusError: unknown importer or option, a place that does not exist or has not the layout, `out` is in use;
            or of one of the places not one image could be imported, or not one region though the layout or that place
            states some: the quarantine then tells why, and no corpus is written.
    """
    if not 0 <= val_fraction < 1:
        raise CorpusError(f"val_fraction must be in [0, 1), got {val_fraction}")
    reader = get_importer(name, options)
    check_encoding(options.get("encoding") or "utf-8")
    places = [Path(src)] if isinstance(src, str | Path) else [Path(s) for s in src]
    for place in places:
        if not place.exists():
            raise CorpusError(f"{place} does not exist")
    named = [*places, *(option for option in options.values() if isinstance(option, Path))]
    summary = ImportSummary()
    held_out: set[str] = set()
    sides = _Sides(val_fraction, group)
    meta = {"importer": name, "src": [str(p) for p in places], "val_fraction": val_fraction, "group": group}
    with CorpusWriter(out, rows_per_shard, meta, overwrite) as writer:
        with Quarantine(writer.folder / QUARANTINE) as quarantine, tqdm(unit=" images", disable=not progress) as bar:
            summary.reasons = quarantine.reasons
            for place in places:
                before = replace(summary, reasons=summary.reasons.copy())
                for item in read_within(reader(place, **options), *named, follow_links=follow_links):
                    _take(item, writer, quarantine, summary, held_out, sides)
                    bar.update()
                _require_use(place, summary, before, writer, regions=name not in WITHOUT_REGIONS)
        writer.meta |= {
            "quarantined": dict(summary.reasons),
            "changed": dict(+summary.changes),
            "left_out": dict(summary.left_out),
        }
    return summary


def _require_use(place: Path, now: ImportSummary, before: ImportSummary, writer: CorpusWriter, regions: bool) -> None:
    """Whether anything of a place was used. A corpus without what it was named for would be trained on unnoticed."""
    why = ", ".join(f"{reason} {count}" for reason, count in (now.reasons - before.reasons).most_common())
    images, stated = now.images_seen - before.images_seen, now.regions_seen - before.regions_seen
    said = now.conversations_seen - before.conversations_seen
    if now.images_written == before.images_written:
        problem = f"none of {images} images could be imported"
    elif now.conversations_written > before.conversations_written:
        return
    elif said and now.regions_written == before.regions_written:
        problem = f"none of {said} conversations could be used"
    elif now.regions_written == before.regions_written and (stated or regions):
        problem = f"none of {stated} regions could be used"
        if not stated:
            problem, why = f"{problem}: it states none; pictures alone are imported with the layout image_folder", ""
    else:
        return
    # The account outlives the corpus that there will not be.
    raise CorpusError(f"{place}: {problem}" + (f" ({why}); see {writer.keep(QUARANTINE)}" if why else ""))


def _take(
    item: Found,
    writer: CorpusWriter,
    quarantine: Quarantine,
    summary: ImportSummary,
    held_out: set[str],
    sides: _Sides,
) -> None:
    if isinstance(item, LeftOut):
        if item.detail and item.count:
            summary.examples.setdefault(item.what, item.detail)
        summary.left_out += Counter({item.what: item.count})
        return
    if isinstance(item, Rejection):
        quarantine.add(item)
        summary.images_seen += item.whole
        summary.images_quarantined += item.whole
        summary.conversations_seen += item.conversations + (item.conversation is not None)
        summary.conversations_quarantined += item.conversation is not None
        summary.conversations_with_image += item.conversations
        summary.regions_seen += item.regions + (item.region is not None)
        summary.regions_quarantined += item.region is not None
        summary.regions_with_image += item.regions
        return
    summary.images_seen += 1
    summary.regions_seen += len(item.regions)
    summary.conversations_seen += len(item.conversations)
    if item.id in writer:
        reason, detail = "duplicate-id", "an earlier image has this id"
        if item.split in ("val", "test") and item.id not in held_out:
            reason, detail = "split-conflict", f"an earlier image has this id and is trained on, not in {item.split}"
        quarantine.add(whole_rejection(item, reason, detail))
        summary.images_quarantined += 1
        summary.regions_with_image += len(item.regions)
        summary.conversations_with_image += len(item.conversations)
        return
    checked = check_record(item)
    for rejection in checked.rejections:
        quarantine.add(rejection)
    if checked.record is None:
        summary.images_quarantined += 1
        summary.regions_with_image += len(item.regions)
        summary.conversations_with_image += len(item.conversations)
        return
    split = sides.of(checked.record)
    writer.write(replace(checked.record, split=split))
    if split in ("val", "test"):
        held_out.add(item.id)
    summary.changes += checked.changes
    summary.images_written += 1
    summary.splits[split] += 1
    summary.regions_written += len(checked.record.regions)
    summary.regions_quarantined += sum(rejection.region is not None for rejection in checked.rejections)
    summary.conversations_written += len(checked.record.conversations)
    summary.conversations_quarantined += sum(rejection.conversation is not None for rejection in checked.rejections)
    summary.without_picture += checked.record.text_only


@dataclass
class _Sides:
    """Which split each record goes to, see `import_corpus`."""

    val_fraction: float
    group: Group
    first_lines: dict[str, str] = field(default_factory=dict)

    def of(self, record: RegionImage) -> str:
        """Only training images move: a test image must not become one to tune on."""
        if not self.val_fraction or record.split not in ("", "train"):
            return record.split
        if self.group == "id":
            return split_by_hash(picture_id(record.id), self.val_fraction)
        # Each tile has a first line of its own: the first tile's speaks for all, so that a picture is on one side.
        picture = picture_id(record.id)
        if (line := self.first_lines.get(picture)) is None:
            first = next((r.text for r in record.regions if r.kind == "text" and not r.ignore), picture)
            line = self.first_lines[picture] = " ".join(first.casefold().split())
        return "val" if unit_hash(line) < self.val_fraction else "train"
