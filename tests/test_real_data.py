"""Receipts and photographs as they are, from import to scores. They are not part of the repository."""

import json
import math

import numpy as np
import pytest
from helpers.paths import real_data
from helpers.tiny_model import make_model
from helpers.tiny_recipe import shorten_answers

from granvit.corpus.check import verify
from granvit.corpus.derive import train_and_held_out
from granvit.corpus.importers import import_corpus
from granvit.corpus.store import Corpus
from granvit.evaluate.region_tasks import evaluate
from granvit.predict import GranViT
from granvit.train.config import CroppedSample, LoopConfig
from granvit.train.feed import Feed
from granvit.train.loop import train
from granvit.train.prepare import Prepare
from granvit.train.stages.pretrain import Pretrain

PACKS = {"sroie": 4, "voc_animals": 6}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The first few images of each pack, every third of them held out."""
    sources = real_data(*PACKS)
    folder = tmp_path_factory.mktemp("real")
    places = []
    for source, count in zip(sources, PACKS.values(), strict=True):
        place = folder / source.name
        place.mkdir()
        (place / "images").symlink_to(source / "images")
        with (source / "annotations.jsonl").open() as lines:
            rows = [json.loads(next(lines)) for _ in range(count)]
        rows = [{**row, "split": "val" if i % 3 == 0 else "train"} for i, row in enumerate(rows)]
        (place / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        places.append(place)
    summary = import_corpus("jsonl", places, folder / "corpus", follow_links=True)
    assert summary.images_written == sum(PACKS.values()), summary
    return Corpus(folder / "corpus")


def test_receipts_and_photographs_are_imported_whole(corpus):
    assert verify(corpus.path) == []
    kinds = {
        kind: sum(r.kind == kind for record in corpus.records() for r in record.regions) for kind in ("text", "object")
    }
    assert kinds["text"] > 40 and kinds["object"] >= PACKS["voc_animals"]


def test_a_step_of_training_with_windows_and_crops(corpus, tmp_path):
    model = make_model()
    chances = {"global": 1.0, "bbox2caption": 1.0}
    prepare = Prepare(model, CroppedSample(chances, windows=0.7, crops=2, crop_size=32, max_regions=4))
    training, _ = train_and_held_out(corpus)
    feed = Feed([(training, 1.0)], prepare, prepare.collate, batch_size=4, seed=0)
    config = LoopConfig(steps=1, batch_size=4, precision="fp32", log_every=1, trackers=())
    result = train(Pretrain(model), feed, config, tmp_path, device="cpu")
    assert all(math.isfinite(result.history[name][0][1]) for name in ("loss", "caption", "distill"))


def test_what_is_shown_in_a_window_is_what_is_asked_about(corpus):
    """The teacher's crops, cut from the picture, look like the same boxes cut from the canvas."""
    model = make_model(canvas=256)
    prepare = Prepare(model, CroppedSample({"bbox2caption": 1.0}, windows=1.0, crops=3, crop_size=32))
    compared = 0
    for record in corpus:
        sample = prepare(record, np.random.default_rng(0))
        for crop, box in zip(sample.crops, sample.crop_boxes, strict=True):
            x1, y1, x2, y2 = (round(float(v)) for v in box)
            cut = sample.pixels[y1:y2, x1:x2].astype(float)
            if min(cut.shape[:2]) >= 16:
                assert np.abs(cut.mean((0, 1)) - crop.mean((0, 1))).max() < 12, (record.id, box)
                compared += 1
    assert compared >= 5


def test_an_untrained_model_is_scored_on_it(corpus, monkeypatch):
    shorten_answers(monkeypatch)
    _, held_out = train_and_held_out(corpus)
    report = evaluate(GranViT(make_model()), held_out, max_regions=3, window=200, progress=False)
    assert {"describe", "read", "locate_text"} <= set(report.scores)
    assert report.scores["read"]["count"] == 6 and report.scores["read"]["exact"] < 0.5
    for task, scores in report.scores.items():
        assert all(0 <= value <= 1 for name, value in scores.items() if name != "count"), task
