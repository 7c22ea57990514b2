"""The plugin, held to stock transformers. Where lmms-eval is not installed its two base types are stood in for; the
real lmms-eval runs in test_lmms_real.py."""

import importlib.util
import sys
import tomllib
import types
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_model import make_model
from PIL import Image

from granvit.coordinates import get_codec
from granvit.errors import CheckpointError

MODULES = ("lmms_eval", "lmms_eval.api", "lmms_eval.api.instance", "lmms_eval.api.model")
LONGEST = 12


@dataclass
class Request:
    args: tuple


@pytest.fixture(scope="module")
def plugin():
    """granvit.evaluate.lmms, on the real lmms-eval where there is one."""
    if importlib.util.find_spec("lmms_eval") is not None:
        yield import_module("granvit.evaluate.lmms")
        return

    class Base:
        def __init__(self):
            self.task_dict, self.cache_hook = {}, types.SimpleNamespace(add_partial=lambda *_: None)

        rank = property(lambda self: self._rank)

    with pytest.MonkeyPatch.context() as patch:
        for name in MODULES:
            patch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules["lmms_eval.api.instance"].Instance = Request
        sys.modules["lmms_eval.api.model"].lmms = Base
        yield import_module("granvit.evaluate.lmms")
        sys.modules.pop("granvit.evaluate.lmms")


@pytest.fixture(scope="module")
def model():
    return make_model("qwen2", codec="loc:16", frame="canvas")


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    place = tmp_path_factory.mktemp("lmms") / "checkpoint"
    model.save(place)
    return place


@pytest.fixture(scope="module")
def load(plugin, folder):
    def make(**options):
        return plugin.LmmsGranViT(str(folder), **{"device": "cpu", "batch_size": 3, **options})

    return make


def photo(seed, size=(90, 50)):
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 9, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size)


def user(text, *pictures):
    return {
        "role": "user",
        "content": [*({"type": "image", "url": p} for p in pictures), {"type": "text", "text": text}],
    }


def ask(lmm, conversations, options=None):
    """Hands conversations over as lmms-eval does: as documents of a task, and a function that makes messages of one."""
    lmm.task_dict = {"task": {"test": conversations}}
    options = options or [{"max_new_tokens": LONGEST}] * len(conversations)
    return lmm.generate_until(
        [Request(("", lambda doc: doc, given, n, "task", "test")) for n, given in enumerate(options)]
    )


@torch.inference_mode()
def stock(model, messages, longest=LONGEST):
    """What the stock processor and the stock model make of a conversation."""
    plain = [
        {
            "role": m["role"],
            "content": [{k: v for k, v in part.items() if k != "url"} for part in m["content"]],
        }
        for m in messages
    ]
    pictures = [part["url"] for m in messages for part in m["content"] if part["type"] == "image"]
    text = model.processor.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
    inputs = model.processor(images=pictures or None, text=text, return_tensors="pt")
    out = model.llava.generate(**inputs, do_sample=False, max_new_tokens=longest)
    return model.processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


CONVERSATIONS = [
    [user("What is red?", photo(1))],
    [user("Where is the tea?", photo(1))],
    [user("TOTAL", photo(2, (40, 70)))],
    [user("two green rings", photo(3))],
    [user("Where is the tea?", photo(2, (40, 70)))],
]


def test_answers_are_those_of_stock_transformers_in_any_batch(load, model):
    expected = [stock(model, c) for c in CONVERSATIONS]
    assert len(set(expected)) > 1
    for size in (1, 3, 64):
        assert ask(load(boxes="verbatim", batch_size=size), CONVERSATIONS) == expected


@pytest.mark.parametrize(
    "conversation",
    [
        [user("red star", photo(1), photo(2))],
        [user("no picture at all")],
        [{"role": "system", "content": [{"type": "text", "text": "small"}]}, user("tea", photo(1))],
        [user("tea", photo(1)), {"role": "assistant", "content": [{"type": "text", "text": "ring"}]}, user("heart")],
        [{"role": "user", "content": [{"type": "text", "text": "before"}, {"type": "image", "url": photo(3)}]}],
    ],
    ids=["two pictures", "none", "system", "turns", "text first"],
)
def test_any_other_conversation_is_answered_as_by_stock_transformers(load, model, conversation):
    among = [CONVERSATIONS[0], conversation, CONVERSATIONS[2]]
    assert ask(load(boxes="verbatim"), among) == [stock(model, c) for c in among]


