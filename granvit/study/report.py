"""A study as a page, as JSON, as Markdown tables and as plots: written whole from the results that there are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from granvit.evaluate.plots import as_png, as_svg, page_style
from granvit.files import atomic_file, write_text
from granvit.page import write_page
from granvit.study import plots
from granvit.study.arms import PAPER_ARM
from granvit.study.definition import MEASURES, Study
from granvit.study.jobs import Job
from granvit.study.results import Result
from granvit.study.summary import ArmRow, Summary, counted, shown, signed, summarise, summary_json

PAGE, JSON, TABLE, PLOTS = "study.html", "study.json", "study.md", "plots"
# The measures that have a plot of all arms, and that settings are drawn along.
_DRAWN = ("describe", "locate-iou", "attribute-linear", "attribute-attentive", "distinct", "caption", "attention")
_ALONG = ("describe", "locate-iou", "attribute-linear", "rank")
# What the table of all arms shows; the rest is in study.json.
_COLUMNS = (
    *("describe", "describe-exact", "locate", "locate-iou", "caption", "read", "attribute-linear"),
    *("attribute-attentive", "label-linear", "label-attentive", "read-ctc", "distinct", "swapped", "attention"),
)
_CURVES = (("caption", "Loss of the answers, stage 1"), ("distill", "Distillation loss, stage 1"))
_FLOPS = ".flops"


def write_study(study: Study, jobs: Sequence[Job], results: Sequence[Result], out: Path) -> Summary:
    """Write study.html, study.json, study.md and plots/ into `out`; returns what they say.

    Raises:
        GranvitError: results are of different images, which cannot be compared.
    """
    summary = summarise(study, jobs, results, PAPER_ARM)
    write_text(out / JSON, json.dumps(summary_json(summary), indent=1) + "\n")
    write_text(out / TABLE, markdown(summary))
    for name, draw in _figures(summary):
        with page_style():
            figure = draw()
            if figure is not None:
                with atomic_file(out / PLOTS / f"{name}.png") as unfinished:
                    unfinished.write_bytes(as_png(figure))
    write_page(out / PAGE, "study.html.j2", **_content(summary))
    return summary


def _figures(summary: Summary) -> Iterator[tuple[str, Callable[[], Figure | None]]]:
    """All plots by name, drawn when they are called."""
    for measure in _DRAWN:
        yield measure, lambda measure=measure: plots.dots(summary, measure)  # type: ignore[misc]
    for series in summary.study.series:
        name = "along-" + "-".join(series.title.split(",")[0].split()[:3]).replace("'", "")
        yield name, lambda series=series: plots.along(summary, series, _ALONG)  # type: ignore[misc]
    rows = list(summary.rows.values())
    for metric, title in _CURVES:
        yield f"curve-{metric}", lambda m=metric, t=title: plots.curves(_learning(rows, m), "stage1", m, t)  # type: ignore[misc]


def _learning(rows: Sequence[ArmRow], metric: str) -> list[ArmRow]:
    """The arms whose curves are drawn: of the captions' loss few, since most are alike; never copies at equal FLOPs."""
    several = {"global-only", "no-distillation", PAPER_ARM, "merged", "random"}
    return [
        row for row in rows if not row.arm.name.endswith(_FLOPS) and (metric == "distill" or row.arm.name in several)
    ]


def _svg(draw: Callable[[], Figure | None]) -> Markup | None:
    with page_style():
        figure = draw()
        return None if figure is None else as_svg(figure)


def _content(summary: Summary) -> dict[str, Any]:
    """What the template shows."""
    drawn = {name: svg for name, draw in _figures(summary) if (svg := _svg(draw)) is not None}
    return {
        "title": summary.study.title,
        "summary": verdicts(summary),
        "note": summary.study.note,
        "questions": [_question_row(q) for q in summary.questions],
        "columns": [MEASURES[m].title for m in _columns(summary)],
        "notes": [(MEASURES[m].title, MEASURES[m].note) for m in summary.measures],
        "arms": [_arm_row(row, _columns(summary)) for row in summary.rows.values() if row.seeds],
        "equal": _equal_flops(summary),
        "collapse": _collapse(summary),
        "dots": [drawn[m] for m in _DRAWN if m in drawn],
        "series": [svg for name, svg in drawn.items() if name.startswith("along-")],
        "curves": [svg for name, svg in drawn.items() if name.startswith("curve-")],
        "missing": _missing(summary),
        "facts": summary.facts,
        "commands": [f"granvit study {summary.study.name} --out DIR", "granvit study --help"],
    }


