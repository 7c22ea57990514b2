"""Captions through a real `openai` client and a real server in another process, on loopback."""

import base64
import copy
import hashlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from email.utils import formatdate

import pytest
from helpers.paths import PYTHONPATH
from helpers.serving import MODEL, ChatServer, Service, expected, painted

from granvit.corpus.annotate.base import AnnotateError
from granvit.corpus.annotate.caption import CaptionConfig
from granvit.corpus.annotate.caption_endpoint import _retry_after
from granvit.corpus.annotate.plan import Plan
from granvit.corpus.check import check_record
from granvit.questions import GLOBAL
from granvit.regions import Region

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = ChatServer(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def serve(server, request):
    """The server in one of its behaviours, with an account of this test's requests alone."""
    who = hashlib.sha256(request.node.name.encode()).hexdigest()[:16]
    return lambda behaviour="plain": Service(server, behaviour, who)


@pytest.fixture
def mortal(tmp_path):
    """A server that may be killed."""
    server = ChatServer(tmp_path)
    server.start()
    yield Service(server, "slow")
    server.kill()


@pytest.fixture
def config(tmp_path):
    def make(server, **settings):
        defaults = {"cache": str(tmp_path / "cache.sqlite"), "whole_image": False, "timeout_s": 5.0, "patience_s": 20.0}
        return CaptionConfig(MODEL, server.url, **{**defaults, **settings})

    return make


def texts(items):
    return [[r.text for r in item.record.regions] for item in items]


def reasons(items):
    return [r.reason for item in items for r in item.rejections]


# --- what is asked and what comes back -------------------------------------------------------------------------------


def test_every_region_gets_the_caption_of_its_own_crop(serve, config):
    items = [painted(f"p{i}", 4) for i in range(3)]
    right = [expected(item) for item in items]
    captioned = config(serve()).build()(items)
    assert texts(captioned) == right and reasons(captioned) == []
    assert len({t for row in right for t in row}) > 8
    region = captioned[0].record.regions[0]
    assert (region.text_by, region.box_by, region.score) == (f"captioner:{MODEL}", "detector:d", 0.9)
    assert not check_record(captioned[0].record).rejections


def test_the_crop_is_cut_outward_to_whole_pixels(serve, config):
    item = painted("p", 1)
    item.record.regions = [Region((9.5, 20.2, 110.1, 120.9), ""), Region((-20, 150.5, 80, 260), "")]
    (captioned,) = config(serve()).build()([item])
    assert [r.text.split()[-1] for r in captioned.record.regions] == ["102x101", "90x56"]  # 80x50, enlarged


def test_text_regions_and_those_to_ignore_are_left_alone(serve, config):
    item = painted("p", 3)
    item.record.regions[0].kind = "text"
    item.record.regions[1].ignore = True
    before = copy.deepcopy(item.record.regions)
    server = serve()
    (captioned,) = config(server, whole_image=True).build()([item])
    assert captioned.record.regions[:2] == before[:2]
    assert captioned.record.regions[2].text == expected(item)[2]
    assert captioned.record.caption == "grey picture 300x200"
    assert len(server.events("asked")) == 2


def test_the_whole_image_is_asked_about_in_the_papers_words_unless_it_is_a_text_image(serve, config):
    natural, text, reported = painted("n", 1), painted("t", 1), painted("c", 1)
    text.kind = "text"
    reported.record.caption = "by a person"
    server = serve()
    config(server, whole_image=True, global_tokens=99, longest_side=150).build()([natural, text, reported])
    assert [i.record.caption for i in (natural, text, reported)] == ["grey picture 150x100", None, "by a person"]
    (asked,) = [e for e in server.events("asked") if e["prompt"] == GLOBAL]
    assert asked["max_tokens"] == 99 and asked["sizes"] == [[150, 100]]


@pytest.mark.parametrize(
    ("mode", "sizes"), [("crop", [(60, 80)]), ("crop+image", [(60, 80), (300, 200)]), ("box", [(300, 200)])]
)
def test_the_modes_show_crop_image_or_both(serve, config, mode, sizes):
    item = painted("p", 1)
    item.record.regions = [Region((30, 20, 90, 100), "thing")]
    server = serve()
    config(server, mode=mode, max_words=7).build()([item])
    (asked,) = server.events("asked")
    assert [tuple(s) for s in asked["sizes"]] == sizes and "no more than 7 words" in asked["prompt"]
    assert ("[0.100, 0.100, 0.300, 0.500]" in asked["prompt"]) == (mode == "box")


def test_own_words(serve, config):
    server = serve()
    config(server, mode="box", prompt="Defect in {box}? {words} words.").build()([painted("p", 1)])
    (asked,) = server.events("asked")
    assert asked["prompt"].startswith("Defect in [0.017, ") and asked["prompt"].endswith("]? 10 words.")


@pytest.mark.parametrize(
    ("mode", "prompt", "said"),
    [
        ("box", "Name the object in at most {words} words.", "without {box} every region gets the same caption"),
        ("crop", "What is at {box}?", "mode crop shows the region alone, in which {box} means nothing"),
        ("auto", "What is at {box}?", "mode auto shows the region alone"),
        ("box", "What is at { box }?", "{ box } is not filled in, only {words} and {box} are"),
        ("crop", "Describe it in {max_words} words.", "{max_words} is not filled in"),
    ],
)
def test_words_that_do_not_ask_about_a_region_are_refused(tmp_path, mode, prompt, said):
    config = CaptionConfig("m", "http://localhost:1/v1", mode=mode, prompt=prompt, cache=str(tmp_path / "c"))
    with pytest.raises(AnnotateError, match=f"^caption: prompt: .*{re.escape(said)}") as error:
        config.build()
    assert "\n" not in str(error.value) and not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("mode", "prompt"),
    [("crop", 'In JSON: {"caption": "..."}'), ("crop+image", "It is at {box}."), ("box", "At {box}, one word.")],
)
def test_words_of_ones_own_are_taken(serve, config, mode, prompt):
    config(serve(), mode=mode, prompt=prompt).build()


