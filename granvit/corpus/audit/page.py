"""The audit as one self-contained page: a summary to read in a minute, distributions, and the contact sheet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from granvit.corpus.audit.human import HumanScores, KindScores
from granvit.corpus.stats import Histogram, KindStatistics, SourceStatistics
from granvit.page import percent

if TYPE_CHECKING:
    from granvit.corpus.audit.run import Audit


from pathlib import Path
from typing import TYPE_CHECKING

from granvit.bootstrap import Estimate
from granvit.corpus.audit.sheet import REASONS
from granvit.page import write_page

if TYPE_CHECKING:
    from granvit.corpus.audit.run import Audit

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


def counted(number: int, noun: str) -> str:
    """ "1 image", "2,000 images"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def notes(result: Audit) -> list[str]:
    """One sentence or two about each thing to know, the most serious first."""
    found = _about_people(result.human) if result.human is not None else []
    if result.refusals.total:
        found.append(f"{result.refusals.total:,} images or regions refused on the way in: see the quarantine.")
    empty = sum(statistics.empty for statistics in result.statistics.values())
    if empty:
        found.append(f"{counted(empty, 'image')} without any region.")
    return found


def _about_people(human: HumanScores) -> list[str]:
    found = []
    for source, kinds in human.sources.items():
        for kind, mine in kinds.items():
            found += _granularity_note(source, kind, mine)
            found += _case_note(source, mine)
    if human.join.absent:
        found.append(_absent_note(human))
    if human.join.only_here:
        found.append(f"{counted(human.join.only_here, 'image')} of the corpus without human annotation: not scored.")
    if human.join.other_size:
        found.append(f"{counted(human.join.other_size, 'image')} of another size in the human corpus: not scored.")
    for (source, kind), regions in human.unjudged.items():
        found.append(f"{source}: people annotated no {kind} regions, {counted(regions, 'region')} not judged.")
    return found


def _absent_note(human: HumanScores) -> str:
    join = human.join
    text = f"{counted(join.absent, 'human image')} not in the corpus and left out of the scores."
    for kind, absent in sorted(join.absent_regions.items()):
        mine = [kinds[kind] for kinds in human.sources.values() if kind in kinds]
        matched, true = sum(m.matched for m in mine), sum(m.true for m in mine)
        recall = percent(matched / (true + absent))
        text += f" With their {counted(absent, f'{kind} region')} as misses, recall over all sources would be {recall}."
    return text


def _granularity_note(source: str, kind: str, mine: KindScores) -> list[str]:
    if mine.granularity == "same":
        return []
    covered, supported = (mine.scores[name] for name in ("covered", "supported"))
    if covered is None or supported is None:
        return []
    if mine.granularity == "coarser":
        how = f"found boxes that hold several human ones: {mine.merged:,}, holding {mine.merged_true:,}"
    else:
        how = f"human boxes that hold several found ones: {mine.split:,}, holding {mine.split_found:,}"
    return [
        f"{source}, {kind}: the two corpora cut differently, as lines hold words ({how}). One-to-one precision and "
        f"recall suffer from that alone. In whatever grouping, {percent(covered.value)} of human boxes lie in "
        f"found ones by half or more, and {percent(supported.value)} of the found ones in human ones."
    ]


def _case_note(source: str, mine: KindScores) -> list[str]:
    with_case, without = mine.scores.get("cer"), mine.scores.get("cer_any_case")
    if with_case is None or without is None or with_case.value < 1.5 * without.value:
        return []
    return [
        f"{source}: the character error rate is {percent(with_case.value)} where letter case counts and "
        f"{percent(without.value)} where it doesn't: one of the two corpora may write in capitals whatever is printed."
    ]


# Check -> source -> score.
Checked = dict[str, dict[str, dict[str, Estimate | None]]]

