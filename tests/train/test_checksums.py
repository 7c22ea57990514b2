"""Training reads here and there; every shard is held to its checksum all the same, once, and the run says so."""

import os
import stat
import threading

import pytest
from helpers.drawn import corpus as write_corpus
from helpers.drawn import jpeg, picture, record
from helpers.tiny_recipe import save_parts, tiny_recipe

from granvit.corpus.derive import training_part
from granvit.corpus.layout import CorpusError
from granvit.corpus.store import Corpus, ShardCheck
from granvit.corpus.synthetic.synthesize import synthesize
from granvit.train.run import run_recipe


@pytest.fixture
def found(tmp_path):
    pictures = [jpeg(picture(number, (80, 64))) for number in range(4)]
    return write_corpus(tmp_path / "in", [record(f"{i}", pictures[i % 4], (80, 64)) for i in range(50)])


def damage(path):
    """Flips a bit that nothing but the checksum tells of."""
    data = bytearray(path.read_bytes())
    data[data.index(b"huggingface")] ^= 1
    path.write_bytes(bytes(data))


def test_each_shard_is_checked_by_one_of_several_processes(found, monkeypatch):
    checked = []
    monkeypatch.setattr(Corpus, "check_shard", lambda self, shard: checked.append(shard))
    for rank in range(2):
        # The same corpus in two parts counts once; what has no files, not at all.
        with ShardCheck([found, training_part(found), [record("x", None)]], rank, 2) as check:
            check.finish()
    assert checked == [0, 2, 1]


def test_work_goes_on_until_damage_is_found_and_no_further(found):
    damage(found.path / "part-00002.parquet")
    done = []
    with ShardCheck([found]) as check:
        work = check.before(done.append)
        with pytest.raises(CorpusError, match="part-00002.parquet: the checksum differs"):
            check.finish()
        with pytest.raises(CorpusError, match="part-00002.parquet: the checksum differs"):
            work(1)
    assert done == []
    with ShardCheck([Corpus(found.path)], rank=0, ranks=3) as check:
        check.finish()
        check.before(done.append)(1)
    assert done == [1]


def test_a_check_that_is_left_ends(found, monkeypatch):
    began, checked = threading.Event(), []

    def slow(self, shard):
        checked.append(shard)
        began.wait(5)

    monkeypatch.setattr(Corpus, "check_shard", slow)
    with ShardCheck([found]) as check:
        check._stopped.set()
        began.set()
    assert len(checked) <= 1


def test_a_run_on_a_damaged_corpus_ends_and_publishes_nothing(tmp_path):
    drawn = synthesize(tmp_path / "corpus", 8, 1, 64, 0.4, workers=1, progress=False)
    damage(drawn.path / "part-00000.parquet")
    parts = save_parts(tmp_path / "parts")
    with pytest.raises(CorpusError, match="part-00000.parquet: the checksum differs"):
        run_recipe(tiny_recipe(parts), tmp_path / "run", [(Corpus(drawn.path), 1.0)], device="cpu")
    assert not (tmp_path / "run" / "checkpoint").exists() and not (tmp_path / "run" / "stage1" / "model").exists()


def test_whoever_may_read_a_run_may_read_its_weights(tmp_path):
    drawn = synthesize(tmp_path / "corpus", 8, 1, 64, 0.4, workers=1, progress=False)
    mask = os.umask(0o027)
    try:
        run_recipe(tiny_recipe(save_parts(tmp_path / "parts"), 1), tmp_path / "run", [(drawn, 1.0)], device="cpu")
    finally:
        os.umask(mask)
    weights = sorted((tmp_path / "run").rglob("*.safetensors"))
    assert len(weights) >= 8  # of checkpoints to resume from, of each stage, and of the last
    assert {stat.S_IMODE(file.stat().st_mode) for file in weights} == {0o640}
