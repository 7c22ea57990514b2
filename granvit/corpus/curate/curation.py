"""From a corpus as it was made to one worth training on; every drop is counted by reason and source.

Two passes over the records, and one over the image files in between where copies are looked for; one more over the
records where captioners' texts are to be counted without what copies and caps took, and one over the copies that are
joined. In memory are some 35 bytes per image that passes the filters, 45 more for its fingerprint, 20 per different
text a captioner wrote, the ids of the images that are written (`CorpusWriter`), the rows of the copies that are not,
and up to 64 MB of what is said of them; more of that is on the disk meanwhile.
Records without image files take part in everything but the search for copies.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from granvit.corpus.curate.balance import RepeatedTexts, Repeats, text_hash
from granvit.corpus.curate.choice import Choice
from granvit.corpus.curate.copies import Copies, Share, joined
from granvit.corpus.curate.filters import Filters, PassedImages, apply_filters, too_few
from granvit.corpus.curate.report import EXACT, NEAR, WITH_IMAGE, CurationReport
from granvit.corpus.dedup.copy_search import SIMILARITY, exact_groups, near_groups
from granvit.corpus.dedup.perceptual_hash import NO_PICTURE, FingerprintFile, store_fingerprints
from granvit.corpus.layout import CURATION, CorpusError
from granvit.corpus.stats import language, script
from granvit.corpus.store import Corpus, CorpusWriter
from granvit.files import write_text
from granvit.regions import Region, RegionImage
from granvit.sampling import unit_hash


@dataclass(frozen=True)
class Curation:
    """What a corpus is held to. The defaults are the paper's, with others for text; see `Filters`."""

    filters: Filters = field(default_factory=Filters)
    repeats: Repeats = field(default_factory=Repeats)
    exact_duplicates: bool = True
    """Drop files that are there already, byte by byte; the one that stays takes over what is said of the others."""
    near_duplicates: bool = True
    """Drop pictures that are there already in another size, compression, or mirrored."""
    similarity: float = SIMILARITY
    """From which agreement, at most 1, two pictures are the same. Receipts in one layout reach 0.9."""
    caps: dict[str, int] = field(default_factory=dict)
    """At most so many images of a source: NAME COUNT ... Those in the splits "val" and "test" stay and are not counted,
    but 0 leaves out all of a source, before copies are looked for. In the place of one that goes a copy stays whose
    source has room."""
    weights: dict[str, float] = field(default_factory=dict)
    """Proportions of the sources, by images: NAME WEIGHT ... for every source, "val" and "test" as with caps."""
    seed: int = 0
    """Which images caps and weights leave: the same for the same seed."""

    def check(self, sources: Iterable[str]) -> None:
        """Whether the settings make sense for a corpus with these sources.

        Raises:
            CorpusError: naming the setting.
        """
        known = sorted(sources)
        for setting, given in (("caps", self.caps), ("weights", self.weights)):
            if unknown := sorted(set(given) - set(known)):
                raise CorpusError(f"--{setting}: there is no source {unknown[0]!r}, only {', '.join(map(repr, known))}")
            for name, value in given.items():
                if not (math.isfinite(value) and value >= 0):
                    raise CorpusError(f"--{setting} {name} {value}: must be at least 0")
        if not 0 < self.similarity <= 1:
            raise CorpusError(f"--similarity {self.similarity}: must be above 0 and at most 1")


