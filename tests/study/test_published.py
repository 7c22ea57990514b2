"""The results that docs/study.md reports are of today's definitions, and its tables what today's code makes of them."""

from pathlib import Path

import pytest

from granvit.nano.study import nano_study
from granvit.study.arms import PAPER_ARM
from granvit.study.jobs import Data, jobs_of
from granvit.study.report import markdown
from granvit.study.results import FOLDER, find_result
from granvit.study.summary import summarise
from granvit.train.identity import decisive

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def published():
    study = nano_study()
    corpus = study.base().corpus
    jobs = jobs_of(study, 3, Data(corpus.train, decisive(corpus)))
    results = [result for job in jobs if (result := find_result(DOCS / "study", job)) is not None]
    return study, jobs, results


def test_every_result_is_a_job_of_today(published):
    _, jobs, results = published
    files = {path.stem for path in (DOCS / "study" / FOLDER).glob("*.json")}
    assert len(results) == len(files) > 20
    assert files <= {job.name for job in jobs}


def test_the_page_has_the_tables_that_they_make(published):
    study, jobs, results = published
    page = (DOCS / "study.md").read_text()
    missing = [line for line in markdown(summarise(study, jobs, results, PAPER_ARM)).splitlines() if line not in page]
    assert missing == []