# Column of the table by source -> the score it shows, by kind of region.
_HUMAN = {
    "Precision": {"text": "precision", "object": "precision"},
    "Recall": {"text": "recall", "object": "recall"},
    "Covered": {"text": "covered", "object": "covered"},
    "CER": {"text": "cer_any_case"},
    "ROUGE-L": {"object": "rouge_l"},
}
_CHECKS = {
    "reread": ("text", {"Re-read CER": "cer_any_case"}),
    "detector": ("object", {"Confirmed": "confirmed"}),
    "captioner": ("object", {"2nd caption": "rouge_l"}),
}
_CHECK_TITLES = {"reread": "Re-read", "detector": "Second detector", "captioner": "Second captioner"}
_MEANINGS = {
    "Precision": "boxes that people drew too",
    "Recall": "human boxes that are here",
    "Covered": "human boxes that lie in found ones by half, however grouped",
    "CER": "wrong characters of matched texts, letter case aside",
    "ROUGE-L": "words that matched captions share with people's",
    "Re-read CER": "characters that differ when the crop is read alone",
    "Confirmed": "boxes that a second detector draws too",
    "2nd caption": "words shared with a second captioner, ROUGE-L",
}


def write_audit_page(result: Audit, path: Path) -> None:
    """Write the page; it needs no network to be read."""
    checks = {check.name: check.scores(result.seed) for check in result.checks}
    rows = _rows(result, checks)
    used = [name for name in _MEANINGS if any(name in row["scores"] for row in rows)]
    shown = {reason for card in result.cards for reason in card.counts}
    write_page(
        path,
        "audit.html.j2",
        title=f"Audit of {result.corpus.path.resolve().name}",
        summary=_summary(result),
        headlines=_headlines(result, checks),
        notes=notes(result),
        columns={name: _MEANINGS[name] for name in used},
        rows=rows,
        distributions=distributions(result.statistics),
        cards=result.cards,
        reasons={name: reason for name, reason in REASONS.items() if name in shown},
        sources=sorted(result.statistics),
        refusals=result.refusals,
        facts=_facts(result),
    )


def _summary(result: Audit) -> str:
    images, regions = counted(len(result.corpus), "image"), counted(result.corpus.manifest["regions"], "region")
    text = f"{images} with {regions} from {counted(len(result.statistics), 'source')}"
    if result.against is None:
        return f"{text}. No human annotation was given to compare with."
    joined = len(result.human.join.human) if result.human else 0
    return f"{text}; {joined:,} of them also in the human-annotated {result.against.path.resolve().name}."


def _estimate(estimate: Estimate | None) -> dict[str, str] | None:
    if estimate is None:
        return None
    interval = "" if estimate.low is None else f"{100 * estimate.low:.1f}–{100 * (estimate.high or 0):.1f}"
    return {"value": percent(estimate.value), "interval": interval}


def _rows(result: Audit, checks: Checked) -> list[dict[str, Any]]:
    """One row for each source and kind: what there is, and how good it is as far as anybody was asked.

    Where the human data set has another name than the source, it has rows of its own below.
    """
    people = result.human.sources if result.human else {}
    rows = []
    for source, statistics in result.statistics.items():
        for kind, mine in sorted(statistics.kinds.items()):
            scores = {**_human_cells(people, source, kind), **_check_cells(checks, source, kind)}
            rows.append(
                {
                    "source": source,
                    "kind": kind,
                    "images": f"{statistics.images:,}",
                    "regions": f"{mine.regions:,}",
                    "ignored": f"{mine.ignored:,} to ignore" if mine.ignored else "",
                    "side": _number(mine.box_side.quantile(0.5)),
                    "length": _number((mine.characters if kind == "text" else mine.word_counts).quantile(0.5)),
                    "unit": "characters" if kind == "text" else "words",
                    "duplicates": _duplicates(result, source),
                    "score": "–" if not mine.scores.total else f"{mine.scores.quantile(0.5):.2f}",
                    "scores": scores,
                }
            )
        if not statistics.kinds:
            row = dict.fromkeys(("ignored", "side", "length", "unit", "score"), "")
            counts = {"images": f"{statistics.images:,}", "regions": "0", "duplicates": _duplicates(result, source)}
            rows.append({**row, **counts, "source": source, "kind": "", "scores": {}})
    for source in people.keys() - result.statistics.keys():
        for kind, judged in people[source].items():
            row = dict.fromkeys(("ignored", "side", "length", "unit", "score", "duplicates"), "")
            counts = {"images": f"{judged.images:,}", "regions": f"{judged.found:,}"}
            rows.append({**row, **counts, "source": source, "kind": kind, "scores": _human_cells(people, source, kind)})
    return sorted(rows, key=lambda row: (row["source"], row["kind"]))