def test_no_more_requests_at_a_time_than_allowed(serve, config):
    server = serve("slow")
    config(server, concurrency=3).build()([painted("p", 12)])
    assert max(e["under_way"] for e in server.events("asked")) == 3


# --- answers that cannot be used -------------------------------------------------------------------------------------


def test_a_long_answer_is_asked_for_once_more_in_firmer_words(serve, config):
    server = serve("long")
    item = painted("p", 3)
    right = expected(item)
    annotator = config(server).build()
    annotator([item])
    assert texts([item]) == [right] and reasons([item]) == []
    assert annotator.counts == {"asked": 6, "from-cache": 0, "repeated": 3}


def test_a_refused_region_is_dropped_with_its_reason_after_one_repetition(serve, config):
    server = serve("refuse-blue")
    item = painted("p", 6)
    right = expected(item)
    config(server).build()([item])
    assert texts([item]) == [[t for t in right if "blue" not in t]]
    assert [(r.reason, r.region, r.id) for r in item.rejections] == [
        ("caption-refused", 2, "p"),
        ("caption-refused", 5, "p"),
    ]
    assert len(server.events("asked")) == 6 + 2


def test_a_refused_region_may_keep_its_label(serve, config):
    item = painted("p", 3)
    config(serve("refuse-blue"), keep_label=True).build()([item])
    kept = item.record.regions[2]
    assert (kept.text, kept.text_by) == ("thing", "detector:d") and reasons([item]) == ["caption-refused"]


def test_a_refused_paragraph_leaves_the_image(serve, config):
    item = painted("p", 0)
    config(serve("refuse"), whole_image=True).build()([item])
    assert item.record.caption is None and reasons([item]) == ["whole-image-caption-refused"]


# --- nothing is paid for twice ---------------------------------------------------------------------------------------


def test_a_second_run_asks_for_nothing(serve, config):
    server = serve("refuse-blue")
    first = config(server, whole_image=True).build()([painted(f"p{i}", 5) for i in range(3)])
    count = len(server.events("asked"))
    annotator = config(server, whole_image=True).build()
    second = annotator([painted(f"p{i}", 5) for i in range(3)])
    assert len(server.events("asked")) == count and annotator.counts["asked"] == 0
    assert [i.record for i in first] == [i.record for i in second] and reasons(first) == reasons(second)


def test_the_same_question_in_one_batch_is_asked_once(serve, config):
    items = [painted("same", 4) for _ in range(3)]
    items[0].record.regions *= 2
    server = serve()
    config(server).build()(items)
    assert len(server.events("asked")) == 4
    assert texts(items) == [expected(item) for item in items]


