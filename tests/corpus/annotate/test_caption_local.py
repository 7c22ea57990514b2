import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.serving import painted
from helpers.tiny_captioner import SAYS, save

from granvit.corpus.annotate.base import AnnotateError
from granvit.corpus.annotate.caption import AnswerCache, Caption, CaptionConfig
from granvit.corpus.annotate.caption_answers import Answer
from granvit.corpus.annotate.caption_requests import PromptConfig, global_request, region_request


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save(tmp_path_factory.mktemp("captioner") / "llava")


@pytest.fixture
def config(checkpoint, tmp_path):
    def make(**settings):
        defaults = {"cache": str(tmp_path / "c.sqlite"), "whole_image": False, "mode": "crop"}
        return CaptionConfig(str(checkpoint), **{**defaults, **settings})

    return make


def red_and_blue(name, boxes):
    """A painted picture without its green rectangles, of which the little model knows nothing."""
    item = painted(name, boxes)
    item.record.regions = [r for i, r in enumerate(item.record.regions) if i % 3 != 1]
    return item


def right(item):
    return [SAYS[("red", "blue")[i % 2]] for i in range(len(item.record.regions))]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_model_loaded_here_captions_each_crop(config, batch_size):
    items = [red_and_blue("a", 6), red_and_blue("b", 3)]
    annotator = config(batch_size=batch_size).build()
    annotator(items)
    assert [[r.text for r in i.record.regions] for i in items] == [right(i) for i in items]
    assert {r.text_by for i in items for r in i.record.regions} == {"captioner:llava"}
    assert annotator.counts == {"asked": 6, "from-cache": 0, "repeated": 0}
    again = config(batch_size=batch_size).build()
    again([red_and_blue("a", 6)])
    assert again.counts["asked"] == 0


def test_questions_of_different_length_in_a_batch_and_limits_of_different_length(config):
    item = red_and_blue("a", 3)
    prompts = PromptConfig("m", "crop", "", 10, 1024, 64, 64)
    model = config().build().captioner
    region = region_request(item, "hash", 0, prompts)
    assert region is not None
    whole = global_request(item, "hash", PromptConfig("m", "crop", "", 10, 1024, 64, 3))
    requests = [region, whole, region]
    kept = []
    answers = model.ask(requests, lambda request, answer: kept.append((request, answer)))
    assert answers[0] == answers[2] == Answer(SAYS["red"])
    assert isinstance(answers[1], Answer) and answers[1].cut  # three tokens are no paragraph
    assert len(kept) == 3 and {r.key for r, _ in kept} == {r.key for r in requests}
    # One after the other gives the same as together, padded.
    together = model.ask([region, global_request(item, "hash", prompts)], lambda *_: None)
    model.batch_size = 1
    assert together == model.ask([region, global_request(item, "hash", prompts)], lambda *_: None)


def test_what_cannot_be_loaded_is_named(checkpoint, config, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(AnnotateError, match="empty: cannot be loaded as an image-text-to-text model"):
        CaptionConfig(str(tmp_path / "empty"), cache=str(tmp_path / "c")).build()
    silent = Path(shutil.copytree(checkpoint, tmp_path / "silent"))
    (silent / "chat_template.jinja").unlink()
    settings = json.loads((silent / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (silent / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(AnnotateError, match="silent: its processor has no chat template"):
        CaptionConfig(str(silent), mode="crop", cache=str(tmp_path / "c")).build()


class Asked:
    """A captioner that only remembers what it is asked."""

    def __init__(self, *_):
        self.prompts = []

    def ask(self, requests, keep):
        self.prompts += [request.prompt for request in requests]
        return [Answer(f"thing number {len(self.prompts)}")] * len(requests)


@pytest.mark.parametrize("in_a_run", [False, True])
def test_a_granvit_checkpoint_is_asked_about_boxes_as_it_was_taught(tmp_path, monkeypatch, in_a_run):
    """A picture of 300 x 200 in the middle of a square of 300: y moves by 50."""
    folder = tmp_path / "model" / "checkpoint" if in_a_run else tmp_path / "model"
    folder.mkdir(parents=True)
    (folder / "granvit.json").write_text('{"codec": "int1000", "frame": "canvas", "fit": "letterbox"}')
    monkeypatch.setattr("granvit.corpus.annotate.caption_local.LocalModel", Asked)
    config = CaptionConfig(str(tmp_path / "model"), mode="box", cache=str(tmp_path / "c.sqlite"), whole_image=False)
    item = painted("a", 1)
    item.record.regions[0].box = (30, 25, 90, 100)
    annotator = config.build()
    annotator([item])
    assert "[100, 250, 300, 500]" in annotator.captioner.prompts[0]
    other = replace(config, codec="decimal").build()
    other([painted("b", 1)])
    assert "[0." in other.captioner.prompts[0]


def test_a_picture_that_the_processor_cannot_divide_is_refused_alone(config, monkeypatch):
    annotator = config(batch_size=4).build()
    answers = annotator.captioner._answers

    def fussy(requests):
        if any(max(image.size) > 200 * min(image.size) for request in requests for image in request.images()):
            raise ValueError("absolute aspect ratio must be smaller than 200")
        return answers(requests)

    monkeypatch.setattr(annotator.captioner, "_answers", fussy)
    item = red_and_blue("a", 3)
    thin = red_and_blue("b", 0)
    thin.picture = thin.picture.resize((3000, 8))
    thin.record.regions = [replace(item.record.regions[0], box=(0, 0, 3000, 8))]
    annotator([item, thin])
    assert [r.text for r in item.record.regions] == right(item) and item.rejections == []
    assert (thin.record.regions, [r.reason for r in thin.rejections]) == ([], ["captioner-failed"])


@pytest.mark.parametrize(("mode", "endpoint"), [("crop", ""), ("box", ""), ("crop", "http://localhost:1/v1")])
def test_the_next_weights_in_the_same_folder_are_asked_anew(tmp_path, mode, endpoint):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    config = CaptionConfig(str(folder), endpoint, mode, cache=str(tmp_path / "c.sqlite"), whole_image=False)

    class Says:
        def __init__(self, text):
            self.text = text

        def ask(self, requests, keep):
            for request in requests:
                keep(request, Answer(self.text))
            return [Answer(self.text)] * len(requests)

    def caption(text):
        item = painted("a", 1)
        Caption(config, Says(text), AnswerCache(tmp_path / "c.sqlite"))([item])
        return item.record.regions[0].text

    (folder / "model.safetensors").write_bytes(b"old")
    assert [caption("said of old"), caption("never asked")] == ["said of old", "said of old"]
    (folder / "model.safetensors").write_bytes(b"new")
    assert caption("said anew") == "said anew"
    # The same weights elsewhere are the same model.
    moved = folder.rename(tmp_path / "moved")
    config = replace(config, model=str(moved))
    assert caption("never asked") == "said anew"
