import random
import re
import time

import pytest

from granvit.corpus.annotate.caption_answers import Answer, Refusal, usable_caption
from granvit.corpus.annotate.caption_requests import FIRMER, PROMPTS
from granvit.questions import GLOBAL

PROMPT = PROMPTS["crop"].replace("{words}", "10")


@pytest.mark.parametrize(
    ("said", "caption"),
    [
        ("a small red star", "a small red star"),
        ("  A dog\n on  the beach. ", "A dog on the beach."),
        ('"A dog."', "A dog."),
        ("“A dog”", "A dog"),
        ("**A dog**", "A dog"),
        ("Caption: a dog", "a dog"),
        ("<think>The user wants...\n10 words.</think>\n\nA dog", "A dog"),
        ("one two three four five six seven eight nine ten", "one two three four five six seven eight nine ten"),
        ("I love NY mug", "I love NY mug"),
        ("sorry we are closed sign", "sorry we are closed sign"),
        ("No parking sign", "No parking sign"),
        ("a picture in a frame", "a picture in a frame"),
        ("Unclear lettering on a white van", "Unclear lettering on a white van"),
        ("红色的星星", "红色的星星"),
        ("7", "7"),
        ("I should say a dog.\n</think>\n\nA dog", "A dog"),
        ("<think>a<think>b</think>c</think>A dog", "A dog"),
        ("<think>a <think>b</think> A dog", "A dog"),
        ("A dog <think>or is it", "A dog"),
        ("<thinking>hm</thinking>A dog", "A dog"),
        ("[THINK]hm[/THINK]A dog", "A dog"),
        ("◁think▷hm◁/think▷A dog", "A dog"),
        ("<think>hm</think><answer>A dog</answer>", "A dog"),
        ("[INST] What is it? [/INST] A dog", "A dog"),
        (
            "<|channel|>analysis<|message|>A cat?<|end|><|start|>assistant<|channel|>final<|message|>A dog<|return|>",
            "A dog",
        ),
        ("<|begin_of_box|>A dog<|end_of_box|>", "A dog"),
        ("<|object_ref_start|>a dog<|object_ref_end|>", "a dog"),
        ("<|box_start|>a red mug<|box_end|>", "a red mug"),
        ("<|im_start|>assistant\nA dog<|im_end|>\n<|im_start|>user\nAnd now?", "A dog"),
        ("A dog</s>", "A dog"),
        ("A dog<｜end▁of▁sentence｜>", "A dog"),
        ("```\nA dog\n```", "A dog"),
        ('```json\n{"caption": "A dog"}\n```', "A dog"),
        ('{"caption": "A dog"}', "A dog"),
        ('[{"description": "<think>x</think>A dog"}]', "A dog"),
        ("**Description:** A dog", "A dog"),
        ("# A dog", "A dog"),
        ("- A *big* dog", "A big dog"),
        ("a (*big*) **brown** dog, *old*.", "a (big) brown dog, old."),
        ("***A dog***", "A dog"),
        ("**A dog** and **a cat**", "A dog and a cat"),
        ("__A dog__ in the snow", "A dog in the snow"),
        ("**A *big* dog** barks", "A big dog barks"),
        ("一只**大**狗", "一只大狗"),
        ("5*3*2", "5*3*2"),
        ("5**3**2", "5**3**2"),
        ("2*3 and 4*5", "2*3 and 4*5"),
        ("a M*A*S*H poster", "a M*A*S*H poster"),
        ("f(x)*2*(y) on a board", "f(x)*2*(y) on a board"),
        ("a 4* and a 5* hotel", "a 4* and a 5* hotel"),
        ("3 * 4 * 5 on a board", "3 * 4 * 5 on a board"),
        ("*5*3*", "5*3"),
        ("a__b__c on a label", "a__b__c on a label"),
        ('"STOP" above "GO"', '"STOP" above "GO"'),
        ("“STOP” above “GO”", "“STOP” above “GO”"),
        ("'the dogs' and cats' toys'", "the dogs' and cats' toys"),
        ("'a dog's toy'", "a dog's toy"),
        ('""A dog""', "A dog"),
        ('"the "GO" sign"', 'the "GO" sign'),
        ("<p>A dog</p>", "A dog"),
        ("[A dog](http://dogs)", "A dog"),
        ("Sure! Here is the description: A dog", "A dog"),
        ("a <3 sticker", "a <3 sticker"),
        ("A scoreboard (3, 2)", "A scoreboard (3, 2)"),
        ("price 1 000 000 sign", "price 1 000 000 sign"),
        ("answer sheet on a desk", "answer sheet on a desk"),
    ],
)
def test_descriptions_are_kept_without_their_wrapping(said, caption):
    assert usable_caption(Answer(said), PROMPT, 10) == caption


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("", "caption-empty"),
        (" \n", "caption-empty"),
        ("...", "caption-empty"),
        ('""', "caption-empty"),
        ("<think>what could it be", "caption-empty"),
        ("one two three four five six seven eight nine ten eleven", "caption-too-long"),
        ("I'm sorry, but I can't help with that.", "caption-refused"),
        ("I’m sorry, I cannot see it", "caption-refused"),
        ("Sorry, I can't do that", "caption-refused"),
        ("Unfortunately, the image is too blurry", "caption-refused"),
        ("I cannot identify people in images.", "caption-refused"),
        ("As an AI language model, I have no eyes", "caption-refused"),
        ("Unable to determine the content.", "caption-refused"),
        ("It's not possible to tell", "caption-refused"),
        ("There is no image attached.", "caption-refused"),
        ("No image was provided.", "caption-refused"),
        ("Please provide the image.", "caption-refused"),
        ("N/A", "caption-refused"),
        ("None.", "caption-refused"),
        (PROMPT, "caption-echo"),
        ("Describe what this picture shows", "caption-echo"),
        ("describe what this picture shows in no more than ten words", "caption-echo"),
        (PROMPT + " A dog.", "caption-echo"),
        ("I should say a dog</think>", "caption-empty"),
        ("<|channel|>analysis<|message|>A cat or a dog", "caption-empty"),
        ("<loc0000><loc0034>", "caption-location"),
        ("2 objects:<loc0006>", "caption-location"),
        ("a dog <loc_12><loc_13><loc_14><loc_15>", "caption-location"),
        ("<12><40><55><80>", "caption-location"),
        ("<ref>a dog</ref><box>[[1, 2, 30, 40]]</box>", "caption-location"),
        ("<|object_ref_start|>a dog<|object_ref_end|><|box_start|>(1,2),(30,40)<|box_end|>", "caption-location"),
        ("[0.1, 0.2, 0.3, 0.4]", "caption-location"),
        ("0.1, 0.2, 0.3, 0.4", "caption-location"),
        ("A dog at [10 20 30 40]", "caption-location"),
        ("x1: 3, y1: 4, x2: 30, y2: 40", "caption-location"),
        ("[{'type': 'text', 'text': 'a dog'}]", "caption-structured"),
        ('{"name": "describe", "arguments": {"text": "a dog"}}', "caption-structured"),
        ('<tool_call>{"name": "describe"}</tool_call>', "caption-structured"),
        ('[{"label": "a dog"}, {"label": "a cat"}]', "caption-structured"),
        ('{"caption": "a dog', "caption-structured"),
        ("- a dog\n- a cat", "caption-structured"),
        ("| a | dog |\n|---|---|", "caption-structured"),
        ("<!doctype html><h1>Bad gateway</h1>", "caption-structured"),
        ("a dog <|", "caption-control-token"),
        ("a dog a dog a dog a dog a dog", "caption-loop"),
        ("red red red red red red", "caption-loop"),
        ("哈" * 40, "caption-loop"),
        ("红色的星星在蓝色的天空上面慢慢地移动着看起来很美丽", "caption-too-long"),
        ("word" * 9000, "caption-too-long"),
    ],
)
def test_what_is_no_description_is_refused_with_its_reason(said, reason):
    verdict = usable_caption(Answer(said), PROMPT, 10)
    assert isinstance(verdict, Refusal) and verdict.reason == reason


