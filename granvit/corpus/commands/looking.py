"""``granvit corpus stats``, ``head`` and ``show``: what is in a corpus."""

from __future__ import annotations

import json
import sys
import textwrap
import webbrowser
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tyro.conf import Positional

from granvit.corpus.commands.common import fail
from granvit.corpus.derive import sample
from granvit.corpus.layout import CorpusError
from granvit.corpus.stats import KindStatistics, SourceStatistics, Statistics
from granvit.corpus.store import Corpus

SHOWN_CHARACTERS = 100


@dataclass
class Stats:
    """Count what is in a corpus, source by source: images, regions, sizes, texts, languages. Reads no picture."""

    corpus: Positional[Path]
    """The corpus folder."""
    json: bool = False
    """Print everything there is, histograms included, as JSON."""

    def run(self) -> int:
        """Exit status: 0, or 1 when there is no such corpus."""
        try:
            corpus = Corpus(self.corpus)
            bar = tqdm(corpus.records(), total=len(corpus), unit=" images", disable=not sys.stderr.isatty())
            sources = Statistics.of(bar)
        except CorpusError as error:
            return fail(str(error))
        if self.json:
            print(json.dumps({name: found.to_json() for name, found in sources.items()}, ensure_ascii=False))
            return 0
        print(f"{self.corpus}: {len(corpus)} images, {corpus.manifest['regions']} regions")
        for name, found in sorted(sources.items()):
            print("\n".join(_lines(name, found)))
        return 0


def _lines(name: str, source: SourceStatistics) -> list[str]:
    splits = _shares(source.splits, source.images, "no split")
    lines = [
        f"\n{name or '(no source)'}: {source.images} images ({splits}), {source.empty} without regions, "
        f"{source.captioned} with a caption",
        f"  image    short side {_spread(source.short_side.to_json())} px",
    ]
    for kind, found in sorted(source.kinds.items()):
        lines += _kind_lines(kind, found)
    return lines


def _kind_lines(kind: str, found: KindStatistics) -> list[str]:
    counted = found.regions - found.ignored
    texts, words = found.texts.to_json(), found.vocabulary.to_json()
    common = ", ".join(f"{_short(text)!r} {count}" for text, count in texts["top"][:3])
    lines = [
        f"  {kind:<8} {found.regions} regions, {found.ignored} to be ignored; by {', '.join(found.box_by) or 'nobody'}",
        f"           box side {_spread(found.box_side.to_json())} px, width / height "
        f"{_spread(found.box_aspect.to_json(), 2)}",
        f"           {_spread(found.characters.to_json())} characters, {_at_least(texts)} texts, "
        f"{_at_least(words)} words; most frequent: {common or 'none'}",
        f"           script {_shares(found.scripts, counted)}; language {_shares(found.languages, counted)}",
    ]
    if found.scores.total:
        lines.append(f"           score {_spread(found.scores.to_json(), 2)}")
    return lines


def _spread(histogram: dict[str, Any], digits: int = 0) -> str:
    if not histogram["count"]:
        return "-"
    low, middle, high = (f"{histogram[name]:.{digits}f}" for name in ("p5", "median", "p95"))
    return f"{middle} ({low} to {high})"


def _at_least(frequent: dict[str, Any]) -> str:
    return f"{'' if frequent['exact'] else 'at least '}{frequent['distinct']} different"


def _shares(counts: dict[str, int], total: int, unnamed: str = "") -> str:
    top = sorted(counts.items(), key=lambda item: -item[1])[:4]
    return ", ".join(f"{name or unnamed} {count / max(total, 1):.0%}" for name, count in top) or "none"


def _short(text: str) -> str:
    return textwrap.shorten(text, SHOWN_CHARACTERS, placeholder=" ...")


@dataclass
class Head:
    """Print the first records of a corpus. Reads no picture."""

    corpus: Positional[Path]
    """The corpus folder."""
    count: int = 5
    """How many images."""
    regions: int = 5
    """How many regions of each."""

    def run(self) -> int:
        """Exit status: 0, or 1 when there is no such corpus."""
        try:
            for record in islice(Corpus(self.corpus).records(check=False), self.count):
                about = [f"{record.width}x{record.height}", record.source, record.split, record.licence]
                print(f"{record.id}  {'  '.join(filter(None, about))}")
                if record.caption:
                    print(f"  {_short(record.caption)}")
                for region in record.regions[: self.regions]:
                    box = ", ".join(f"{v:.0f}" for v in region.box)
                    score = "" if region.score is None else f" {region.score:.2f}"
                    text = _short(region.text) or "(no text)"
                    print(f"  {region.kind} [{box}]{score}{' ignored' if region.ignore else ''}  {text}")
                if len(record.regions) > self.regions:
                    print(f"  ... {len(record.regions) - self.regions} more regions")
        except CorpusError as error:
            return fail(str(error))
        return 0


@dataclass
class Show:
    """Draw some images with their boxes into one HTML page.

    Example: granvit corpus show corpus --count 50 --open
    """

    corpus: Positional[Path]
    """The corpus folder."""
    out: Path = Path("show.html")
    """The page to write; it needs nothing else."""
    count: int = 24
    """How many images, chosen by a hash."""
    seed: int = 0
    """Another seed, other images."""
    per_source: bool = False
    """So many of each source."""
    open: bool = False
    """Open the page in the browser."""

    def run(self) -> int:
        """Exit status: 0, or 1 when there is nothing to show."""
        from granvit.corpus.contact_sheet import write_sheet

        try:
            corpus = Corpus(self.corpus)
            chosen = sample(corpus, self.count, self.seed, self.per_source)
            shown = write_sheet(
                (corpus[place] for place in chosen),
                self.out,
                f"{self.corpus.resolve().name}: {len(chosen)} of {len(corpus)} images",
            )
        except CorpusError as error:
            return fail(str(error))
        print(f"{self.out}: {shown} images")
        if self.open:
            webbrowser.open(self.out.resolve().as_uri())
        return 0
