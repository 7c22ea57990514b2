"""Distributions of a corpus, as bars that the page's style draws."""

from __future__ import annotations

from typing import Any

import numpy as np

from granvit.corpus.stats import Histogram, KindStatistics, SourceStatistics

_TOP = 14


def distributions(statistics: dict[str, SourceStatistics]) -> list[dict[str, Any]]:
    """For each source and kind: histograms, the map of positions, and the most frequent words and texts."""
    return [
        {
            "source": source,
            "kind": kind,
            "panels": _panels(mine),
            "positions": _positions(mine),
            "words": mine.vocabulary.to_json(_TOP),
            "texts": mine.texts.to_json(6),
            "scripts": _shares(dict(mine.scripts.most_common(4))),
            "languages": _shares(dict(mine.languages.most_common(5))),
            "by": ", ".join(sorted(mine.box_by.keys() | mine.text_by.keys())),
        }
        for source, found in statistics.items()
        for kind, mine in sorted(found.kinds.items())
        if mine.regions > mine.ignored
    ]


def _panels(mine: KindStatistics) -> list[dict[str, Any]]:
    named = [
        ("Box size", "√area, px", mine.box_side),
        ("Box area", "share of the image", mine.box_share),
        ("Box aspect", "width / height", mine.box_aspect),
        ("Text length", "characters", mine.characters),
        ("Words", "per text", mine.word_counts),
        ("Score", "of the annotator", mine.scores),
    ]
    return [{"name": name, "unit": unit, **_bars(found)} for name, unit, found in named if found.total]


def _bars(histogram: Histogram) -> dict[str, Any]:
    """The occupied bins from the first to the last, as heights in percent of the highest."""
    occupied = np.flatnonzero(histogram.counts)
    first, last = int(occupied[0]), int(occupied[-1])
    highest, total = int(histogram.counts.max()), histogram.total
    bars = []
    for i in range(first, last + 1):
        count = int(histogram.counts[i])
        span = f"{_plain(histogram.edges[i])} to {_plain(histogram.edges[i + 1])}"
        bars.append({"height": round(100 * count / highest, 1), "title": f"{span}: {count:,} ({count / total:.1%})"})
    ends = [_plain(histogram.edges[first]), _plain(histogram.edges[last + 1])]
    quantiles = [_plain(histogram.quantile(share) or 0.0) for share in (0.05, 0.5, 0.95)]
    return {"bars": bars, "ends": ends, "quantiles": quantiles}


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _positions(mine: KindStatistics) -> list[list[dict[str, Any]]]:
    highest = max(int(mine.positions.max()), 1)
    return [
        [{"opacity": round(count / highest, 3), "count": count} for count in row] for row in mine.positions.tolist()
    ]


def _shares(counts: dict[str, int]) -> str:
    total = max(sum(counts.values()), 1)
    return ", ".join(f"{name} {count / total:.0%}" for name, count in counts.items())
