"""The results that docs/study.md reports are of today's definitions, and its tables what today's code makes of them."""

from pathlib import Path

import pytest

from granvit.nano.study import nano_longer, nano_study
from granvit.study.arms import PAPER_ARM
from granvit.study.jobs import Data, jobs_of
from granvit.study.report import markdown
from granvit.study.results import FOLDER, find_result
from granvit.study.summary import summarise
from granvit.train.identity import decisive

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(
    scope="module", params=[(nano_study, 3, "study"), (nano_longer, 2, "study/longer")], ids=["nano", "longer"]
)
def published(request):
    define, seeds, where = request.param
    study, folder = define(), DOCS / where
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