def test_pictures_in_tiles_are_shown_in_every_conversation_as_by_stock_transformers(plugin, tmp_path):
    model = make_model(fit="squash", tiles="2x1,1x2,2x2")
    model.save(tmp_path)
    tall, wide = photo(1, (40, 130)), photo(2, (200, 50))
    asked = [[user("red star", tall)], [user("tea", tall, wide)], [user("TOTAL", wide)], [user("none")]]
    assert ask(plugin.LmmsGranViT(str(tmp_path), device="cpu", boxes="verbatim"), asked) == [
        stock(model, conversation) for conversation in asked
    ]


def test_answers_come_in_the_order_of_the_requests_whatever_their_limits(load, model):
    longest = [3, 12, 3, 1, 12]
    expected = [stock(model, c, n) for c, n in zip(CONVERSATIONS, longest, strict=True)]
    options = [{"max_new_tokens": n, "until": ["\n\n"], "temperature": 0, "num_beams": 1} for n in longest]
    assert ask(load(boxes="verbatim"), CONVERSATIONS, options) == expected


def test_neighbouring_questions_about_one_picture_share_a_look(load, monkeypatch):
    lmm = load(batch_size=64)
    looks = []
    answer = lmm.granvit.answer
    monkeypatch.setattr(
        lmm.granvit, "answer", lambda asks, n: looks.append([len(a.questions) for a in asks]) or answer(asks, n)
    )
    ask(lmm, CONVERSATIONS)
    assert looks == [[2, 1, 1, 1]]


def test_a_placeholder_in_the_text_is_no_second_picture(load):
    lmm = load()
    plain, marked = ask(lmm, [[user("tea", photo(1))], [user("<image>tea", photo(1))]])
    assert plain == marked


def scripted(lmm, monkeypatch, answers):
    monkeypatch.setattr(
        lmm.granvit, "answer", lambda asks, longest: [[answers.pop(0) for _ in a.questions] for a in asks]
    )


def test_boxes_are_reported_relative_to_the_image_and_not_to_the_padded_canvas(load, monkeypatch):
    # 80 x 40 pixels on a square canvas: the picture is its middle half, from bin 4 of 16 on.
    lmm, picture = load(), photo(1, (80, 40))
    codec = get_codec("loc:16")
    said = codec.encode([2.5 / 16, 5.5 / 16, 10.5 / 16, 9.5 / 16])
    scripted(lmm, monkeypatch, [said, f"at {said}", "no box"])
    reported = ask(lmm, [[user(text, picture)] for text in "abc"])
    assert reported == ["[0.156250, 0.187500, 0.656250, 0.687500]", f"at {said}", "no box"]


def test_a_task_without_a_single_box_is_reported_once(load, monkeypatch, recwarn):
    lmm, said = load(batch_size=1), get_codec("loc:16").encode([0.2, 0.4, 0.6, 0.6])
    paper = [user(f"Please provide the bounding box coordinate of the {text}", photo(1)) for text in "abc"]
    scripted(lmm, monkeypatch, ["tea", "", "[1, 2]"])
    ask(lmm, [[question] for question in paper])
    (reported,) = (str(w.message) for w in recwarn if "task" in str(w.message))
    assert reported.startswith("task task: none of 3 answers is a box in the checkpoint's codec")
    recwarn.clear()
    scripted(lmm, monkeypatch, ["tea", said, "tea"])
    ask(lmm, [[question] for question in paper])  # one box is enough
    scripted(lmm, monkeypatch, ["tea"])
    ask(lmm, [[user("What is red?", photo(1))]])
    assert not [w for w in recwarn if "task" in str(w.message)]
    scripted(lmm, monkeypatch, [said, said])
    ask(lmm, [[user(f"Locate {text}, report the bbox coordinates in JSON format.", photo(1))] for text in "ab"])
    (reported,) = (str(w.message) for w in recwarn if "task" in str(w.message))
    assert reported.startswith("task task asks for boxes in pixels, thousandths or JSON")


def test_a_question_that_is_too_long_costs_no_other_its_answer(load, model):
    with pytest.warns(UserWarning, match="makes a question of .* tokens, at most 495 are read"):
        said = ask(load(boxes="verbatim"), [CONVERSATIONS[0], [user("tea " * 1000, photo(1))], CONVERSATIONS[1]])
    assert said == [stock(model, CONVERSATIONS[0]), "", stock(model, CONVERSATIONS[1])]


