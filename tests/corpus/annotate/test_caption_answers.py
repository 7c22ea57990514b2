import pytest

from granvit.corpus.annotate.caption_answers import Answer, Refusal, judge
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
    ],
)
def test_descriptions_are_kept_without_their_wrapping(said, caption):
    assert judge(Answer(said), PROMPT, 10) == caption


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
    ],
)
def test_what_is_no_description_is_refused_with_its_reason(said, reason):
    verdict = judge(Answer(said), PROMPT, 10)
    assert isinstance(verdict, Refusal) and verdict.reason == reason


def test_the_box_said_back_is_an_echo():
    prompt = PROMPTS["box"].replace("{box}", "[0.100, 0.200, 0.300, 0.400]").replace("{words}", "10")
    verdict = judge(Answer("[0.100, 0.200, 0.300, 0.400]"), prompt, 10)
    assert isinstance(verdict, Refusal) and verdict.reason == "caption-echo"


def test_the_firmer_words_said_back_are_an_echo():
    verdict = judge(Answer("a short phrase of at most 10 words"), PROMPT + FIRMER.replace("{words}", "10"), 10)
    assert isinstance(verdict, Refusal) and verdict.reason == "caption-echo"


def test_an_answer_that_ran_into_the_limit_is_cut_off():
    verdict = judge(Answer("a dog that is", cut=True), PROMPT, 10)
    assert verdict == Refusal("caption-cut-off", "a dog that is")


def test_a_paragraph_may_be_long():
    paragraph = "The image shows a beach. " * 40
    assert judge(Answer(paragraph), GLOBAL, None) == paragraph.strip()
    assert judge(Answer("Describe in detail what is shown in the image"), GLOBAL, None) != paragraph
    verdict = judge(Answer("I'm unable to view images."), GLOBAL, None)
    assert isinstance(verdict, Refusal) and verdict.reason == "caption-refused"