def test_what_changes_the_question_is_asked_anew(serve, config):
    server = serve()
    base = config(server)
    for n, other in enumerate(
        [
            base,
            replace(base, mode="crop+image"),
            replace(base, mode="box"),
            replace(base, prompt="What is it? In {words} words."),
            replace(base, max_words=9),
            replace(base, longest_side=100),
            replace(base, region_tokens=32),
        ]
    ):
        other.build()([painted("p", 1)])
        assert len(server.events("asked")) == n + 1
    moved = painted("p", 1)
    x1, y1, x2, y2 = moved.record.regions[0].box
    moved.record.regions[0].box = (x1, y1, x2 - 1, y2)
    base.build()([moved])
    base.build()([painted("another", 1, seed=9)])
    assert len(server.events("asked")) == 9
    # What only changes how captions are fetched is no other question.
    replace(base, concurrency=2, timeout_s=9.0, patience_s=9.0).build()([painted("p", 1)])
    assert len(server.events("asked")) == 9


def restart_when(service, answered, pause_s=0.5):
    """Kill the server once it has answered so many, and start it again; the thread that does."""

    def work():
        while len(service.events("answered")) < answered:
            time.sleep(0.005)
        service.server.kill()
        time.sleep(pause_s)
        service.server.start()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_server_killed_and_restarted_loses_nothing_and_is_paid_once(mortal, config):
    items = [painted(f"p{i}", 6) for i in range(4)]
    right = [expected(item) for item in items]
    restart = restart_when(mortal, answered=8)
    annotator = config(mortal, concurrency=4).build()
    annotator(items)
    restart.join()
    assert texts(items) == right and reasons(items) == []
    # The account of what was answered is written after the answer: the last line may come late, or be killed.
    answered = [e["key"] for e in mortal.events("answered")]
    assert len(answered) == len(set(answered)) >= 24 - 4
    assert annotator.counts["asked"] == 24
    assert sum(annotator.captioner.failures.values()) > 0


_CHILD = """
import sys
from helpers.serving import painted
from granvit.corpus.annotate.caption import CaptionConfig
items = [painted(f"p{i}", 6) for i in range(8)]
CaptionConfig("painter", sys.argv[1], cache=sys.argv[2], whole_image=False, concurrency=4).build()(items)
"""


def test_a_killed_run_pays_again_at_most_for_what_was_under_way(serve, config, tmp_path):
    service = serve("slow")
    env = {"PYTHONPATH": PYTHONPATH, "PATH": os.environ["PATH"]}
    child = subprocess.Popen([sys.executable, "-c", _CHILD, service.url, str(tmp_path / "cache.sqlite")], env=env)
    while len(service.events("answered")) < 20:
        assert child.poll() is None
        time.sleep(0.005)
    child.kill()
    child.wait()
    items = [painted(f"p{i}", 6) for i in range(8)]
    right = [expected(item) for item in items]
    config(service, concurrency=4).build()(items)
    assert texts(items) == right
    asked = [e["key"] for e in service.events("asked")]
    assert len(set(asked)) == 48 and len(asked) <= 48 + 4


# --- endpoints that do not answer ------------------------------------------------------------------------------------


def test_a_storm_of_429_is_waited_out_as_long_as_it_asks(serve, config):
    server = serve("storm")
    item = painted("p", 8)
    right = expected(item)
    annotator = config(server, concurrency=8).build()
    started = time.monotonic()
    annotator([item])
    assert texts([item]) == [right] and annotator.captioner.failures == {"endpoint-http-429": 16}
    assert time.monotonic() - started >= 2  # twice the second of Retry-After; its own pauses are shorter


def test_dropped_connections_are_repeated(serve, config):
    item = painted("p", 3)
    right = expected(item)
    annotator = config(serve("drop")).build()
    annotator([item])
    assert texts([item]) == [right] and annotator.captioner.failures == {"endpoint-unreachable": 3}


DEAD = {
    "hang": "endpoint-timeout",
    "trickle": "endpoint-timeout",
    "html": "endpoint-not-openai",
    "other-json": "endpoint-not-openai",
    "no-json": "endpoint-not-openai",
    "429": "endpoint-http-429",
    "500": "endpoint-http-500",
}