def test_the_box_said_back_is_an_echo():
    prompt = PROMPTS["box"].replace("{box}", "[0.100, 0.200, 0.300, 0.400]").replace("{words}", "10")
    verdict = usable_caption(Answer("[0.100, 0.200, 0.300, 0.400]"), prompt, 10)
    assert isinstance(verdict, Refusal) and verdict.reason == "caption-echo"


def test_the_firmer_words_said_back_are_an_echo():
    verdict = usable_caption(Answer("a short phrase of at most 10 words"), PROMPT + FIRMER.replace("{words}", "10"), 10)
    assert isinstance(verdict, Refusal) and verdict.reason == "caption-echo"


def test_an_answer_that_ran_into_the_limit_is_cut_off():
    verdict = usable_caption(Answer("a dog that is", cut=True), PROMPT, 10)
    assert verdict == Refusal("caption-cut-off", "a dog that is")


def test_a_paragraph_may_be_long():
    paragraph = " ".join(f"The image shows beach number {n}." for n in range(40))
    assert usable_caption(Answer(paragraph), GLOBAL, None) == paragraph.strip()
    assert usable_caption(Answer("Describe in detail what is shown in the image"), GLOBAL, None) != paragraph
    verdict = usable_caption(Answer("I'm unable to view images."), GLOBAL, None)
    assert isinstance(verdict, Refusal) and verdict.reason == "caption-refused"


