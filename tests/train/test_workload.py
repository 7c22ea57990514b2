"""What a plan counts of records, held against the samples that training makes of them."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_recipe import save_parts, tiny_recipe

from granvit.corpus.store import Corpus, CorpusWriter, Subset
from granvit.corpus.synthetic.synthesize import make, synthesize
from granvit.errors import GranvitError
from granvit.regions import RegionImage, Turn
from granvit.train.build import build_model
from granvit.train.config import ConversationSample, CroppedSample, SampleConfig
from granvit.train.prepare import Prepare
from granvit.train.recipes.finetune import finetune
from granvit.train.recipes.paper import paper
from granvit.train.workload import KINDS, Looked, Workload, asked_of, workload_of

ALL = {"global": 1.0, "bbox2caption": 1.0, "caption2bbox": 1.0}
TALK = [[Turn("user", "What is it?"), Turn("assistant", "A drawing.")]]
LENGTHS = (150, 12, 300)


def records() -> list[RegionImage]:
    """Drawn ones with caption and regions, some to be ignored and some alike, and ones that lack this or that."""
    drawn = [make(i, seed=1, size=64, documents=0.0) for i in range(8)]
    first = drawn[0].regions[0]
    drawn[0] = replace(drawn[0], regions=[*drawn[0].regions, replace(first, ignore=True)])
    drawn[1] = replace(drawn[1], regions=[*drawn[1].regions, drawn[1].regions[0]], conversations=TALK * 2)
    drawn[2] = replace(drawn[2], caption=None)
    drawn[3] = replace(drawn[3], regions=[])
    drawn[4] = RegionImage("talk", None, 0, 0, [], conversations=TALK)
    return drawn


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return build_model(tiny_recipe(save_parts(tmp_path_factory.mktemp("parts"))))


@pytest.mark.parametrize(
    "sample",
    [
        SampleConfig(ALL),
        SampleConfig({"global": 1.0}),
        CroppedSample({"global": 1.0, "bbox2caption": 1.0}, max_regions=3, crops=2, crop_size=32),
        ConversationSample(ALL, max_conversations=1),
    ],
)
def test_what_is_counted_is_what_training_asks(model, sample):
    prepare, lengths = Prepare(model, sample), Workload(1, 0).lengths(sample)
    for record in records():
        asked = asked_of(Looked.at(record), sample, lengths, prefix=20)
        counts = {**asked.counts, "conversation": asked.counts["conversation"] + asked.apart}
        if not asked.questions:
            with pytest.raises(Exception, match="nothing to ask|without an image"):
                prepare(record, np.random.default_rng(0))
            continue
        made = prepare(record, np.random.default_rng(0))
        found = Counter(branch.task for branch in made.branches)
        assert {name: found[name] for name in KINDS} == counts
        assert (0 if made.crops is None else len(made.crops)) == asked.crops
        assert made.text_only == (not asked.picture)


def test_answers_and_rows_are_as_long_as_training_lets_them_be():
    sample = ConversationSample(ALL, max_answer=10, max_conversation=100, max_tokens=1000)
    lengths = Workload(1, 6).lengths(sample)
    assert {name: answer for name, (_, answer) in lengths.items()} == {
        "global": 10, "bbox2caption": 10, "caption2bbox": 10, "conversation": 50,
    }  # fmt: skip
    assert sum(lengths["conversation"]) == 100
    asked = asked_of(Looked(True, 16, 16, 0), sample, lengths, prefix=600)
    tokens = sum(count * sum(lengths[name]) for name, count in asked.counts.items())
    assert tokens == pytest.approx(400)
    full = Workload(3, 6.0)
    with pytest.raises(
        GranvitError, match="finetune: sample.max_tokens 1000 leaves no room .*: an image alone takes 1200"
    ):
        full.mean(sample, 1200, "finetune")


def test_conversations_alone_are_a_workload(tmp_path):
    alone = [RegionImage(f"t{i}", None, 0, 0, [], conversations=TALK * (i + 1)) for i in range(3)]
    work = workload_of([(written(tmp_path / "corpus", alone), 1.0)], *LENGTHS)
    sample = ConversationSample(ALL, max_conversations=2)
    assert (work.images, work.text_only, work.mean(sample, 20, "finetune").apart) == (3, 3, pytest.approx(5 / 3))
    most = work.most(sample, 20)
    assert (most.counts["conversation"], most.questions, most.picture) == (2, 2, 0.0)


def test_steps_and_reading_are_of_what_a_stage_takes(tmp_path):
    """Two records in eight are conversations, one without a picture; one in eight has no caption, one no region."""
    work = workload_of([(written(tmp_path / "corpus", records()), 1.0)], *LENGTHS)
    pictured, talks = paper().stages[0], finetune().stages[0]
    for stage, seen in ((pictured, 7), (talks, 8)):
        small = replace(stage, images_per_step=1, loop=replace(stage.loop, batch_size=1, accumulate=1, steps=0))
        (resolved,) = work.resolved(replace(paper(), stages=[small]), 1).stages
        assert resolved.loop.steps == seen
    asked = work.mean(SampleConfig({"global": 1.0}), 20, "stage1")
    assert work.read(asked, 6) == pytest.approx(8 * work.kilobytes * 1e3)  # six of eight are taken


def written(folder: Path, those: list[RegionImage], rows_per_shard: int = 2_000) -> Subset:
    with CorpusWriter(folder, rows_per_shard) as writer:
        for record in those:
            writer.write(record)
    return whole(Corpus(folder))


def whole(corpus: Corpus) -> Subset:
    return Subset(corpus, list(range(len(corpus))))


def test_a_corpus_of_captions_is_one_without_regions(tmp_path):
    captions = [replace(make(i, seed=1, size=64, documents=0.0), regions=[]) for i in range(4)]
    work = workload_of([(written(tmp_path / "corpus", captions), 1.0)], *LENGTHS)
    assert (work.images, work.regions, work.captioned, work.conversations) == (4, 0, 1.0, 0)
    stage1 = CroppedSample({"global": 1.0, "bbox2caption": 1.0}, crops=2)
    for asked in (work.mean(stage1, 20, "stage1"), work.most(stage1, 20)):
        assert {k: n for k, n in asked.counts.items() if n} == {"global": 1} and asked.crops == 0
    with pytest.raises(GranvitError, match=r"^stage2: nothing to ask: .*sample.questions \(caption2bbox\)"):
        work.mean(SampleConfig({"caption2bbox": 1.0}), 20, "stage2")


def test_records_with_nothing_to_ask_are_passed_over_and_others_taken_more_often(tmp_path):
    those = records()
    work = workload_of([(written(tmp_path / "corpus", those), 1.0)], *LENGTHS)
    assert work.without_picture == pytest.approx(1 / 8) and work.captioned == pytest.approx(6 / 8)
    asked = work.mean(SampleConfig({"global": 1.0}), 20, "stage1")
    assert asked.usable == pytest.approx(6 / 8) and asked.counts["global"] == pytest.approx(1)
    talked = work.mean(ConversationSample({"global": 0.0}, max_conversations=1), 20, "finetune")
    assert talked.usable == pytest.approx(2 / 8)
    assert talked.counts["conversation"] == talked.apart == pytest.approx(1 / 2)


def test_corpora_are_mixed_as_training_mixes_them(tmp_path):
    many = synthesize(tmp_path / "many", 24, 1, 64, progress=False)
    few = written(tmp_path / "few", [replace(make(0, seed=5, size=64, documents=0.0), regions=[])])
    work = workload_of([(whole(many), 3.0), (few, 1.0)], *LENGTHS)
    assert work.images == 25
    assert work.regions == pytest.approx(0.75 * many.manifest["regions"] / 24)


def test_some_row_groups_of_a_corpus_are_looked_at(tmp_path, monkeypatch):
    corpus = synthesize(tmp_path / "corpus", 24, 1, 64, progress=False)
    every = list(corpus.sampled(1))
    assert [place for place, _ in every] == list(range(24))
    assert [record.id for _, record in every] == [record.id for record in corpus.records()]
    shards = written(tmp_path / "shards", [make(i, seed=1, size=64, documents=0.0) for i in range(12)], 5).corpus
    assert [place for place, _ in shards.sampled(2)] == [0, 1, 2, 3, 4, 10, 11]  # a group a shard: of 5, 5 and 2
    monkeypatch.setattr("granvit.train.workload._LOOKED_AT", 6)
    some = workload_of([(whole(shards), 1.0)], *LENGTHS)
    assert some.regions == pytest.approx(np.mean([len(shards[n].regions) for n in (0, 1, 2, 3, 4, 10, 11)]))
    # Where those that are looked at hold nothing that is trained on, all are.
    skipped = workload_of([(Subset(shards, [6, 7]), 1.0)], *LENGTHS)
    assert skipped.regions == pytest.approx(np.mean([len(shards[n].regions) for n in (6, 7)]))