def timeout_for(behaviour):
    """Short where the test is to wait it out, long where a busy machine must not make it strike."""
    return 0.3 if DEAD[behaviour] == "endpoint-timeout" else 10.0


@pytest.mark.parametrize("behaviour", DEAD)
def test_a_dead_endpoint_ends_the_run_in_bounded_time_with_its_reasons(serve, config, behaviour):
    service = serve(behaviour)
    annotator = config(service, timeout_s=timeout_for(behaviour), patience_s=0.3, concurrency=2).build()
    started = time.monotonic()
    with pytest.raises(AnnotateError) as error:
        annotator([painted("p", 30)])
    assert time.monotonic() - started < 20  # it takes one; on a busy machine some more
    assert len({e["key"] for e in service.events("asked")}) <= 4  # the others were not even sent
    assert DEAD[behaviour] in str(error.value) and "start the run again" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("behaviour", ["hang", "html"])
def test_or_it_refuses_all_regions_and_counts_them(serve, config, behaviour):
    service = serve(behaviour)
    settings = {"timeout_s": timeout_for(behaviour), "patience_s": 0.3, "when_down": "refuse"}
    annotator = config(service, whole_image=True, **settings).build()
    items = annotator([painted("p", 20), painted("q", 10)])
    assert reasons(items).count(DEAD[behaviour]) == 30
    assert reasons(items).count(f"whole-image-{DEAD[behaviour]}") == 2
    assert texts(items) == [[], []] and [i.record.caption for i in items] == [None, None]
    asked = len(service.events("asked"))
    assert reasons(annotator([painted("later", 20)])).count(DEAD[behaviour]) == 20
    assert len(service.events("asked")) == asked


def test_a_request_that_always_fails_does_not_stop_the_others(serve, config):
    """Blue crops get 503 for good, while others are being answered all the time: the endpoint is not down."""
    items = [painted("p", 3), *(painted(f"q{i}", 2) for i in range(15))]
    right = [expected(item) for item in items]
    config(serve("blue-fails"), patience_s=0.5, concurrency=3).build()(items)
    assert texts(items) == [right[0][:2], *right[1:]]
    assert [(r.reason, r.region) for r in items[0].rejections] == [("endpoint-http-503", 2)]


def test_a_picture_at_which_the_server_always_hangs_up_does_not_stop_the_others(serve, config):
    item = painted("p", 3)
    item.record.regions = item.record.regions[2:]
    config(serve("blue-drops"), patience_s=0.5).build()([item])
    assert reasons([item]) == ["endpoint-unreachable"]


def test_failures_are_not_remembered_as_answers(serve, config):
    config(serve("500"), patience_s=0.3, when_down="refuse").build()([painted("p", 2)])
    item = painted("p", 2)
    right = expected(item)
    config(serve()).build()([item])
    assert texts([item]) == [right]


def test_a_wrong_model_is_reported_at_once(serve, config):
    server = serve()
    with pytest.raises(AnnotateError, match="endpoint-http-404.*The model `other` does not exist"):
        replace(config(server), model="other").build()([painted("p", 12)])
    assert len(server.events("asked")) <= 16


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404])
@pytest.mark.parametrize("pictures", [1, 5])
def test_a_fault_that_is_not_the_pictures_ends_the_run_and_is_asked_again(serve, config, status, pictures):
    """However few the pictures: a plain one is refused as well, so none of them is to blame."""
    with pytest.raises(AnnotateError, match=f"endpoint-http-{status}.*always {status}.*start the run again"):
        config(serve(str(status))).build()([painted("p", pictures)])
    server = serve()
    item = painted("p", pictures)
    right = expected(item)
    config(server).build()([item])
    assert texts([item]) == [right] and reasons([item]) == []


def test_a_quota_that_is_used_up_ends_the_run_without_waiting_for_more(serve, config):
    started = time.monotonic()
    with pytest.raises(AnnotateError, match="endpoint-http-429.*exceeded your quota"):
        config(serve("quota"), patience_s=60.0).build()([painted("p", 2)])
    assert time.monotonic() - started < 20


