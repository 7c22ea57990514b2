"""The results that docs/study.md reports are of today's definitions, and its tables what today's code makes of them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from granvit.nano.study import nano_longer, nano_smollm2, nano_study
from granvit.study.arms import PAPER_ARM
from granvit.study.jobs import Data, jobs_of
from granvit.study.report import markdown
from granvit.study.results import FOLDER, find_result
from granvit.study.statistics import of_pair
from granvit.study.summary import summarise
from granvit.train.identity import decisive

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(
    scope="module",
    params=[(nano_study, 5, "study"), (nano_longer, 3, "study/longer"), (nano_smollm2, 3, "study/smollm2")],
    ids=["nano", "longer", "smollm2"],
)
def published(request):
    define, seeds, where = request.param
    study, folder = define(), DOCS / where
    # A language model of a folder is known by its digest, and need not be here.
    language = json.loads(min(folder.glob(f"{FOLDER}/*.json")).read_text())["settings"]["language"]
    study = replace(study, base=lambda base=study.base: replace(base(), language=language))
    corpus = study.base().corpus
    jobs = jobs_of(study, seeds, Data(corpus.train, decisive(corpus)))
    results = [result for job in jobs if (result := find_result(folder, job)) is not None]
    return study, jobs, results, folder


def test_every_result_is_a_job_of_today(published):
    _, jobs, results, folder = published
    files = {path.stem for path in (folder / FOLDER).glob("*.json")}
    assert len(results) == len(files) >= 8
    assert files <= {job.name for job in jobs}


def test_the_page_has_the_tables_that_they_make(published):
    study, jobs, results, _ = published
    page = (DOCS / "study.md").read_text()
    missing = [line for line in markdown(summarise(study, jobs, results, PAPER_ARM)).splitlines() if line not in page]
    assert missing == []


def test_the_page_says_how_many_jobs_there_are_and_what_they_took(published):
    study, _, results, _ = published
    paragraphs = (DOCS / "study.md").read_text().split("\n\n")
    said = next(text for text in paragraphs if text.startswith(f"`granvit study {study.name} "))
    count = {15: "Fifteen"}.get(len(results), len(results))
    hours = sum(result.cost["seconds"] for result in results) / 3600
    assert f"{count} jobs, {hours:.1f} hours by their own clocks" in said.replace("\n", " ")


# What the page says of arms that no question of the study names: (first, second, measure).
PAIRS = {
    "nano": (
        ("global-only", "no-distillation", "attribute-linear"),
        ("global-only", "no-distillation", "describe"),
        ("no-distillation", PAPER_ARM, "attribute-linear"),
        ("lambda-0.1", "no-distillation", "describe"),
        ("contrast", "no-distillation", "attribute-linear"),
        ("contrast.flops", "no-distillation.flops", "describe"),
        ("merged.flops", PAPER_ARM, "locate-iou"),
        ("encoder-trained.flops", PAPER_ARM, "locate-iou"),
    ),
    "nano-smollm2": (
        ("initial", "no-distillation", "attribute-linear"),
        ("initial", "global-only", "attribute-linear"),
        ("initial", "contrast", "attribute-linear"),
        ("global-only", "no-distillation", "attribute-linear"),
        ("no-distillation", PAPER_ARM, "attention"),
    ),
}


def test_pairs_that_the_page_compares_besides_differ_by_as_much(published):
    study, _, results, _ = published
    page = (DOCS / "study.md").read_text()
    for first, second, measure in PAIRS.get(study.name, ()):
        of = [[result for result in results if result.arm == name] for name in (first, second)]
        found = of_pair(*of, measure).estimate
        before, *others = page.split(f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]")
        assert others, (first, second)
        assert any(f"{abs(100 * found.value):.1f}" in text[-50:] for text in (before, *others[:-1])), (first, second)
