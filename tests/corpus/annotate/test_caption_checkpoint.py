"""A granvit checkpoint as the captioner of its owner's pictures: its own question and coordinates, its confidence."""

import sqlite3

import pytest
from helpers.serving import painted
from helpers.tiny_model import make_model

from granvit.corpus.annotate.base import AnnotateError
from granvit.corpus.annotate.caption import AnswerCache, CaptionConfig
from granvit.corpus.annotate.caption_answers import Answer
from granvit.predict import GranViT, Text
from granvit.questions import Coded, ask_caption, ask_global


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "run"
    make_model(frame="canvas").save(folder / "checkpoint")
    return folder


@pytest.fixture
def config(run, tmp_path):
    def make(**settings):
        return CaptionConfig(str(run), **{"cache": str(tmp_path / "c.sqlite"), "whole_image": False, **settings})

    return make


@pytest.fixture
def scripted(monkeypatch):
    """Puts answers in the model's mouth; returns what it was asked, question by question."""
    asked = []

    def say(*answers):
        left = iter(answers)

        def answer(self, asks, longest):
            asked.extend((ask.image, ask.view, question, longest) for ask in asks for question in ask.questions)
            return [[next(left) for _ in ask.questions] for ask in asks]

        monkeypatch.setattr(GranViT, "answer", answer)
        return asked

    return say


def test_it_is_asked_the_trained_question_and_its_confidence_is_the_score(config, run, scripted):
    asked = scripted(Text("small red star", 0.75), Text("tea", 0.5), Text("two things", 0.25))
    item = painted("a", 2)
    boxes = [region.box for region in item.record.regions]
    annotator = config(whole_image=True, region_tokens=20, global_tokens=30).build()
    annotator([item])
    model = GranViT.load(run).model
    view = model.view(item.picture.size)
    relative = view.to_relative(boxes, "canvas")
    assert [(q, longest) for _, _, q, longest in asked] == [
        *((ask_caption(box, model.codec), 20) for box in relative),
        (ask_global(), 30),
    ]
    assert all(isinstance(q, Coded) for _, _, q, _ in asked[:2]) and all(v == view for _, v, _, _ in asked)
    assert all(image is item.picture for image, *_ in asked)  # the whole, at its own size
    assert [(r.text, r.score, r.text_by) for r in item.record.regions] == [
        ("small red star", 0.75, "captioner:run"),
        ("tea", 0.5, "captioner:run"),
    ]
    assert item.record.caption == "two things"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (Text("<loc0001><loc0002><loc0003><loc0004>", 0.9), "caption-location"),
        (Text("red <loc0001>", 0.9), "caption-location"),
        (Text("[0.100, 0.200, 0.300, 0.400]", 0.9), "caption-location"),
        (Text("", 0.9), "caption-empty"),
        (Text("red red red red red red", 0.9), "caption-loop"),
        (Text("a large red", 0.9, cut=True), "caption-cut-off"),
        (Text("a red star", 0.59), "caption-unsure"),
    ],
)
def test_what_is_no_caption_is_refused_and_not_asked_again(config, scripted, said, reason):
    asked = scripted(said)
    item = painted("a", 1)
    annotator = config(min_confidence=0.6).build()
    annotator([item])
    assert item.record.regions == [] and [r.reason for r in item.rejections] == [reason]
    assert len(asked) == 1 and annotator.counts["repeated"] == 0


def test_the_threshold_itself_is_enough(config, scripted):
    scripted(Text("a red star", 0.6))
    item = painted("a", 1)
    config(min_confidence=0.6).build()([item])
    assert [r.text for r in item.record.regions] == ["a red star"]


def test_answers_are_those_of_the_model_whatever_is_asked_together(config, run):
    items = [painted("a", 3), painted("b", 2)]
    model = GranViT.load(run)
    annotator = config(batch_size=2, keep_label=True, whole_image=True, region_tokens=6, global_tokens=6).build()
    kept = []
    requests = [w.request for item in items for w in annotator._wanted(item)]
    answers = annotator.captioner.ask(requests[::-1], lambda request, answer: kept.append((request.key, answer)))
    for request, answer in zip(requests[::-1], answers, strict=True):
        view = model.model.view(request.picture.size)
        question = ask_global() if request.box is None else model.box_questions(view, request.box)[0]
        [[said]] = model.answer([model.about_whole(request.picture, [question])], 6)
        assert (answer.text, answer.cut) == (said, said.cut) and answer.confidence == pytest.approx(
            said.confidence, abs=1e-5
        )
    assert dict(kept) == {r.key: a for r, a in zip(requests[::-1], answers, strict=True)}


def test_answers_are_kept_by_the_weights_that_gave_them(config, run, scripted, tmp_path):
    scripted(Text("a red star", 0.7), Text("tea", 0.8))
    config().build()([painted("a", 1)])
    again = config().build()
    item = painted("a", 1)
    again([item])
    assert again.counts["from-cache"] == 1 and [r.score for r in item.record.regions] == [0.7]
    make_model(frame="canvas", seed=5).save(tmp_path / "run" / "checkpoint")
    other = CaptionConfig(str(tmp_path / "run"), cache=config().cache, whole_image=False).build()
    other([item])
    assert other.counts["asked"] == 1 and [(r.text, r.score) for r in item.record.regions] == [("tea", 0.8)]


def test_a_cache_of_before_has_no_confidences(tmp_path):
    file = sqlite3.connect(tmp_path / "c.sqlite")
    file.execute("CREATE TABLE answers (key TEXT PRIMARY KEY, model TEXT, text TEXT, cut INTEGER) WITHOUT ROWID")
    file.execute("INSERT INTO answers VALUES ('a', 'm', 'a dog', 0)")
    file.commit()
    file.close()
    cache = AnswerCache(tmp_path / "c.sqlite")
    cache.put("b", "m", Answer("a cat", confidence=0.5))
    assert AnswerCache(tmp_path / "c.sqlite").get(["a", "b"]) == {
        "a": Answer("a dog"),
        "b": Answer("a cat", confidence=0.5),
    }


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mode": "trained", "prompt": "What is at {box}?"}, "mode trained .* with a prompt of its own"),
        ({"mode": "trained", "endpoint": "http://localhost:1/v1"}, "mode trained .* is none that is loaded here"),
        ({"min_confidence": 0.5, "mode": "crop"}, "states no confidence"),
        ({"min_confidence": 0.5, "endpoint": "http://localhost:1/v1"}, "states no confidence"),
        ({"min_confidence": 1.5}, "from 0 to 1"),
    ],
)
def test_what_needs_a_checkpoint_of_ones_own_is_said(config, settings, said):
    with pytest.raises(AnnotateError, match=said):
        config(**settings).build()
