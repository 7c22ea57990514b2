"""Corpora made of others keep their records as they are, choose the same ones everywhere, and refuse double ids."""

from dataclasses import replace

import pytest
from helpers.drawn import corpus, record

from granvit.corpus.check import verify
from granvit.corpus.derive import merge, records_at, sample, split, write_part
from granvit.corpus.layout import CorpusError
from granvit.corpus.store import Corpus
from granvit.regions import Region


def numbered(path, count: int, start: int = 0, **options):
    return corpus(path, [record(f"{i}", None, **options) for i in range(start, start + count)])


def ids(path) -> list[str]:
    return [r.id for r in Corpus(path).records()]


def test_merge_keeps_records_and_order(tmp_path):
    a, b = numbered(tmp_path / "a", 9), numbered(tmp_path / "b", 5, 9, source="other", caption="a scene")
    assert merge([a, b], tmp_path / "out") == 14
    assert list(Corpus(tmp_path / "out").records()) == [*a.records(), *b.records()]
    assert verify(tmp_path / "out") == []
    assert list(Corpus(tmp_path / "out").manifest["meta"]["merged"]) == [str(a.path), str(b.path)]


def test_merge_refuses_or_skips_known_ids(tmp_path):
    a, b = numbered(tmp_path / "a", 5), numbered(tmp_path / "b", 5, 3)
    with pytest.raises(CorpusError, match="two records have the id '3'"):
        merge([a, b], tmp_path / "out")
    assert not (tmp_path / "out/manifest.json").exists()
    assert merge([a, b], tmp_path / "out", skip_known=True) == 8


def test_a_held_out_image_is_not_skipped_for_one_that_is_trained_on(tmp_path):
    train, test, val = (numbered(tmp_path / name, 2, split=name) for name in ("train", "test", "val"))
    with pytest.raises(CorpusError, match="test: '0' is in test, and trained on in an earlier corpus: name the held"):
        merge([train, test], tmp_path / "out", skip_known=True)
    assert not (tmp_path / "out/manifest.json").exists()
    assert merge([test, train, val], tmp_path / "out", skip_known=True) == 2
    assert {r.split for r in Corpus(tmp_path / "out").records()} == {"test"}


def test_split_writes_each_split_and_holds_out_the_same_images_everywhere(tmp_path):
    records = [record(f"{i}", None, split=["", "train", "val", "test"][i % 4]) for i in range(200)]
    counts = split(corpus(tmp_path / "in", records), tmp_path / "parts", val=0.2, test=0.1)
    assert sum(counts.values()) == 200 and 60 < counts["val"] < 90 and 50 < counts["test"] < 75
    for name in ("train", "val", "test"):
        assert {r.split for r in Corpus(tmp_path / "parts" / name).records()} == {name}
    assert {f"{i}" for i in range(2, 200, 4)} <= set(ids(tmp_path / "parts/val"))
    # Another corpus with some of the images: the same are held out.
    moved = [replace(r, split="") for r in records if r.split in ("", "train")][::3]
    split(corpus(tmp_path / "fewer", moved), tmp_path / "again", val=0.2)
    assert set(ids(tmp_path / "again/val")) <= set(ids(tmp_path / "parts/val"))


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0), (0.5, 0.5), (1.0, 0)])
def test_split_refuses_shares_that_leave_nothing(val, test, tmp_path):
    with pytest.raises(CorpusError, match="shares"):
        split(numbered(tmp_path / "in", 3), tmp_path / "out", val, test)


def test_a_split_that_cannot_be_written_leaves_none(tmp_path):
    (tmp_path / "out/val").mkdir(parents=True)
    (tmp_path / "out/val/mine.txt").write_text("not a corpus")
    source = corpus(tmp_path / "in", [record("a", None, split="train"), record("b", None, split="val")])
    with pytest.raises(CorpusError, match="mine.txt"):
        split(source, tmp_path / "out")
    assert not (tmp_path / "out/train/manifest.json").exists()


def test_splits_are_replaced_as_a_whole_and_never_with_their_source(tmp_path):
    source = corpus(tmp_path / "in", [record("a", None, split="train"), record("b", None, split="val")])
    split(source, tmp_path / "out")
    with pytest.raises(CorpusError, match="train is not empty"):
        split(source, tmp_path / "out")
    split(corpus(tmp_path / "other", [record("c", None, split="test")]), tmp_path / "out", overwrite=True)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["test"] and ids(tmp_path / "out/test") == ["c"]
    with pytest.raises(CorpusError, match="out holds .*out/test, which it would replace"):
        split(Corpus(tmp_path / "out/test"), tmp_path / "out", overwrite=True)
    (tmp_path / "out" / "mine").mkdir()
    with pytest.raises(CorpusError, match="it holds mine"):
        split(source, tmp_path / "out", overwrite=True)
    assert ids(tmp_path / "out/test") == ["c"]


def test_samples_are_reproducible_and_nested(tmp_path):
    whole = corpus(tmp_path / "in", [record(f"{i}", None, source="a" if i < 90 else "b") for i in range(100)])
    few, more = sample(whole, 10), sample(whole, 30)
    assert len(few) == 10 and set(few) < set(more) and few == sorted(few) == sample(whole, 10)
    assert sample(whole, 10, seed=1) != few and sample(whole, 1_000) == list(range(100))
    each = sample(whole, 4, per_source=True)
    assert len(each) == 8 and sum(i >= 90 for i in each) == 4
    # Neither order nor company changes how an image fares.
    turned = corpus(tmp_path / "turned", list(whole.records())[::-1])
    assert {99 - i for i in sample(turned, 10)} == set(few)
    assert write_part(whole, records_at(whole, few), tmp_path / "out", {"sample": 10}) == 10
    assert ids(tmp_path / "out") == [f"{i}" for i in few]
    with pytest.raises(CorpusError, match="no corpus"):
        sample(whole, 0)


def test_at_reads_the_places_and_no_others(tmp_path):
    whole = corpus(tmp_path / "in", [record(f"{i}", b"x", regions=[Region((0, 0, 9, 9), "t")]) for i in range(20)])
    assert [r.id for r in records_at(whole, [0, 7, 19])] == ["0", "7", "19"]
    assert list(records_at(whole, [])) == []
