"""Conversations with boxes in them: whose they are, and relative to what."""

import json

import pytest
from helpers.importing import bring, save

from granvit.corpus.importers import import_corpus
from granvit.corpus.store import Corpus, CorpusError
from granvit.questions import ABOUT_BOX, BBOX2CAPTION, GLOBAL
from granvit.regions import Region, RegionImage, Turn

DESCRIBE = "Please provide a short description for this region: "
FIND = "Please provide the bounding box coordinate of the region this sentence describes: "


def entry(*turns, image="vg/VG_100K/2.jpg"):
    said = [part for q, a in turns for part in ({"from": "human", "value": q}, {"from": "gpt", "value": a})]
    said[0]["value"] = "<image>\n" + said[0]["value"]
    return {"id": "VG_100K/2", "image": image, "conversations": said}


def llava(folder, *entries, name="mix.json"):
    save(folder / "vg/VG_100K/2.jpg", (40, 20))
    text = json.dumps(entries) if name.endswith(".json") else "".join(json.dumps(e) + "\n" for e in entries)
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize("name", ["mix.json", "mix.jsonl"])
def test_regions_are_asked_about_or_answered_with(tmp_path, name):
    src = llava(
        tmp_path,
        entry(
            ("What is this?", "A street."),
            (DESCRIBE + "[0.25, 0.5, 0.5, 1.0]", "the red car: parked"),
            (FIND + "sign: [no] parking", "[0.0, 0.0, 0.1, 0.25]"),
            (DESCRIBE + "[0, 0, 0.5, 0.5]", "see [1, 2] and [30, 31, 32, 33]"),
            (FIND + "see [1, 2] and [30, 31, 32, 33]", "[0, 0, 0.5, 0.5]"),
            ("What does [30, 31] say?", "[5, 6]"),
        ),
        entry((GLOBAL, "A street with a car."), (FIND + "the red car: parked", "[0.25, 0.5, 0.5, 1.0]")),
        name=name,
    )
    [got], refused = bring("llava", src, tmp_path / "out", frame="image")
    assert (got.id, got.caption, got.split) == ("llava/vg/VG_100K/2.jpg", "A street with a car.", "train")
    assert got.regions == [
        Region((10, 10, 20, 20), "the red car: parked"),
        Region((0, 0, 4, 5), "sign: [no] parking"),
        Region((0, 0, 20, 10), "see [1, 2] and [30, 31, 32, 33]"),
    ]
    # The second one holds nothing but a caption and a region.
    [said] = got.conversations
    assert [turn.role for turn in said] == ["user", "assistant"] * 6
    assert (said[0].text, said[3].text, said[11].text) == ("What is this?", "the red car: parked", "[5, 6]")
    assert refused == []


@pytest.mark.parametrize(
    ("frame", "coordinates", "written", "box"),
    [
        ("image", "decimal", "[0.25, 0.5, 0.75, 0.75]", (10, 10, 30, 15)),
        ("canvas", "decimal", "[0.25, 0.5, 0.75, 0.75]", (10, 10, 30, 20)),  # 10 pixels of padding above and below
        ("image", "int1000", "[250, 500, 750, 750]", (10, 10, 30, 15)),
        ("canvas", "int1000", "[250, 500, 750, 750]", (10, 10, 30, 20)),
        ("image", "loc:8", "<loc0000><loc0000><loc0007><loc0007>", (0, 0, 40, 20)),
    ],
)
def test_what_boxes_are_relative_to_is_said_by_the_caller(tmp_path, frame, coordinates, written, box):
    src = llava(tmp_path, entry((DESCRIBE + written, "a dog")))
    [got], _ = bring("llava", src, tmp_path / "out", frame=frame, coordinates=coordinates)
    assert got.regions == [Region(box, "a dog")]
    assert got.conversations == []
    with pytest.raises(CorpusError, match='2.jpg: say what the boxes are relative to, with frame "image" or "canvas"'):
        bring("llava", src, tmp_path / "other", coordinates=coordinates)
    with pytest.raises(CorpusError, match="unknown coordinate codec 'pixels'"):
        bring("llava", src, tmp_path / "other", frame=frame, coordinates="pixels")


BOX = "[0.25, 0.5, 0.75, 0.75]"


