"""A template of somebody's checkpoint is a program: it is tried within bounds before it is rendered here."""

import json
import subprocess
import sys
import time

import pytest
from helpers.tiny_model import make_model

from granvit.errors import CheckpointError, GranvitError
from granvit.loading import chat_template
from granvit.loading.chat_template import TemplateError, check_template
from granvit.model.dialog import CHATML, LLAMA3, OWN_TEMPLATES, PLAIN
from granvit.model.region_model import RegionModel

ENDLESS = {
    "nested loops": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "a long text": "{{ 'a ' * 1000000 }}",
    "a text of 20 GB": "{{ 'a ' * 10000000000 }}",
    "a text that doubles": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x * 2 %}{% endfor %}",
    "a number without end": "{{ 9 ** (9 ** 9) }}",
    "a format": "{{ '%1000000000d' % 3 }}",
    "a macro that calls itself": "{% macro f() %}{% for i in range(99) %}{{ f() }}{% endfor %}{% endmacro %}{{ f() }}",
    "the question repeated": "{{ messages[0]['content'][1]['text'] * 100000 }}",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_without_end_is_refused_in_bounded_time(monkeypatch, name):
    monkeypatch.setattr(chat_template, "_SECONDS", 1)
    monkeypatch.setattr(chat_template, "_MEMORY", 300_000_000)
    chat_template._fault.cache_clear()
    started = time.monotonic()
    with pytest.raises(TemplateError, match="^here: chat_template (does not end|gives more than|cannot be rendered)"):
        check_template(ENDLESS[name], {}, "here")
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    "template", [*OWN_TEMPLATES, {"default": CHATML, "tools": LLAMA3}, "{{ bos_token + strftime_now('%Y') }}"]
)
def test_templates_that_end_pass(template):
    check_template(template, {"bos_token": "<s>", "extra": ["<x>"]}, "here")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% if", "chat_template cannot be rendered: TemplateSyntaxError"),
        ("{{ raise_exception('only text') }}", "chat_template cannot be rendered: TemplateError: only text"),
        ("{{ ''.__class__.__mro__ }}", "chat_template cannot be rendered: SecurityError"),
        ({"default": 5}, "chat_template is no text"),
        (["x"], "chat_template is no text"),
    ],
)
def test_a_template_that_fails_is_reported(template, said):
    with pytest.raises(TemplateError, match=f"^here: {said}"):
        check_template(template, {}, "here")


def test_a_checkpoint_with_such_a_template_is_refused_and_ours_cost_nothing(tmp_path, monkeypatch):
    make_model().save(tmp_path)
    asked = []
    monkeypatch.setattr(chat_template.subprocess, "run", lambda *given, **named: asked.append(given))
    assert RegionModel.load(tmp_path).processor.chat_template == PLAIN
    assert asked == []
    monkeypatch.undo()
    (tmp_path / "chat_template.jinja").write_text(PLAIN + ENDLESS["a long text"])
    with pytest.raises(CheckpointError, match="chat_template gives more than 1,000,000 characters"):
        RegionModel.load(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(PLAIN + " ")
    RegionModel.load(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": ENDLESS["a long text"]}))
    with pytest.raises(CheckpointError, match="chat_template gives more than 1,000,000 characters"):
        RegionModel.load(tmp_path)


def test_a_language_model_that_shows_images_is_tried_too(tmp_path):
    from granvit.model.assemble import assemble, save_language

    model = make_model()
    save_language(model, tmp_path)
    (tmp_path / "chat_template.jinja").write_text("<image>" + ENDLESS["a long text"])
    with pytest.raises(GranvitError, match="chat_template gives more than"):
        assemble(model.llava.model.vision_tower, tmp_path, model.settings)


def test_the_trial_needs_nothing_of_ours():
    code = "import granvit.loading.chat_template, sys; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
