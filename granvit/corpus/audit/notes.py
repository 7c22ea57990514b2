"""What a reader of an audit must know in order not to misread its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from granvit.corpus.audit.human import HumanScores, KindScores
from granvit.page import percent

if TYPE_CHECKING:
    from granvit.corpus.audit.run import Audit


def counted(number: int, noun: str) -> str:
    """ "1 image", "2,000 images"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def notes(result: Audit) -> list[str]:
    """One sentence or two about each thing to know, the gravest first."""
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
        how = f"found boxes that hold several of people's: {mine.merged:,}, holding {mine.merged_true:,}"
    else:
        how = f"people's boxes that hold several found ones: {mine.split:,}, holding {mine.split_found:,}"
    return [
        f"{source}, {kind}: the two corpora cut differently, as lines hold words ({how}). One-to-one precision and "
        f"recall suffer from that alone. In whatever grouping, {percent(covered.value)} of people's boxes lie in "
        f"found ones by half or more, and {percent(supported.value)} of the found ones in people's."
    ]


def _case_note(source: str, mine: KindScores) -> list[str]:
    with_case, without = mine.scores.get("cer"), mine.scores.get("cer_any_case")
    if with_case is None or without is None or with_case.value < 1.5 * without.value:
        return []
    return [
        f"{source}: the character error rate is {percent(with_case.value)} where letter case counts and "
        f"{percent(without.value)} where it doesn't: one of the two corpora may write in capitals whatever the print."
    ]
