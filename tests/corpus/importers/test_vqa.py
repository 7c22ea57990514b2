"""Tables of questions become conversations, page by page, with their splits and the words of the evaluation."""

import json

import pytest
from helpers.importing import bring, save

from granvit.corpus.importers import import_corpus
from granvit.corpus.store import CorpusError
from granvit.errors import GranvitError
from granvit.evaluate.benchmarks import open_benchmark
from granvit.questions import SHORT_ANSWER
from granvit.regions import Turn


def pair(question, answer):
    return [Turn("user", f"{question}\n{SHORT_ANSWER}"), Turn("assistant", answer)]


PAGE = {"questionId": 7, "question": "What is the date?", "image": "documents/a.png", "answers": ["1/2", "1 / 2"]}


def docvqa(folder, *rows, name="train_v1.0_withQT.json"):
    save(folder / "documents/a.png")
    (folder / name).write_text(json.dumps({"dataset_name": "docvqa", "data": rows}))
    return folder


def test_docvqa(tmp_path):
    src = docvqa(tmp_path, PAGE | {"data_split": "train"}, PAGE | {"question": "Whose?", "answers": ["Ann's"]})
    [got], refused = bring("docvqa", src, tmp_path / "out", licence="CC")
    assert (got.id, got.uri, got.split, got.licence) == ("docvqa/documents/a.png", "documents/a.png", "train", "CC")
    assert got.conversations == [pair("What is the date?", "1/2"), pair("Whose?", "Ann's")] and refused == []
    assert import_corpus("docvqa", src, tmp_path / "again").left_out == {"further right answers of a question": 1}


def test_what_is_trained_on_is_what_is_asked(tmp_path):
    """The evaluation's reader of the same file asks in the same words."""
    src = docvqa(tmp_path, PAGE, name="val_v1.0_withQT.json")
    [got], _ = bring("docvqa", src, tmp_path / "out")
    [look] = open_benchmark("docvqa", src).images()
    assert got.split == "val" and got.conversations[0][0].text == look.items[0].asked
    assert got.conversations[0][1].text == look.items[0].truth[0]


def test_infovqa(tmp_path):
    save(tmp_path / "infographicsvqa_images/1.jpeg")
    row = {"questionId": 1, "question": "How many?", "image_local_name": "1.jpeg", "answers": ["4"]}
    (tmp_path / "infographicsVQA_train_v1.0.json").write_text(json.dumps({"data": [row]}))
    [got], _ = bring("infovqa", tmp_path, tmp_path / "out")
    assert (got.split, got.conversations) == ("train", [pair("How many?", "4")])


def test_textvqa_learns_the_most_frequent_answer(tmp_path):
    save(tmp_path / "train_images/ab12.jpg")
    row = {"image_id": "ab12", "question": "Brand?", "answers": ["x", "nokia", "nokia", "y"], "set_name": "train"}
    (tmp_path / "TextVQA_0.5.1_train.json").write_text(json.dumps({"data": [row]}))
    [got], _ = bring("textvqa", tmp_path / "TextVQA_0.5.1_train.json", tmp_path / "out")
    assert (got.split, got.conversations) == ("train", [pair("Brand?", "nokia")])


def test_chartqa_is_a_folder_of_two_files(tmp_path):
    save(tmp_path / "train/png/7.png")
    save(tmp_path / "train/png/8.png")
    for kind, name in (("human", "7.png"), ("augmented", "8.png")):
        row = {"imgname": name, "query": f"{kind}?", "label": 3}
        (tmp_path / f"train/train_{kind}.json").write_text(json.dumps([row, row]))
    got, refused = bring("chartqa", tmp_path / "train", tmp_path / "out")
    assert {r.uri: (r.split, r.conversations) for r in got} == {
        "7.png": ("train", [pair("human?", "3")] * 2), "8.png": ("train", [pair("augmented?", "3")] * 2),
    }  # fmt: skip
    assert refused == []


