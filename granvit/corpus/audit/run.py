"""The audit of a corpus: statistics, agreement, human boxes, and a sheet of pictures; a page and its numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from granvit.corpus.audit import agreement
from granvit.corpus.audit.agreement import Check
from granvit.corpus.audit.counts import Duplication, Refusals, count_duplicates, count_refusals
from granvit.corpus.audit.human import HumanScores, Join, against_human, group, join
from granvit.corpus.audit.page import write_audit_page
from granvit.corpus.audit.sheet import Card, make_card, sample
from granvit.corpus.check import each_rejection
from granvit.corpus.layout import MANIFEST, QUARANTINE, CorpusError
from granvit.corpus.stats import SourceStatistics, Statistics
from granvit.corpus.store import Corpus
from granvit.files import sha256, write_text
from granvit.images import ImageError, decode
from granvit.page import percent
from granvit.regions import RegionImage

_NAMED_SCORES = {
    "precision": "precision",
    "recall": "recall",
    "cer": "CER",
    "cer_any_case": "CER but for case",
    "rouge_l": "ROUGE-L",
}
PAGE, NUMBERS = "index.html", "audit.json"


@dataclass
class Audit:
    """What was found.

    Attributes:
        corpus, against: the audited corpus and the human one, or None.
        seed: of the sample and of the intervals.
        statistics: by source.
        refusals: the corpus's quarantine.
        duplication: by source, or None where nobody looked for it.
        human: the scores against human boxes, or None.
        checks: those that were run, with their scores inside.
        cards: the sampled images.
    """

    corpus: Corpus
    against: Corpus | None
    seed: int
    statistics: dict[str, SourceStatistics]
    refusals: Refusals
    duplication: dict[str, Duplication] | None
    human: HumanScores | None
    checks: Sequence[Check] = ()
    cards: list[Card] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """All numbers, and the ids of the sample; the same corpus, settings and models give the same JSON."""
        return {
            "format": "granvit-audit",
            "corpus": {
                "path": str(self.corpus.path),
                "manifest_sha256": sha256(self.corpus.path / MANIFEST),
                "images": len(self.corpus),
                "regions": self.corpus.manifest["regions"],
            },
            "against": str(self.against.path) if self.against else None,
            "seed": self.seed,
            "statistics": {name: source.to_json() for name, source in self.statistics.items()},
            "duplicates": {name: found.to_json() for name, found in self.duplication.items()}
            if self.duplication
            else None,
            "quarantine": self.refusals.to_json(),
            "human": self.human.to_json() if self.human else None,
            "checks": [agreement.to_json(check, self.seed) for check in self.checks],
            "sample": [{"id": card.id, "source": card.source, "reasons": card.counts} for card in self.cards],
        }

    def summary(self) -> str:
        """A few lines for the terminal."""
        lines = [f"{self.corpus.path}: {len(self.corpus):,} images, {self.corpus.manifest['regions']:,} regions"]
        for source, kinds in (self.human.sources if self.human else {}).items():
            for kind, mine in kinds.items():
                named = {name: e for name, e in mine.scores.items() if e and name in _NAMED_SCORES}
                values = ", ".join(f"{_NAMED_SCORES[name]} {percent(e.value)}" for name, e in named.items())
                lines.append(f"{source or '(no source)'}, {kind}: {values}")
        for check in self.checks:
            for source, scores in check.scores(self.seed).items():
                values = ", ".join(f"{name} {percent(e.value)}" for name, e in scores.items() if e)
                lines.append(f"{source or '(no source)'}, {check.name} ({check.by}): {values}")
        return "\n".join(lines)


def audit(
    corpus: Corpus,
    against: Corpus | None = None,
    count: int = 48,
    seed: int = 0,
    checks: Sequence[Check] = (),
    duplicates: bool = True,
    fingerprints: Path | None = None,
    progress: bool = False,
) -> Audit:
    """Look at a corpus, and compare it with human annotations of the same images where `against` is given.

    Statistics and human boxes are counted over the whole corpus; checks and pictures are of a sample of `count`
    images, drawn from those that both corpora have where there is a human one. `duplicates` are counted over the whole
    corpus, with `fingerprints` as `count_duplicates` has them.

    Raises:
        CorpusError: a corpus is damaged, they have no image in common, or the human one has no regions.
    """
    if against is not None and not against.manifest["regions"]:
        raise CorpusError(f"{against.path}: has no regions to compare with")
    joined = join(corpus, against) if against is not None else None
    statistics = Statistics.of(corpus.records())
    human = against_human(corpus.records(), joined, seed) if joined is not None else None
    quarantine = corpus.path / QUARANTINE
    rejections = each_rejection(quarantine) if quarantine.exists() else iter(())
    refusals = count_refusals(rejections, statistics, seed)
    duplication = count_duplicates(corpus, fingerprints) if duplicates else None
    result = Audit(corpus, against, seed, statistics, refusals, duplication, human, checks)
    chosen = sample(_candidates(corpus, joined), count, seed)
    for position in tqdm(chosen, desc="audit", unit="img", disable=not progress):
        result.cards.append(_card(corpus, position, human, checks))
    return result


def _candidates(corpus: Corpus, joined: Join | None) -> Iterator[tuple[int, str, str]]:
    for position, record in enumerate(corpus.records()):
        if not record.text_only and (joined is None or record.id in joined.human):
            yield position, record.source, record.id


def _card(corpus: Corpus, position: int, human: HumanScores | None, checks: Sequence[Check]) -> Card:
    record = corpus[position]
    picture = _picture(corpus, record)
    opinions = {check.name: check(record, picture) for check in checks} if picture else {}
    if human is None:
        return make_card(record, picture, None, (), opinions)
    people = human.join.human[record.id]
    kinds = list(human.sources.get(group(record, people), {}))
    return make_card(record, picture, people, kinds, opinions)


def _picture(corpus: Corpus, record: RegionImage) -> Image.Image | None:
    if record.image is None:
        return None
    try:
        return decode(record.image)
    except ImageError as error:
        raise CorpusError(f"{corpus.path}: image {record.id!r}: {error}") from error


def check_out(out: Path) -> None:
    """Whether the audit may be written there.

    Raises:
        CorpusError: `out` is a file, or a corpus.
    """
    if out.is_file() or (out / MANIFEST).exists():
        raise CorpusError(f"{out} is a {'file' if out.is_file() else 'corpus'}: choose another folder for the audit")


def write_audit(result: Audit, out: Path) -> None:
    """Write the page and its numbers into the folder `out`, see `check_out`."""
    write_text(out / NUMBERS, json.dumps(result.to_json(), indent=1, ensure_ascii=False))
    write_audit_page(result, out / PAGE)
