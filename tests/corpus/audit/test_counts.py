"""Pictures that are there more than once, counted where they could go."""

import io

import numpy as np
import pytest
from helpers.audited import corpus, record
from PIL import Image

from granvit.corpus.audit.counts import Duplication, count_duplicates
from granvit.corpus.layout import CorpusError


def patchwork(seed: int, size=(200, 100), quality=90) -> bytes:
    """A picture of its own for each seed, the same in any size."""
    blocks = np.random.default_rng(seed).integers(0, 256, (10, 20, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@pytest.fixture
def repeated(tmp_path):
    return corpus(
        tmp_path / "corpus",
        record("1", image=patchwork(1)),
        record("2", image=patchwork(2)),
        record("1 again", image=patchwork(1)),
        record("1 smaller", image=patchwork(1, (100, 50), 75), width=100, height=50, source="web"),
        record("3", image=patchwork(3), source="web"),
        record("blank", source="web"),  # plain pictures look alike and say nothing
        record("blank too", source="web"),
        record("no file", image=None, source="web"),
    )


def test_of_each_set_all_but_the_first_are_counted(repeated):
    found = count_duplicates(repeated)
    assert found == {"shop": Duplication(images=3, exact=1, near=1), "web": Duplication(images=2, exact=0, near=1)}
    assert found["shop"].rate == pytest.approx(1 / 3) and found["web"].rate == 0.5


def test_nothing_to_compare(tmp_path):
    [found] = count_duplicates(corpus(tmp_path / "linked", record("a", image=None))).values()
    assert found == Duplication() and found.rate is None


def test_fingerprints_are_kept_and_used_again(repeated, tmp_path, monkeypatch):
    kept = tmp_path / "fingerprints.parquet"
    once = count_duplicates(repeated, kept)
    monkeypatch.setattr("granvit.corpus.audit.counts.store_fingerprints", None)
    assert kept.exists() and count_duplicates(repeated, kept) == once


def test_another_corpus_s_fingerprints_are_refused(repeated, tmp_path):
    count_duplicates(repeated, tmp_path / "kept")
    with pytest.raises(CorpusError, match="kept: these are not the fingerprints of"):
        count_duplicates(corpus(tmp_path / "other", record("a")), tmp_path / "kept")