def test_all_splits_of_chartqas_root_are_read(tmp_path):
    """The same picture in two of them stays held out; each folder has pictures of its own."""
    for split in ("train", "val", "test"):
        for name in (f"{split}.png", "both.png") if split != "val" else ("val.png",):
            save(tmp_path / f"root/{split}/png/{name}", (30 + len(split), 30))
        row = {"imgname": f"{split}.png", "query": f"{split}?", "label": "3"}
        both = [] if split == "val" else [row | {"imgname": "both.png"}]
        (tmp_path / f"root/{split}/{split}_human.json").write_text(json.dumps([row, *both]))
        (tmp_path / f"root/{split}/{split}_augmented.json").write_text("[]")
    got, refused = bring("chartqa", tmp_path / "root", tmp_path / "out")
    assert {r.uri: (r.split, r.width, r.conversations) for r in got} == {
        "train.png": ("train", 35, [pair("train?", "3")]), "val.png": ("val", 33, [pair("val?", "3")]),
        "test.png": ("test", 34, [pair("test?", "3")]), "both.png": ("test", 34, [pair("test?", "3")]),
    }  # fmt: skip
    assert [(r.reason, r.uri, r.conversations) for r in refused] == [("duplicate-id", "both.png", 1)]


def test_the_folder_states_the_split_where_nothing_else_does(tmp_path):
    for split in ("train", "val"):
        save(tmp_path / f"dv/{split}/documents/{split}.png")
        page = PAGE | {"image": f"documents/{split}.png"}
        (tmp_path / f"dv/{split}/questions_v1.0.json").write_text(json.dumps({"data": [page]}))
    got, refused = bring("docvqa", tmp_path / "dv", tmp_path / "out")
    assert ({r.uri: r.split for r in got}, refused) == ({f"documents/{s}.png": s for s in ("train", "val")}, [])


def test_a_page_of_two_files_is_not_trained_on(tmp_path):
    src = docvqa(docvqa(tmp_path, PAGE), PAGE, name="val_v1.0_withQT.json")
    [got], refused = bring("docvqa", src, tmp_path / "out")
    assert got.split == "val" and [r.reason for r in refused] == ["duplicate-id"]


def test_damaged_rows(tmp_path):
    src = docvqa(
        tmp_path,
        PAGE,
        7,
        PAGE | {"image": None},
        PAGE | {"question": ["What?"]},
        PAGE | {"answers": []},
        PAGE | {"answers": [" ", None]},
        PAGE | {"image": "../secret.png"},
        PAGE | {"image": "gone.png"},
        PAGE | {"image": "gone.png", "question": "And?"},
    )
    [got], refused = bring("docvqa", src, tmp_path / "out")
    assert got.conversations == [pair("What is the date?", "1/2")]
    assert [(r.reason, r.conversation, r.conversations) for r in refused] == [
        ("bad-field", None, 1), ("bad-field", None, 1), ("bad-field", 1, 0), ("no-answer", 2, 0), ("no-answer", 3, 0),
        ("path-outside", None, 1), ("missing-image", None, 2),
    ]  # fmt: skip


def test_a_page_of_two_splits_is_not_trained_on(tmp_path):
    src = docvqa(tmp_path, PAGE | {"data_split": "val"}, PAGE | {"data_split": "train"})
    [got], refused = bring("docvqa", src, tmp_path / "out")
    assert got.split == "val" and [r.reason for r in refused] == ["duplicate-id"]


def test_wrong_places(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match=r"empty holds none of \*_v1\*.json"):
        import_corpus("docvqa", tmp_path / "empty", tmp_path / "out")
    (tmp_path / "a.json").write_text('{"questions": []}')
    with pytest.raises(CorpusError, match='a list of questions is expected under "data"'):
        import_corpus("docvqa", tmp_path / "a.json", tmp_path / "out")
    (tmp_path / "b.json").write_text(json.dumps({"data": [PAGE]}))
    with pytest.raises(
        GranvitError, match="no picture 'documents/a.png' in .*; name the pictures' folder with --images"
    ):
        import_corpus("docvqa", tmp_path / "b.json", tmp_path / "out")