def _duplicates(result: Audit, source: str) -> str:
    rate = result.duplication[source].rate if result.duplication else None
    return "–" if rate is None else percent(rate)


def _human_cells(people: dict[str, dict[str, KindScores]], source: str, kind: str) -> dict[str, dict[str, str]]:
    mine = people.get(source, {}).get(kind)
    wanted = {column: names[kind] for column, names in _HUMAN.items() if kind in names} if mine else {}
    return {column: cell for column, name in wanted.items() if mine and (cell := _estimate(mine.scores[name]))}


def _check_cells(checks: Checked, source: str, kind: str) -> dict[str, dict[str, str]]:
    cells = {}
    for check, scores in checks.items():
        its_kind, columns = _CHECKS[check]
        for column, name in columns.items():
            if kind == its_kind and source in scores and (cell := _estimate(scores[source][name])):
                cells[column] = cell
    return cells


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _headlines(result: Audit, checks: Checked) -> list[dict[str, str]]:
    """The figures to see first, of the largest source and kind that was judged."""
    cards = []
    judged = [
        (s, k, m) for s, kinds in (result.human.sources if result.human else {}).items() for k, m in kinds.items()
    ]
    if judged:
        source, kind, mine = max(judged, key=lambda entry: entry[2].true)
        where = f"{kind} regions of {source}" if source else f"{kind} regions"
        cards += [
            _headline("Precision", mine.scores["precision"], where, "found boxes that people drew too"),
            _headline("Recall", mine.scores["recall"], where, "human boxes that were found"),
        ]
        if kind == "text":
            cards.append(
                _headline("Character errors", mine.scores["cer_any_case"], where, "of matched texts, case aside")
            )
        else:
            cards.append(_headline("ROUGE-L", mine.scores["rouge_l"], where, "of matched captions"))
    for check in result.checks:
        scores = checks[check.name]
        if scores:
            source = max(scores, key=lambda name: result.statistics[name].images)
            column, name = next(iter(_CHECKS[check.name][1].items()))
            cards.append(_headline(column, scores[source][name], source, _MEANINGS[column]))
    return [card for card in cards if card]


def _headline(name: str, estimate: Estimate | None, where: str, meaning: str) -> dict[str, str]:
    cell = _estimate(estimate)
    return {"name": name, "where": where, "meaning": meaning, **cell} if cell else {}


def _facts(result: Audit) -> dict[str, str]:
    facts = {"Corpus": str(result.corpus.path)}
    if result.against is not None and result.human is not None:
        joined = result.human.join
        facts["Human annotation"] = str(result.against.path)
        facts["Joined"] = f"{joined.by_id:,} images by their id, {joined.by_content:,} by the sha256 of their file"
        facts["Matching"] = (
            "one to one, greedily by IoU, at IoU 0.5 or more. Regions that people marked to be ignored are no misses; "
            "a found box without a partner that lies in them by more than half is not counted as false."
        )
        facts["Texts"] = (
            "character error rate of matched regions: edit distance over the characters of people's text, summed over "
            "all; white space counts as one blank, and one text costs at most its own length."
        )
    for check in result.checks:
        facts[_CHECK_TITLES[check.name]] = f"{check.by}, asked about the sample only"
    if result.duplication is not None:
        facts["Duplicates"] = (
            "images of which an earlier one of the corpus is the same file or shows the same picture, resized, "
            "recompressed or mirrored; blank pictures are left out."
        )
    facts["Sample"] = f"{len(result.cards)} images by a hash with seed {result.seed}, spread evenly over the sources"
    facts["Intervals"] = "95%, bootstrap over images (1,000 draws)"
    return facts
