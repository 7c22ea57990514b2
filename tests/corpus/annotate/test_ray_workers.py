"""Ray actors make the same corpus as local processes, through an image that kills them too."""

import pytest
from helpers.cheap import contents, plan, png
from helpers.paths import PYTHONPATH

from granvit.corpus.annotate.base import AnnotateError
from granvit.corpus.annotate.pipeline import annotate
from granvit.corpus.check import verify

pytest.importorskip("ray")
pytestmark = pytest.mark.slow


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02d}{'kill' if number == 12 else ''}.png").write_bytes(
            png(number)[: 50 if number == 5 else None]
        )
    return folder


def test_the_same_corpus_as_local_processes(photos, tmp_path):
    annotate(photos, tmp_path / "local", plan(), workers=1, device="cpu")
    summary = annotate(photos, tmp_path / "ray", plan(), workers=2, ray="local", device="cpu")
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    assert verify(tmp_path / "ray") == []
    assert summary.counts.images_written == 28
    assert summary.counts.reasons["crashed-annotator"] == 1


def test_a_missing_model_is_reported(photos, tmp_path):
    with pytest.raises(AnnotateError, match="not installed"):
        annotate(photos, tmp_path / "out", plan(absent=True), workers=1, ray="local", device="cpu")


def test_a_cluster_that_is_not_there_is_reported(photos, tmp_path):
    with pytest.raises(AnnotateError, match="cannot be reached or started"):
        annotate(photos, tmp_path / "out", plan(), workers=1, ray="127.0.0.1:1", device="cpu")
