"""From a corpus as it was made to one worth training on; every drop is counted by reason and source.

Two passes over the records, and one over the image files in between where copies are looked for. In memory are some 30
bytes per image that passes the filters, 45 more for its fingerprint, 20 per different text a captioner wrote, the ids
of the images that are written (`CorpusWriter`) and the rows of the copies that are not.
Records without image files take part in everything but the search for copies.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from granvit.corpus.curate.balance import Repeats, mix, text_hash
from granvit.corpus.curate.filters import Filters, PassedImages, apply_filters, too_few
from granvit.corpus.dedup.copy_search import SIMILARITY, exact_groups, near_groups
from granvit.corpus.dedup.perceptual_hash import NO_PICTURE, FingerprintFile, store_fingerprints
from granvit.corpus.layout import CURATION, CorpusError
from granvit.corpus.stats import language, script
from granvit.corpus.store import Corpus, CorpusWriter
from granvit.files import write_text
from granvit.regions import Region, RegionImage
from granvit.sampling import unit_hash

WITH_IMAGE = "with-image"

# What to do where a rule takes more than it should.
_PRESETS_HINT = "the paper's limits are for large photographs, others are --preset photos and --preset documents"
_HINTS = {
    "short-side": f"{_PRESETS_HINT}, or --filters.object-image.min-short-side PIXELS",
    "image-aspect": f"{_PRESETS_HINT}, or --filters.object-image.max-aspect RATIO",
    "box-area": f"{_PRESETS_HINT}, or --filters.object-box.min-area PIXELS",
    "box-aspect": f"{_PRESETS_HINT}, or --filters.object-box.max-aspect RATIO",
    "box-side": f"{_PRESETS_HINT}, or --filters.text-box.min-side PIXELS",
    "near-duplicate": "pages of one layout look alike, see --similarity and --no-near-duplicates",
    "no-regions": "a region that is left is needed, see what took the regions, or --filters.min-regions 0",
    "repeated-text": "see --repeats.max-share",
}

_Counted = Literal["images", "regions"]
_COUNTED: tuple[_Counted, ...] = ("images", "regions")


@dataclass(frozen=True)
class Curation:
    """What a corpus is held to. The defaults are the paper's, with others for text; see `Filters`."""

    filters: Filters = field(default_factory=Filters)
    repeats: Repeats = field(default_factory=Repeats)
    exact_duplicates: bool = True
    """Drop files that are there already, byte by byte."""
    near_duplicates: bool = True
    """Drop pictures that are there already in another size, compression, or mirrored."""
    similarity: float = SIMILARITY
    """From which agreement, at most 1, two pictures are the same. Receipts in one layout reach 0.9."""
    caps: dict[str, int] = field(default_factory=dict)
    """At most so many images of a source: NAME COUNT ..."""
    weights: dict[str, float] = field(default_factory=dict)
    """Proportions of the sources, by images: NAME WEIGHT ... for every source; 0 leaves it out."""
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


@dataclass
class SourceReport:
    """What became of one source. ``images_in == images_out + sum(images_dropped)``, and the same for regions, of which
    those that went with their image are counted as "with-image". Conversations go with their image alone."""

    images_in: int = 0
    images_out: int = 0
    regions_in: int = 0
    regions_out: int = 0
    conversations_in: int = 0
    conversations_out: int = 0
    images_dropped: Counter[str] = field(default_factory=Counter)
    regions_dropped: Counter[str] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)