def test_a_picture_that_is_found_fault_with_is_refused_alone(serve, config):
    server = serve("blue-400")
    item = painted("p", 6)
    right = expected(item)
    config(server, concurrency=1).build()([item])
    assert texts([item]) == [[text for text in right if "blue" not in text]]
    assert [(r.reason, r.region) for r in item.rejections] == [("endpoint-http-400", 2), ("endpoint-http-400", 5)]
    assert "against our policy" in item.rejections[0].detail


def test_one_blue_picture_alone_is_to_blame_when_a_plain_one_is_answered(serve, config):
    server = serve("blue-400")
    item = painted("p", 3)
    item.record.regions = item.record.regions[2:]
    config(server).build()([item])
    assert reasons([item]) == ["endpoint-http-400"] and texts([item]) == [[]]
    assert [tuple(e["sizes"][0]) for e in server.events("asked")][1:] == [(112, 112)]


def test_regions_that_are_answered_do_not_speak_for_paragraphs(serve, config):
    """Another limit of tokens is another question: that crops are answered does not make it the pictures' fault."""
    server = serve("paragraphs-400")
    with pytest.raises(AnnotateError, match="the limit of tokens is too large"):
        config(server, whole_image=True, concurrency=1).build()([painted("p", 2)])


@pytest.mark.parametrize(
    ("knows", "reported"),
    [
        ("max_completion_tokens+temperature", ""),
        ("max_completion_tokens", "refuses a temperature"),
        ("max_tokens", "refuses a temperature"),
    ],
)
def test_a_parameter_that_the_server_refuses_is_asked_for_in_another_way(serve, config, capsys, knows, reported):
    server = serve(f"wants-{knows}")
    items = [painted(f"p{i}", 3) for i in range(2)]
    right = [expected(item) for item in items]
    config(server, concurrency=1).build()(items)
    assert texts(items) == right and reasons(items) == []
    changes = 1 if knows == "max_tokens" or "+" in knows else 2
    assert len(server.events("asked")) == 6 + changes  # found out once, not once for each region
    printed = capsys.readouterr().err
    assert (reported in printed) and bool(printed) == bool(reported)


def test_a_server_that_takes_no_limit_of_tokens_is_reported(serve, config):
    with pytest.raises(AnnotateError, match="Unsupported parameter: 'max_completion_tokens'"):
        config(serve("wants-temperature")).build()([painted("p", 2)])


def choice(message, ended="stop"):
    """A behaviour of the server: this choice is its answer."""
    content = json.dumps({"index": 0, "message": message, "finish_reason": ended})
    return "choice-" + base64.urlsafe_b64encode(content.encode()).decode()


@pytest.mark.parametrize(
    ("message", "ended", "outcome"),
    [
        ({"content": [{"type": "text", "text": "a red"}, {"type": "text", "text": " mug"}]}, "stop", "a red mug"),
        ({"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a mug"}]}, "stop", "a mug"),
        ({"content": [{"type": "output_text", "text": "a mug"}, {"type": "image_url"}]}, "stop", "a mug"),
        ({"content": ["a", " mug"]}, "stop", "a mug"),
        ({"content": "a mug", "reasoning_content": "it may be a cup"}, "stop", "a mug"),
        ({"content": "it may be a cup\n</think>\n\na mug"}, "stop", "a mug"),
        ({"content": "a mug"}, None, "a mug"),
        ({"content": None, "reasoning_content": "it is a mug"}, "stop", "caption-empty"),
        ({"content": None, "reasoning_content": "it is a"}, "length", "caption-cut-off"),
        ({"content": "a mug with a"}, "length", "caption-cut-off"),
        ({"content": "a mug with a"}, "max_tokens", "caption-cut-off"),
        ({"content": None}, "stop", "caption-empty"),
        ({}, "stop", "caption-empty"),
        ({"content": []}, "stop", "caption-empty"),
        ({"content": 7}, "stop", "caption-empty"),
        ({"content": None, "refusal": "That is a person."}, "stop", "caption-refused"),
        ({"content": "a mug"}, "content_filter", "caption-refused"),
        (
            {"content": None, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}]},
            "tool_calls",
            "caption-tool-call",
        ),
        ({"content": "<loc0000><loc0034>"}, "stop", "caption-location"),
    ],
)
def test_whatever_a_server_returns_is_a_clean_text_or_refused(serve, config, message, ended, outcome):
    item = painted("p", 1)
    config(serve(choice({"role": "assistant", **message}, ended))).build()([item])
    if outcome.startswith("caption-"):
        assert (texts([item]), reasons([item])) == ([[]], [outcome])
    else:
        assert (texts([item]), reasons([item])) == ([[outcome]], [])