def verdicts(summary: Summary) -> str:
    """The whole in two sentences."""
    said = [q.answer for q in summary.questions]
    counts = ", ".join(
        f"{said.count(answer)} {words}"  # type: ignore[arg-type]
        for answer, words in (
            ("holds", "hold"),
            ("does not hold", "do not hold"),
            ("no large gain", "show no large gain"),
            ("cannot be told", "cannot be told at this size"),
        )
    )
    total = sum(row.wanted for row in summary.rows.values())
    state = f"{summary.jobs_done} of {total} jobs are done."
    return f"Of {counted(len(said), 'claim')}, {counts}. {state}" if said else state


def _question_row(question: Any) -> dict[str, str]:
    comparison, difference = question.comparison, question.difference
    found = difference.estimate
    return {
        "question": comparison.question,
        "answer": question.answer,
        "kind": {"holds": "holds", "cannot be told": "open"}.get(question.answer, "not"),
        "sentence": question.sentence,
        "arms": f"{comparison.second} less {comparison.first}",
        "measure": MEASURES[comparison.measure].title,
        "difference": "–" if found is None else signed(found, MEASURES[comparison.measure].percent),
        "p": "–" if difference.adjusted is None else f"{difference.adjusted:.3f}",
        "paper": comparison.paper,
    }


def _columns(summary: Summary) -> list[str]:
    return [m for m in _COLUMNS if m in summary.measures]


def _arm_row(row: ArmRow, columns: Sequence[str]) -> dict[str, Any]:
    return {
        "title": row.arm.title,
        "seeds": len(row.seeds),
        "cells": [shown(row.scores.get(m), MEASURES[m].percent) for m in columns],
        "images": "–" if row.images is None else f"{row.images:,.0f}",
        "flops": "–" if row.relative is None else f"{row.relative:.2f}",
    }


def _equal_flops(summary: Summary) -> list[dict[str, Any]]:
    """Arms at equal images beside themselves at equal FLOPs."""
    rows = []
    for name, row in summary.rows.items():
        twin = summary.rows.get(name + _FLOPS)
        if twin is not None and (row.seeds or twin.seeds):
            cells = [
                (shown(r.scores.get(m), True), r)
                for m in ("describe", "locate-iou", "attribute-linear")
                for r in (row, twin)
            ]
            flops = ["–" if r.relative is None else f"{r.relative:.2f}" for r in (row, twin)]
            images = ["–" if r.images is None else f"{r.images:,.0f}" for r in (row, twin)]
            rows.append({"title": row.arm.title, "cells": [c for c, _ in cells], "flops": flops, "images": images})
    return rows


def _collapse(summary: Summary) -> list[dict[str, str]]:
    """What the distillation's loss came to, with the rank and spread of the features that it compares."""
    rows = []
    for name, row in summary.rows.items():
        lost = [c for stage in row.curves.values() for c in stage.get("distill", [])]
        if (lost or name in ("initial", "no-distillation")) and row.seeds and not name.endswith(_FLOPS):
            first, last = ("–", "–") if not lost else (f"{sum(c[i][1] for c in lost) / len(lost):.3f}" for i in (0, -1))
            rows.append(
                {
                    "title": row.arm.title,
                    "first": first,
                    "last": last,
                    "rank": shown(row.scores.get("rank"), False),
                    "spread": shown(row.scores.get("spread"), True),
                }
            )
    return rows


def _missing(summary: Summary) -> list[str]:
    return [
        f"{summary.rows[name].arm.title}: {'no result yet' if not summary.rows[name].seeds else 'without seed'}"
        + (f" {', '.join(map(str, seeds))}" if summary.rows[name].seeds else "")
        for name, seeds in summary.missing.items()
    ]


def markdown(summary: Summary) -> str:
    """The tables, for papers and for pages of others."""
    lines = [
        "| question | answer | second less first | p (Holm) | the paper |",
        "|---|---|---|---|---|",
    ]
    for question in summary.questions:
        row = _question_row(question)
        what = f"{row['arms']}, {row['measure']}: {row['difference']}"
        lines.append(f"| {row['question']} | **{row['answer']}** | {what} | {row['p']} | {row['paper']} |")
    columns = _columns(summary)
    names = [MEASURES[m].title for m in columns]
    lines += ["", "| arm | seeds | images | FLOPs | " + " | ".join(names) + " |", "|---" * (len(columns) + 4) + "|"]
    for arm in summary.rows.values():
        if arm.seeds:
            cells = _arm_row(arm, columns)
            lines.append(
                f"| {cells['title']} | {cells['seeds']} | {cells['images']} | {cells['flops']} | "
                + " | ".join(cells["cells"])
                + " |"
            )
    if collapse := _collapse(summary):
        lines += ["", "| arm | distillation loss, first | last | effective rank | spread, % |", "|---|---|---|---|---|"]
        lines += [f"| {r['title']} | {r['first']} | {r['last']} | {r['rank']} | {r['spread']} |" for r in collapse]
    if missing := _missing(summary):
        lines += ["", "Not run, or not with all seeds: " + "; ".join(missing) + "."]
    return "\n".join(lines) + "\n"