def curate(
    corpus: Corpus,
    out: str | Path,
    curation: Curation,
    *,
    fingerprints: Path | None = None,
    workers: int = 0,
    overwrite: bool = False,
    progress: bool = False,
) -> CurationReport:
    """Write the part of `corpus` that is worth training on to `out`, with the account in out/curation.json.

    No image file is read but to copy it, unless copies are looked for; and none is decoded where `fingerprints` names
    a file that is there already.

    Args:
        fingerprints: a Parquet file to keep the fingerprints of all images in, or that has them; None makes those of
            the images that pass the filters, and forgets them.
        workers: threads that decode; 0 for one per core.
        overwrite: replace the corpus at `out`.
        progress: show progress bars.

    Raises:
        CorpusError: a setting makes no sense, the corpus cannot be read, `out` is in use, or nothing is left.
    """
    curation.check(corpus.manifest["images_by_source"])
    report = CurationReport()
    meta = {"curated": str(corpus.path), "curation": asdict(curation), "before": corpus.manifest["meta"]}
    with CorpusWriter(out, meta=meta, overwrite=overwrite) as writer:
        records = tqdm(corpus.records(), "filter", len(corpus), unit=" images", disable=not progress)
        passed = PassedImages(records, curation.filters, curation.repeats, curation.seed)
        dropped, taken_over = _choose(corpus, passed, curation, report, fingerprints, workers, writer.folder)
        with Copies(corpus, curation.filters, taken_over, writer.folder, progress) as copies:
            texts = passed.texts
            if texts and dropped:
                # What copies and caps took away repeats nothing any more.
                again = tqdm(corpus.records(), "texts", len(corpus), unit=" images", disable=not progress)
                texts = _texts_left(again, dropped, copies, curation)
            thinning = _Thinning(texts, curation.repeats)
            pictures = tqdm(corpus, "write", len(corpus), unit=" images", disable=not progress)
            for record in _kept(pictures, dropped, copies, thinning, curation, report):
                writer.write(record)
        if not writer.images:
            why = "; ".join(report.losses())
            raise CorpusError(
                f"{corpus.path}: no image is left: {report.reasons('images')}" + (f"; {why}" if why else "")
            )
        report.repeated = thinning.account()
        account = {"corpus": str(corpus.path), "settings": asdict(curation), **report.to_json()}
        write_text(writer.folder / CURATION, json.dumps(account, indent=1, ensure_ascii=False))
    return report


def _choose(
    corpus: Corpus,
    passed: PassedImages,
    curation: Curation,
    report: CurationReport,
    fingerprints: Path | None,
    workers: int,
    unfinished: Path,
) -> tuple[dict[int, str], dict[int, list[int]]]:
    """Why rows that passed the filters go all the same, and those whose content a row takes over; see `Choice`.

    `unfinished` is a folder for passing files.
    """
    choice = Choice(passed, curation.caps, curation.weights)
    choice.leave_out()
    among = np.flatnonzero(choice.left)
    if len(among) and (curation.exact_duplicates or curation.near_duplicates):
        rows = passed.rows[among]
        # Beside what is written, not in the system's folder: what a killed run leaves is cleared by the next one.
        with tempfile.TemporaryDirectory(dir=unfinished) as folder:
            file = _fingerprints(corpus, rows, fingerprints, Path(folder), workers)
            file.check_holds(rows)
            entries = np.searchsorted(file.rows, rows)
            problems = (file.problems.get(i) for i in entries.tolist())
            report.without_fingerprint.update(problem for problem in problems if problem not in (None, NO_PICTURE))
            for reason, group in _copies(file, entries, curation):
                report.groups[reason] += 1
                # From places in the file to places among those that passed.
                choice.thin_copies(among[np.searchsorted(entries, group)].tolist(), reason == EXACT)
    choice.thin_sources()
    return choice.outcome()


def _fingerprints(
    corpus: Corpus, rows: np.ndarray[Any, np.dtype[np.int64]], kept: Path | None, folder: Path, workers: int
) -> FingerprintFile:
    if kept is None:
        return store_fingerprints(corpus, folder / "fingerprints.parquet", rows, workers)
    if kept.exists():
        return FingerprintFile(kept, corpus)
    return store_fingerprints(corpus, kept, None, workers)


def _copies(
    file: FingerprintFile, entries: np.ndarray[Any, np.dtype[np.int64]], curation: Curation
) -> Iterator[tuple[str, list[int]]]:
    if curation.exact_duplicates:
        yield from ((EXACT, group) for group in exact_groups(file.sha256, entries))
    if curation.near_duplicates:
        yield from ((NEAR, group) for group in near_groups(file, entries, curation.similarity))