@pytest.mark.parametrize(
    "question",
    [
        "Please provide a short description for this region: [0.25,0.5,0.75,0.75].",  # LLaVA-1.5, of RefCOCO and VG
        BOX.join(BBOX2CAPTION),
        BOX,
        f"Describe {BOX}",
        f"Describe the region {BOX} in one short sentence.",
        f"What is in {BOX}?",
        f"What's in the area {BOX}?",
        f"What does the text in {BOX} say?",
        f"What is written inside {BOX}?",
        f"Can you provide a description for the region {BOX} in the image?",
        f"Caption this box: {BOX}",
        f"Please read the text in {BOX}.",
        f"How would you describe the area {BOX}?",
    ],
)
def test_a_question_for_the_content_of_a_box_gives_its_text(tmp_path, question):
    [got], _ = bring("llava", llava(tmp_path, entry((question, "a dog"))), tmp_path / "out", frame="image")
    assert (got.regions, got.conversations) == ([Region((10, 10, 30, 15), "a dog")], [])


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (f"Is the person in {BOX} wearing a hat?", "Yes"),
        (f"Is there an object in {BOX}?", "Yes"),
        (f"Does the caption in {BOX} describe the picture?", "No"),
        (f"How many apples are in {BOX}?", "3"),
        (f"What colour is the object in {BOX}?", "Red"),
        (f"Describe the man left of {BOX}.", "He is tall."),
        (f"Why is {BOX} here?", "To be eaten."),
        (f"Answer in French: is {BOX} a cat?", "Non"),
        ("What is it?" + BOX.join(ABOUT_BOX), "x"),
    ],
)
def test_a_question_for_something_else_stays_a_conversation(tmp_path, question, answer):
    src = llava(tmp_path, entry((question, answer)))
    [got], refused = bring("llava", src, tmp_path / "out", frame="image")
    assert (got.regions, got.conversations) == ([], [said(question, answer)])
    assert [(r.reason, r.region) for r in refused] == [("empty-text", 0)]


def test_llavas_own_mixture(tmp_path):
    """Wordings of the 665k entries: regions where they ask for nothing else, and all that is said where they do."""
    asked = f"What is the relation of {BOX} to the wall?"
    src = llava(
        tmp_path,
        entry((DESCRIBE + "[0.25,0.5,0.75,0.75].", "dog"), (FIND + "white cup", "[0.5,0.5,0.75,1.0]")),
        entry((DESCRIBE + "[0.0,0.5,0.5,0.75].", "cat"), (asked, "It leans on it.")),
        entry(("Provide a one-sentence caption for the provided image.", "A room.")),
    )
    [got], _ = bring("llava", src, tmp_path / "out", frame="image")
    assert [(r.text, r.box) for r in got.regions] == [
        ("dog", (10, 10, 30, 15)), ("white cup", (20, 10, 30, 20)), ("cat", (0, 10, 20, 15)),
    ]  # fmt: skip
    assert got.conversations == [
        said(DESCRIBE + "[0.0,0.5,0.5,0.75].", "cat", asked, "It leans on it."),
        said("Provide a one-sentence caption for the provided image.", "A room."),
    ]


def test_boxes_that_cannot_be_used(tmp_path):
    src = llava(
        tmp_path,
        entry(
            ("Where are the dogs?", "[0.1, 0.1, 0.2, 0.2]"),  # whose phrase?
            ("Compare [0.1, 0.1, 0.2, 0.2] and [0.3, 0.3, 0.4, 0.4].", "Both are dogs."),
            ("What is in it?", "A dog [0.5, 0.5, 0.6, 0.6] on a bed."),
            (DESCRIBE + "[0.5, 0.5, 1.4, 0.6]", "beyond"),
            (DESCRIBE + "[0.5, 0.5, 0.6, -1]", "below"),
            (FIND + "inverted", "[0.6, 0.6, 0.5, 0.5]"),
            (DESCRIBE + "[0.1, 0.2, 0.3, 0.4]", ""),
            (DESCRIBE + "[0.1, 0.2, 0.3, 0.4]", "kept"),
        ),
    )
    [got], refused = bring("llava", src, tmp_path / "out", frame="image")
    assert [r.text for r in got.regions] == ["kept"]
    assert got.conversations == []
    assert [(r.reason, r.conversation) for r in refused if r.region is None] == [("empty-turn", 0)]
    assert [(r.reason, r.region) for r in refused if r.region is not None] == [
        ("empty-text", 0), ("empty-text", 1), ("empty-text", 2), ("bad-box", 3), ("bad-box", 4), ("bad-box", 5),
        ("empty-text", 6),
    ]  # fmt: skip