@pytest.mark.parametrize("turns", [1, 2])
def test_control_tokens_in_a_tasks_text_are_text(load, monkeypatch, turns):
    """In a lone question and in several turns; only a task's placeholder for the picture is left out."""
    lmm = load()
    dialog, seen = lmm.granvit.model.dialog, []
    encode = type(dialog.plain).encode
    monkeypatch.setattr(type(dialog.plain), "encode", lambda self, t: seen.extend(r := encode(self, t)) or r)
    text = "a<|end|>b <loc0003> <|answer|>"
    ask(lmm, [[*[user("tea")] * (turns - 1), user(text, photo(1))]])
    ids = [i for row in seen for i in row]
    assert text in dialog.tokenizer.decode(ids)
    control = dialog.tokenizer.convert_tokens_to_ids(["<|end|>", "<loc0003>"])
    assert not set(control) & set(ids) and ids.count(dialog.image_token) == 0


def test_boxes_stay_as_they_are_where_that_is_asked_for_or_says_the_same(plugin, load, monkeypatch, tmp_path):
    said = get_codec("loc:16").encode([0.2, 0.4, 0.6, 0.6])
    lmm = load(boxes="verbatim")
    scripted(lmm, monkeypatch, [said])
    assert ask(lmm, [[user("a", photo(1))]]) == [said]

    make_model("qwen2", codec="decimal", frame="image").save(tmp_path)
    decimal = plugin.LmmsGranViT(str(tmp_path), device="cpu")
    scripted(decimal, monkeypatch, ["[0.12, 0.2500, 0.6, 1]"])
    assert ask(decimal, [[user("a", photo(1))]]) == ["[0.12, 0.2500, 0.6, 1]"]


def test_an_answer_ends_before_the_first_stop(load, monkeypatch):
    lmm = load(batch_size=1)
    scripted(lmm, monkeypatch, ["red star; tea. ring", "red star; tea. ring", "tea"])
    options = [{"until": [".", ";", ""]}, {"until": ". "}, {"until": None}]
    assert ask(lmm, CONVERSATIONS[:3], options) == ["red star", "red star; tea", "tea"]


def test_what_cannot_be_done_is_refused_in_clear_words(load):
    lmm = load()
    for options in ({"temperature": 0.7}, {"temperature": 1.0, "do_sample": True}, {"num_beams": 3}):
        with pytest.raises(ValueError, match="task: granvit answers greedily; add --gen_kwargs temperature=0"):
            ask(lmm, CONVERSATIONS[:1], [options])
    ask(lmm, CONVERSATIONS[:1], [{"temperature": 0.7, "do_sample": False, "max_new_tokens": 1}])
    video = {"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}
    with pytest.raises(ValueError, match="task task: .* not video"):
        ask(lmm, [[video]])
    with pytest.raises(ValueError, match="loglikelihood"):
        lmm.loglikelihood([])
    with pytest.raises(ValueError, match="several rounds"):
        lmm.generate_until_multi_round([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": "auto"}, "--batch_size auto"),
        ({"batch_size": 0}, "--batch_size 0"),
        ({"boxes": "pixels"}, "boxes=pixels"),
        ({"dtype": "float8"}, "dtype=float8"),
    ],
)
def test_arguments_that_do_not_exist_are_named(load, options, message):
    with pytest.raises(ValueError, match=message):
        load(**options)


def test_a_folder_without_a_checkpoint_is_named(plugin, tmp_path):
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        plugin.LmmsGranViT(str(tmp_path), device="cpu")


def test_the_entry_point_leads_to_the_class(plugin, monkeypatch):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    module, function = project["project"]["entry-points"]["lmms_eval.models"]["granvit"].split(":")
    registry = types.ModuleType("lmms_eval.models.registry_v2")
    registry.ModelManifest = lambda name, chat_class_path: (name, chat_class_path)
    monkeypatch.setitem(sys.modules, "lmms_eval.models", types.ModuleType("lmms_eval.models"))
    monkeypatch.setitem(sys.modules, "lmms_eval.models.registry_v2", registry)
    name, path = getattr(import_module(module), function)()
    assert name == "granvit"
    assert path == f"{plugin.LmmsGranViT.__module__}.{plugin.LmmsGranViT.__name__}"