def test_a_paragraph_that_goes_round_in_circles_is_refused():
    verdict = usable_caption(Answer("There is a beach with people. " * 9), GLOBAL, None)
    assert isinstance(verdict, Refusal) and verdict.reason == "caption-loop"


def test_a_paragraph_may_be_a_list_whose_marks_go():
    assert usable_caption(Answer("**Overview**\n- a dog\n- a cat"), GLOBAL, None) == "Overview a dog a cat"


def test_a_thought_that_ran_into_the_limit_is_cut_off_and_not_a_caption():
    for said in ("<think>it may be", "", '{"caption": "a d'):
        verdict = usable_caption(Answer(said, cut=True), PROMPT, 10)
        assert isinstance(verdict, Refusal) and verdict.reason == "caption-cut-off"


def test_what_the_server_calls_a_refusal_is_one_whatever_it_says():
    verdict = usable_caption(Answer("A dog", refusal="caption-refused"), PROMPT, 10)
    assert verdict == Refusal("caption-refused", "A dog")


PIECES = (
    *(
        "<think>",
        "</think>",
        "[INST]",
        "[/INST]",
        "<|im_end|>",
        "<|box_start|>",
        "<|channel|>final<|message|>",
        "<answer>",
    ),
    *(
        "[",
        "]",
        "{",
        "}",
        "(",
        ")",
        "1, ",
        "0.5, ",
        '"caption": ',
        '"a dog"',
        "```",
        "```json\n",
        "\n",
        "- ",
        "**",
        "#",
    ),
    *("<loc0001>", "a ", "dog ", "|", "<", "</", "p>", "x1=3", "\\", "'", "哈", "![a](b)"),
)


def test_nothing_of_a_protocol_is_ever_kept_whatever_is_thrown_together():
    rng = random.Random(0)
    kept = 0
    for _ in range(3000):
        said = "".join(rng.choice(PIECES) for _ in range(rng.randint(0, 30)))
        verdict = usable_caption(Answer(said, rng.random() < 0.1), PROMPT, rng.choice([10, None]))
        if isinstance(verdict, str):
            kept += 1
            assert not re.search(r"<\||\|>|<loc|think>|```|INST\]|<answer|\A\s|\s\Z", verdict), said
    assert kept > 100


@pytest.mark.parametrize(
    "piece", ["a", "1, 2 ", "(1,", "[1 ", "<p a", '{"a":', "**a*", "-\n", "<think>", "[a](", "```"]
)
def test_a_long_answer_of_whatever_kind_is_judged_at_once(piece):
    started = time.process_time()
    usable_caption(Answer(piece * (19_000 // len(piece))), PROMPT, None)
    assert time.process_time() - started < 2