class _Thinning:
    """Thins out the texts that are repeated too often."""

    def __init__(self, texts: RepeatedTexts, repeats: Repeats) -> None:
        self._repeats = repeats
        self._allowed = texts.allowed()
        self._seen: dict[tuple[str, str, int], dict[str, Any]] = {}

    def drops(self, record: RegionImage, place: int, region: Region) -> bool:
        """Whether this occurrence goes. `place` is the region's index in the corpus as it was."""
        allowed = self._allowed.get((record.source, region.kind))
        if not allowed or not self._repeats.concerns(region):
            return False
        hashed = text_hash(region.text)
        if hashed not in allowed:
            return False
        share, count = allowed[hashed]
        entry = {"source": record.source, "kind": region.kind, "text": region.text, "count": count}
        self._seen.setdefault((record.source, region.kind, hashed), entry)
        return unit_hash(f"{record.id}#{place}") >= share

    def account(self) -> list[dict[str, Any]]:
        return sorted(self._seen.values(), key=lambda entry: (-entry["count"], entry["source"], entry["text"]))


def _texts_left(
    records: Iterable[RegionImage], dropped: dict[int, str], copies: Copies, curation: Curation
) -> RepeatedTexts:
    """The texts of what is neither dropped nor filtered out."""
    texts = RepeatedTexts(curation.repeats)
    for row, filtered in enumerate(apply_filters(records, curation.filters)):
        if filtered.reason is None and row not in dropped:
            for share in copies.shares(row, filtered):
                texts.add(share.record.source, (region for _, region in share.regions))
    return texts


def _kept(
    records: Iterable[RegionImage],
    dropped: dict[int, str],
    copies: Copies,
    thinning: _Thinning,
    curation: Curation,
    report: CurationReport,
) -> Iterator[RegionImage]:
    """What is written, as it is counted."""

    def counted() -> Iterator[RegionImage]:
        for record in records:
            source = report.of(record.source)
            source.images_in += 1
            source.regions_in += len(record.regions)
            source.captions_in += bool(record.caption)
            source.conversations_in += len(record.conversations)
            report.splits_in[record.split] += 1
            yield record

    for row, filtered in enumerate(apply_filters(counted(), curation.filters)):
        record, source = filtered.record, report.of(filtered.record.source)
        source.regions_dropped.update(filtered.regions)
        if reason := filtered.reason or dropped.get(row):
            source.images_dropped[reason] += 1
            if row not in copies:  # whose regions are counted with the record that takes them over
                source.regions_dropped.update([WITH_IMAGE] * len(record.regions))
                if reason == NEAR:
                    report.with_copies += _said(record)
                elif reason == EXACT:
                    report.other_size += _said(record)
            continue
        shares = copies.shares(row, filtered)
        stays = [
            [region for place, region in share.regions if not thinning.drops(share.record, place, region)]
            for share in shares
        ]
        record = joined(shares, [region for regions in stays for region in regions])
        thinned = len(record.regions) < sum(len(share.regions) for share in shares)
        reason = too_few(record, curation.filters) if thinned else None
        for number, (share, regions) in enumerate(zip(shares, stays, strict=True)):
            _account(share, regions, report, gone=reason is not None, copy=number > 0)
        if reason is not None:
            source.images_dropped[reason] += 1
            continue
        source.images_out += 1
        report.splits_out[record.split] += 1
        yield record


def _account(share: Share, regions: list[Region], report: CurationReport, gone: bool, copy: bool) -> None:
    """Count what a share gives to a record that is written, or `gone`; `regions` are those that are not thinned out."""
    source = report.of(share.record.source)
    thinned = Counter({WITH_IMAGE: len(regions) if gone else 0, "repeated-text": len(share.regions) - len(regions)})
    source.regions_dropped += share.dropped + thinned
    if gone:
        return
    given = Counter(regions=len(regions), captions=int(share.caption), conversations=len(share.conversations))
    source.regions_out += given["regions"]
    source.captions_out += given["captions"]
    source.conversations_out += given["conversations"]
    if copy:
        report.joined += given
        report.stood_for += share.lost
    for region in regions:
        if not region.ignore:
            name = script(region.text)
            source.scripts[name] += 1
            source.languages[language(region.text, name)] += 1


def _said(record: RegionImage) -> Counter[str]:
    """What is said of an image, in numbers."""
    return Counter(
        regions=len(record.regions), captions=int(bool(record.caption)), conversations=len(record.conversations)
    )