def test_an_answer_that_the_server_broke_off_is_asked_for_again(serve, config):
    with pytest.raises(AnnotateError, match="endpoint-aborted"):
        config(serve(choice({"content": "a mu"}, "abort")), patience_s=0.3).build()([painted("p", 1)])


@pytest.mark.parametrize(
    ("codec", "box"),
    [
        ("", "[0.100, 0.100, 0.300, 0.500]"),
        ("int1000", "[100, 100, 300, 500]"),
        ("loc:100", "<loc0010><loc0010><loc0030><loc0050>"),
    ],
)
def test_a_box_is_written_as_the_captioner_reads_it(serve, config, codec, box):
    item = painted("p", 1)
    item.record.regions = [Region((30, 20, 90, 100), "thing")]
    server = serve()
    config(server, mode="box", codec=codec).build()([item])
    assert box in server.events("asked")[0]["prompt"]


@pytest.mark.parametrize("mode", ["crop", "crop+image", "auto"])
def test_a_codec_where_no_box_is_written_out_is_refused(serve, config, mode):
    with pytest.raises(AnnotateError, match="^caption: codec: no box is written out"):
        config(serve(), mode=mode, codec="int1000").build()
    if mode == "crop+image":
        config(serve(), mode=mode, codec="int1000", prompt="Name {box} in {words} words.").build()


def test_a_codec_that_nobody_knows(serve, config):
    with pytest.raises(AnnotateError, match="unknown coordinate codec 'words'"):
        config(serve(), codec="words").build()


def test_nothing_there(tmp_path):
    with pytest.raises(AnnotateError, match="nothing answers at .*vllm serve painter"):
        CaptionConfig(MODEL, "http://127.0.0.1:9/v1", cache=str(tmp_path / "c")).build()


def test_a_web_site_is_no_endpoint(serve, config):
    with pytest.raises(AnnotateError, match="web page; does the address lack its /v1"):
        config(serve("web-site")).build()


def test_a_refused_key_names_the_variable(serve, config):
    with pytest.raises(AnnotateError, match=r"refuses the key.*\$MY_KEY"):
        config(serve("locked"), api_key_env="MY_KEY").build()


def test_a_cache_that_breaks_ends_the_run(serve, config, tmp_path):
    annotator = config(serve()).build()
    with sqlite3.connect(tmp_path / "cache.sqlite") as other:
        other.execute("CREATE TRIGGER full BEFORE INSERT ON answers BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
    with pytest.raises(AnnotateError, match=r"cache.sqlite: the cache of captions cannot be written: disk is full"):
        annotator([painted("p", 5)])


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["max_words", "region_tokens", "global_tokens", "concurrency", "timeout_s", "patience_s"]
)
def test_settings_out_of_range(name):
    with pytest.raises(AnnotateError, match=f"caption: {name} must be positive"):
        CaptionConfig("m", **{name: 0}).build()


def test_settings_are_plain_data_and_import_nothing_heavy():
    code = (
        "import sys; from granvit.corpus.annotate.caption import CaptionConfig; "
        "assert CaptionConfig('Qwen/Qwen2.5-VL-7B-Instruct').name == 'captioner:Qwen2.5-VL-7B-Instruct'; "
        "assert not {'torch', 'transformers', 'openai'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_pause_that_a_server_asks_for():
    assert [_retry_after(h) for h in (None, "", "soon", "7", "0.5", "-3")] == [0, 0, 0, 7, 0.5, 0]
    assert 50 < _retry_after(formatdate(time.time() + 60, usegmt=True)) <= 60


def test_an_image_is_not_given_up_while_the_endpoint_is_still_waited_for():
    waiting = CaptionConfig("m", "http://localhost:1/v1", patience_s=10.0, timeout_s=5.0)
    assert Plan("keep", caption=waiting, image_seconds=2.0).seconds_for(3) == 3 * 2 + 10 + 2 * 5
    assert Plan("keep", caption=replace(waiting, endpoint=""), image_seconds=2.0).seconds_for(3) == 3 * 2