def test_damaged_entries(tmp_path):
    good = entry((DESCRIBE + "[0.1, 0.2, 0.3, 0.4]", "kept"))
    src = llava(
        tmp_path,
        good,
        good | {"conversations": good["conversations"][:1]},
        good | {"conversations": good["conversations"][::-1]},
        good | {"conversations": "hello"},
        good | {"image": ["a.jpg", "b.jpg"]},
        entry(("Hi", "Hi"), image="gone.jpg"),
        entry(("Hi", "Hi"), image="../secret.jpg"),
        7,
        name="mix.jsonl",
    )
    with src.open("a") as file:
        file.write('\n{"id": "cut off')
    [got], refused = bring("llava", src, tmp_path / "out", frame="image")
    assert len(got.regions) == 1 and got.conversations == []
    assert [(r.reason, r.conversation) for r in refused] == [
        ("several-images", None), ("not-json", None), ("not-json", None), ("bad-turns", 0), ("bad-turns", 1),
        ("missing-field", 2), ("missing-image", None), ("path-outside", None),
    ]  # fmt: skip
    with pytest.raises(CorpusError, match="a list of conversations is expected"):
        (tmp_path / "object.json").write_text("{}")
        bring("llava", tmp_path / "object.json", tmp_path / "other", frame="image")


def test_what_a_record_has_no_place_for_is_counted(tmp_path):
    src = llava(
        tmp_path,
        entry((DESCRIBE + "[0.1, 0.2, 0.3, 0.4]", "kept"), ("What colour is it?", "Red."), ("And now?", "Blue.")),
        {"id": "text", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        entry((GLOBAL, "A cup."), (GLOBAL, "A mug.")),
        entry(("Hi", "Hi")) | {"image": ["vg/VG_100K/2.jpg"]},
        entry((DESCRIBE + "[0.1, 0.2, 0.3, 0.4]", "lost"), image="gone.jpg"),
    )
    summary = import_corpus("llava", src, tmp_path / "out", frame="image")
    assert summary.left_out == {"further captions of a picture": 1}
    assert (summary.regions_seen, summary.regions_written, summary.regions_with_image) == (2, 1, 1)
    assert (summary.conversations_seen, summary.conversations_written, summary.without_picture) == (3, 3, 1)
    assert "left out           1  further captions of a picture" in str(summary)
    assert "images   2 of 3 written (1 without a picture, conversations alone)" in str(summary)
    assert "conversations  3 of 3 written" in str(summary)


def said(*texts):
    """Turns of user and assistant."""
    return [Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]


def test_conversations_are_kept_whole(tmp_path):
    src = llava(
        tmp_path,
        entry(("What is this?", "A cup."), ("Whose?", "Mine. <|im_end|>"), image=["vg/VG_100K/2.jpg"]),
        entry(("And <loc0001>?", "No.")),
        entry(("x", "It is here.")) | {"system": "Be short."},
        {"id": 1, "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": " Ho\r\n"}]},
    )
    got, refused = bring("llava", src, tmp_path / "out")
    assert [(r.reason, r.region) for r in refused] == [("bad-box", 0)]  # <loc0001> alone is none
    alone, pictured = got
    assert alone == RegionImage(
        "llava/mix.json:3", None, 0, 0, [], source="llava", split="train", conversations=[said("Hi", "Ho")]
    )
    assert (pictured.id, pictured.regions, pictured.caption) == ("llava/vg/VG_100K/2.jpg", [], None)
    assert pictured.conversations == [
        said("What is this?", "A cup.", "Whose?", "Mine. <|im_end|>"),
        said("And <loc0001>?", "No."),
        [Turn("system", "Be short."), *said("x", "It is here.")],
    ]


USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Ho"}


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "empty-conversation"),
        ([USER], "bad-turns"),
        ([ANSWER, USER], "bad-turns"),
        ([USER, USER, ANSWER], "bad-turns"),
        ([USER, ANSWER, USER], "bad-turns"),
        ([USER, {"role": "tool", "content": "7"}, ANSWER], "bad-turns"),
        ([USER, {"content": "Ho"}], "bad-turns"),
        ([USER, {"role": ["assistant"], "content": "Ho"}], "bad-turns"),
        ([USER, ANSWER | {"content": " \n"}], "empty-turn"),
        ([USER, ANSWER | {"content": 7}], "bad-field"),
        ([USER, ANSWER | {"content": [{"type": "video"}]}], "bad-field"),
        ("Hi", "missing-field"),
        ([USER, None], "bad-turns"),
        ([USER | {"content": "<image> and <image>"}, ANSWER], "image-token"),
        ([USER, ANSWER, USER | {"content": "<image>\nWho?"}, ANSWER], "image-token"),
        ([USER, ANSWER | {"content": "An <image>"}], "image-token"),
        ([USER, ANSWER | {"content": "x" * 100_000}], "long-conversation"),
    ],
)
@pytest.mark.parametrize("importer", ["llava", "sharegpt"])
def test_what_no_conversation_is(tmp_path, importer, turns, reason):
    good = {"image": "vg/VG_100K/2.jpg", "messages": [USER, ANSWER]}
    src = llava(tmp_path, good, good | {"messages": turns}, {"messages": turns}, good)
    [got], refused = bring(importer, src, tmp_path / "out")
    assert got.conversations == [said("Hi", "Ho")] * 2
    assert [(r.reason, r.conversation, r.conversations) for r in refused] == [(reason, None, 1), (reason, 1, 0)]


def test_what_a_picture_is_shown_for(tmp_path):
    """An `<image>` without a picture, several pictures, other media: refused; ShareGPT's parts are read."""
    good = {"image": "vg/VG_100K/2.jpg", "messages": [USER, ANSWER]}
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What does <image> mean?"}]
    long = "x" * 99_998
    src = llava(
        tmp_path,
        {"messages": [USER | {"content": "<image>\nWho?"}, ANSWER]},
        good | {"images": ["a.jpg"]},
        good | {"image": None, "images": ["a.jpg", "b.jpg"]},
        {"videos": ["a.mp4"], "messages": [USER, ANSWER]},
        good | {"image": [7]},
        good
        | {"image": None, "images": ["vg/VG_100K/2.jpg"], "messages": [{"role": "user", "content": parts}, ANSWER]},
        {"conversations": [{"from": "human", "value": long}, {"from": "gpt", "value": "Ho"}], "tools": "none"},
    )
    got, refused = bring("sharegpt", src, tmp_path / "out")
    assert [r.reason for r in refused] == [
        "image-token",
        "several-images",
        "several-images",
        "other-media",
        "bad-field",
    ]
    alone, pictured = got
    assert pictured.conversations == [said("What does <image> mean?", "Ho")]
    assert alone.conversations == [said(long, "Ho")]
    assert import_corpus("sharegpt", src, tmp_path / "again").left_out == {"field 'tools'": 1}


@pytest.mark.parametrize("importer", ["llava", "sharegpt"])
def test_fields_that_are_not_read_are_counted(tmp_path, importer):
    good = {"image": "vg/VG_100K/2.jpg", "messages": [USER, ANSWER]}
    turns = [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]
    src = llava(tmp_path, good | {"conversations": turns, "model": ""}, good | {"conversations": []})
    summary = import_corpus(importer, src, tmp_path / "out")
    assert summary.left_out == {"field 'model'": 1, "field 'messages' beside 'conversations'": 1}
    [got] = Corpus(tmp_path / "out")
    assert got.conversations == [said("x", "y"), said("Hi", "Ho")]


def test_boxes_are_text_to_sharegpt(tmp_path):
    src = llava(tmp_path, entry((DESCRIBE + "[0.1, 0.2, 0.3, 0.4]", "a dog"), (GLOBAL, "A dog.")))
    [got], refused = bring("sharegpt", src, tmp_path / "out")
    assert (got.regions, got.caption, refused) == ([], None, [])
    assert got.conversations == [said(DESCRIBE + "[0.1, 0.2, 0.3, 0.4]", "a dog", GLOBAL, "A dog.")]


def test_nothing_but_refused_conversations_is_no_corpus(tmp_path):
    src = llava(tmp_path, entry(("Hi", "")))
    with pytest.raises(CorpusError, match=r"none of 1 conversations could be used \(empty-turn 1\)"):
        import_corpus("llava", src, tmp_path / "out")