@dataclass
class CurationReport:
    """The account of a curation.

    Attributes:
        sources: by name.
        repeated: texts that were thinned out: source, kind, text, how often it occurred.
        groups: how many sets of copies there were, "exact" and "near".
        without_fingerprint: images that could not be compared with others, by reason.
    """

    sources: dict[str, SourceReport] = field(default_factory=dict)
    repeated: list[dict[str, Any]] = field(default_factory=list)
    groups: Counter[str] = field(default_factory=Counter)
    without_fingerprint: Counter[str] = field(default_factory=Counter)

    def of(self, source: str) -> SourceReport:
        """The report of a source, made when it is first asked for."""
        return self.sources.setdefault(source, SourceReport())

    def total(self, name: str) -> int:
        """The sum of a number over the sources."""
        return sum(getattr(report, name) for report in self.sources.values())

    def reasons(self, what: _Counted) -> str:
        """The drops of all sources in one line, the most frequent reason first."""
        found: Counter[str] = Counter()
        for report in self.sources.values():
            found.update(getattr(report, f"{what}_dropped"))
        return ", ".join(f"{reason} {count}" for reason, count in found.most_common())

    def losses(self) -> list[str]:
        """A sentence for images, and one for regions, where more than half are gone, naming the rule that took most."""
        lines = []
        for what in _COUNTED:
            given, left = self.total(f"{what}_in"), self.total(f"{what}_out")
            found: Counter[str] = Counter()
            for report in self.sources.values():
                found.update(getattr(report, f"{what}_dropped"))
            gone = found.pop(WITH_IMAGE, 0)  # an image's loss is counted as that
            if found and 2 * left < given - gone:
                (rule, count), *_ = found.most_common()
                hint = _HINTS.get(rule, "")
                lines.append(
                    f"more than half of the {what} are dropped ({found.total()} of {given - gone}), most of them "
                    f"({count}) by {rule}" + (f": {hint}" if hint else "")
                )
        return lines

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON-able values."""
        # Field by field: `asdict` turns a Counter into something else.
        sources = {name: {k: _plain(v) for k, v in vars(report).items()} for name, report in self.sources.items()}
        return {"sources": sources, **{k: _plain(v) for k, v in vars(self).items() if k != "sources"}}

    def __str__(self) -> str:
        lines = []
        for what in _COUNTED:
            lines.append(f"{what:<8} {self.total(f'{what}_out')} of {self.total(f'{what}_in')} kept")
            if dropped := self.reasons(what):
                lines.append(f"  dropped: {dropped}")
        if said := self.total("conversations_in"):
            lines.append(f"conversations {self.total('conversations_out')} of {said} kept, the others went with images")
        lines += [
            f"  {name}: {s.images_out} of {s.images_in} images, {s.regions_out} of {s.regions_in} regions"
            for name, s in sorted(self.sources.items())
        ]
        return "\n".join(lines)


def _plain(value: Any) -> Any:
    return dict(value.most_common()) if isinstance(value, Counter) else value


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
        dropped = _choose(corpus, passed, curation, report, fingerprints, workers, writer.folder)
        thinning = _Thinning(passed, curation.repeats)
        pictures = tqdm(corpus, "write", len(corpus), unit=" images", disable=not progress)
        for record in _kept(pictures, dropped, thinning, curation, report):
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
) -> dict[int, str]:
    """Why rows that passed the filters are dropped all the same. `unfinished` is a folder for passing files."""
    reasons: dict[int, str] = {}
    left = np.ones(len(passed), dtype=bool)

    def drop(entry: int, reason: str) -> None:
        reasons[int(passed.rows[entry])] = reason
        left[entry] = False

    if len(passed) and (curation.exact_duplicates or curation.near_duplicates):
        # Beside what is written, not in the system's folder: what a killed run leaves is cleared by the next one.
        with tempfile.TemporaryDirectory(dir=unfinished) as folder:
            file = _fingerprints(corpus, passed, fingerprints, Path(folder), workers)
            file.check_holds(passed.rows)
            entries = np.searchsorted(file.rows, passed.rows)
            problems = (file.problems.get(i) for i in entries.tolist())
            report.without_fingerprint.update(problem for problem in problems if problem not in (None, NO_PICTURE))
            for reason, group in _copies(file, entries, curation):
                report.groups[reason] += 1
                # From places in the file to places among those that passed; earlier groups may have taken some.
                members = [i for i in np.searchsorted(entries, group).tolist() if left[i]]
                for entry in set(members) - {passed.best(members)} if members else ():
                    drop(entry, reason)
    open_rows = np.flatnonzero(left)
    over_cap, over_weight = mix(
        passed.source[open_rows], passed.draw[open_rows], passed.sources, curation.caps, curation.weights
    )
    for entry in open_rows[over_cap].tolist():
        drop(entry, "cap")
    for entry in open_rows[over_weight].tolist():
        drop(entry, "weight")
    return reasons


def _fingerprints(
    corpus: Corpus, passed: PassedImages, kept: Path | None, folder: Path, workers: int
) -> FingerprintFile:
    if kept is None:
        return store_fingerprints(corpus, folder / "fingerprints.parquet", passed.rows, workers)
    if kept.exists():
        return FingerprintFile(kept, corpus)
    return store_fingerprints(corpus, kept, None, workers)


def _copies(
    file: FingerprintFile, entries: np.ndarray[Any, np.dtype[np.int64]], curation: Curation
) -> Iterator[tuple[str, list[int]]]:
    if curation.exact_duplicates:
        yield from (("exact-duplicate", group) for group in exact_groups(file.sha256, entries))
    if curation.near_duplicates:
        yield from (("near-duplicate", group) for group in near_groups(file, entries, curation.similarity))


class _Thinning:
    """Thins out the texts that are repeated too often."""

    def __init__(self, passed: PassedImages, repeats: Repeats) -> None:
        self._repeats = repeats
        self._allowed = passed.allowed(repeats)
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


def _kept(
    records: Iterable[RegionImage],
    dropped: dict[int, str],
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
            source.conversations_in += len(record.conversations)
            yield record

    for row, filtered in enumerate(apply_filters(counted(), curation.filters)):
        record, source = filtered.record, report.of(filtered.record.source)
        source.regions_dropped.update(filtered.regions)
        reason = filtered.reason or dropped.get(row)
        if reason is None:
            pairs = zip(filtered.places, record.regions, strict=True)
            regions = [region for place, region in pairs if not thinning.drops(record, place, region)]
            if len(regions) < len(record.regions):
                source.regions_dropped["repeated-text"] += len(record.regions) - len(regions)
                record = replace(record, regions=regions)
                reason = too_few(record, curation.filters)
        if reason is not None:
            source.images_dropped[reason] += 1
            source.regions_dropped.update([WITH_IMAGE] * len(record.regions))
            continue
        source.images_out += 1
        source.regions_out += len(record.regions)
        source.conversations_out += len(record.conversations)
        for region in record.regions:
            if not region.ignore:
                name = script(region.text)
                source.scripts[name] += 1
                source.languages[language(region.text, name)] += 1
        yield record
