import hashlib
from dataclasses import replace

import pytest

from granvit.corpus.derive import held_out_part, train_and_held_out, training_part
from granvit.corpus.layout import CorpusError
from granvit.corpus.store import Corpus, CorpusWriter
from granvit.corpus.synthetic.synthesize import make


def corpus_of(path, splits: list[str], prefix: str = "image") -> Corpus:
    record = make(0, 0, 32, 0.0)
    with CorpusWriter(path) as writer:
        for i, split in enumerate(splits):
            writer.write(replace(record, id=f"{prefix}{i}", split=split))
    return Corpus(path)


def ids(part) -> list[str]:
    return [record.id for record in part]


def test_named_splits_are_kept_apart(tmp_path):
    train, held_out = train_and_held_out(corpus_of(tmp_path, ["train", "val", "test", "train", "val"]))
    assert ids(train) == ["image0", "image3"] and ids(held_out) == ["image1", "image4"]
    assert len(train) == 2 and train[1].id == "image3"  # in the part's own order


def test_test_images_are_held_out_where_there_is_no_val(tmp_path):
    train, held_out = train_and_held_out(corpus_of(tmp_path, ["test", "train", "test"]))
    assert ids(train) == ["image1"] and ids(held_out) == ["image0", "image2"]


def test_without_a_split_a_tenth_is_held_out_by_its_id(tmp_path):
    train, held_out = train_and_held_out(corpus_of(tmp_path / "a", ["train"] * 200))
    assert set(ids(train)).isdisjoint(ids(held_out)) and len(train) + len(held_out) == 200
    assert 8 <= len(held_out) <= 35
    # An image stays on its side whatever else the corpus holds: the choice is stable, here and elsewhere.
    fewer_train, fewer_held_out = train_and_held_out(corpus_of(tmp_path / "b", ["train"] * 50))
    assert set(ids(fewer_train)) <= set(ids(train)) and set(ids(fewer_held_out)) <= set(ids(held_out))
    digest = hashlib.sha256(ids(held_out)[0].encode()).digest()
    assert int.from_bytes(digest[:8], "big") / 2**64 < 0.1


@pytest.mark.parametrize("splits", [["val", "val"], ["train"]])
def test_both_parts_are_needed(tmp_path, splits):
    with pytest.raises(CorpusError, match="both are needed"):
        train_and_held_out(corpus_of(tmp_path, splits))


def test_either_part_alone_is_enough_where_only_that_one_is_used(tmp_path):
    to_score, to_train = corpus_of(tmp_path / "a", ["val", "val"]), corpus_of(tmp_path / "b", ["train"], "other")
    assert ids(held_out_part(to_score)) == ["image0", "image1"] and ids(training_part(to_train)) == ["other0"]
    with pytest.raises(CorpusError, match="no image to train on"):
        training_part(to_score)
    with pytest.raises(CorpusError, match="no image is held out"):
        held_out_part(to_train)
