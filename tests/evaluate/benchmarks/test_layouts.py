"""A miniature of every layout as it is published, and what can be wrong with it."""

import base64
import csv
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from granvit.errors import GranvitError
from granvit.evaluate.benchmarks import BENCHMARKS, open_benchmark
from granvit.images import decode
from granvit.questions import ONE_LETTER, SHORT_ANSWER


def picture(color):
    file = io.BytesIO()
    Image.new("RGB", (30, 20), color).save(file, "PNG")
    return file.getvalue()


def put(path, color="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(color))


def items_of(eval_set):
    return [item for image in eval_set.images() for item in image.items]


def loaded(eval_set):
    """Each image's first pixel."""
    return {image.id: decode(image.load()).getpixel((0, 0)) for image in eval_set.images()}


RED, BLUE = (255, 0, 0), (0, 0, 255)

# --- documents -------------------------------------------------------------------------------------------------------

DOCVQA = {"questionId": 7, "question": "What is the date?", "image": "documents/a.png", "answers": ["1/2", "1 / 2"]}


def docvqa(folder, rows, key="data"):
    put(folder / "documents" / "a.png")
    (folder / "val_v1.0_withQT.json").write_text(json.dumps({"dataset_name": "docvqa", key: rows}))
    return folder


def test_docvqa(tmp_path):
    eval_set = open_benchmark("docvqa", docvqa(tmp_path, [DOCVQA, {**DOCVQA, "questionId": 8}]))
    assert [(i.key, i.truth, i.asked) for i in items_of(eval_set)] == [
        (key, ["1/2", "1 / 2"], f"What is the date?\n{SHORT_ANSWER}") for key in ("7", "8")
    ]
    assert loaded(eval_set) == {"documents/a.png": RED} and eval_set.image_count == 1
    assert (eval_set.tasks[0].scorer, eval_set.tasks[0].group, eval_set.tasks[0].expected) == ("anls", "ocr", 5349)


def test_infovqa_finds_its_pictures(tmp_path):
    put(tmp_path / "infographicsvqa_images" / "1.jpeg", "blue")
    row = {"questionId": 1, "question": "How many?", "image_local_name": "1.jpeg", "answers": ["4"]}
    (tmp_path / "infographicsVQA_val_v1.0_withQT.json").write_text(json.dumps({"data": [row]}))
    eval_set = open_benchmark("infovqa", tmp_path)
    assert loaded(eval_set) == {"1.jpeg": BLUE} and eval_set.tasks[0].expected == 2801


def test_textvqa_has_ten_answers(tmp_path):
    put(tmp_path / "elsewhere" / "abc.jpg")
    row = {"question_id": 3, "image_id": "abc", "question": "what brand?", "answers": ["nokia"] * 9 + ["phone"]}
    file = tmp_path / "TextVQA_0.5.1_val.json"
    file.write_text(json.dumps({"data": [row]}))
    eval_set = open_benchmark("textvqa", file, tmp_path / "elsewhere")
    [item] = items_of(eval_set)
    assert (item.key, len(item.truth), eval_set.tasks[0].scorer) == ("3", 10, "vqa")


def test_chartqa_scores_people_and_machine_each_by_itself(tmp_path):
    put(tmp_path / "png" / "1.png")
    for kind, label in (("human", "14"), ("augmented", 0.5)):
        row = {"imgname": "1.png", "query": f"{kind}?", "label": label}
        (tmp_path / f"test_{kind}.json").write_text(json.dumps([row]))
    eval_set = open_benchmark("chartqa", tmp_path)
    answers = [(i.task, i.truth) for i in items_of(eval_set)]
    assert answers == [("chartqa-augmented", ["0.5"]), ("chartqa-human", ["14"])]
    assert {t.scorer for t in eval_set.tasks} == {"relaxed"}


def test_ocrbench_is_asked_as_it_stands(tmp_path):
    put(tmp_path / "OCRBench_Images" / "HME" / "1.jpg")
    row = {
        "dataset_name": "HME100k",
        "image_path": "HME/1.jpg",
        "question": "Write it.",
        "answers": "x + y",
        "type": "t",
    }
    (tmp_path / "OCRBench.json").write_text(json.dumps([{**row, "id": 0}]))
    eval_set = open_benchmark("ocrbench", tmp_path)
    [item] = items_of(eval_set)
    assert (item.asked, item.kind, item.truth) == ("Write it.", "HME100k", ["x + y"])
    assert eval_set.tasks[0].scorer == "contains" and loaded(eval_set) == {"HME/1.jpg": RED}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{**DOCVQA, "answers": []}], "question 0: the field 'answers' holds no answers"),
        ([{**DOCVQA, "answers": [None]}], "question 0: the field 'answers' holds no answers"),
        ([{**DOCVQA, "answers": [" "]}], "question 0: the field 'answers' holds no answers"),
        ([{k: v for k, v in DOCVQA.items() if k != "question"}], "question 0: the field 'question' is missing"),
        ([{**DOCVQA, "image": 5}], "question 0: the field 'image' is missing or not as published"),
        (["text"], "question 0: the field 'image' is missing"),
        ([], 'a list of questions is expected under "data"'),
        ([{**DOCVQA, "image": "documents/b.png"}], "no picture 'documents/b.png' in"),
    ],
)
def test_what_is_wrong_with_a_question_is_named(tmp_path, rows, said):
    with pytest.raises(ValueError, match=said):
        open_benchmark("docvqa", docvqa(tmp_path, rows))


@pytest.mark.parametrize("bad", [5, {"questionId": 9}, {**DOCVQA, "questionId": 9, "answers": []}, dict(DOCVQA)])
def test_a_damaged_row_is_counted_and_named_and_the_rest_is_asked(tmp_path, bad):
    """The last one is the id of another question, by which answers would be confused."""
    rows = [DOCVQA, bad, {**DOCVQA, "questionId": 8, "image": "documents/absent.png"}]
    eval_set = open_benchmark("docvqa", docvqa(tmp_path, rows))
    assert [item.key for item in items_of(eval_set)] == ["7", "8"]
    [note] = eval_set.notes
    assert note.startswith("docvqa: 1 damaged rows are left out, such as ") and ("question 1" in note or "'7'" in note)


def test_the_first_picture_may_be_the_absent_one(tmp_path):
    rows = [{**DOCVQA, "image": "documents/absent.png"}, {**DOCVQA, "questionId": 8}]
    eval_set = open_benchmark("docvqa", docvqa(tmp_path, rows))
    absent, there = eval_set.images()
    assert decode(there.load()).getpixel((0, 0)) == RED
    with pytest.raises(GranvitError, match="missing-image"):
        absent.load()


def lines(*rows):
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


POPE = {"question_id": 1, "image": "1.jpg", "text": "Is there a dog?", "label": "yes"}
SEED = {"question_id": "1", "question": "Which?", "answer": "C", "data_id": "1.jpg", "data_type": "image"}
SEED |= {f"choice_{letter}": f"option {letter}" for letter in "abcd"}
QA = {"question": "?", "answer": "a"}
PROBLEM = {"question": "Which?", "choices": ["x", "y"], "answer": 1, "split": "test", "image": "image.png"}


@pytest.mark.parametrize(
    ("name", "file", "text"),
    [
        ("pope", "coco_pope_random.json", lines(POPE, "{", {**POPE, "question_id": 2, "label": "maybe"}, [1])),
        ("seed", "SEED-Bench.json", json.dumps([SEED, {**SEED, "answer": "E"}, {**SEED, "choice_d": None}, None])),
        ("scienceqa", "problems.json", json.dumps({"5": PROBLEM, "6": {**PROBLEM, "answer": 9}, "7": [], "8": 5})),
        (
            "f30k_vqa",
            "annotations.jsonl",
            lines({"image": "1.jpg", "qa": [QA, 5]}, "x", 7),
        ),
        ("chartqa", "test_human.json", json.dumps([{"imgname": "1.jpg", "query": "?", "label": "1"}, {}, 5, None])),
    ],
)
def test_damaged_rows_of_every_layout_are_left_out(tmp_path, name, file, text):
    put(tmp_path / "1.jpg")
    put(tmp_path / "5" / "image.png")
    (tmp_path / file).write_text(text)
    eval_set = open_benchmark(name, tmp_path)
    assert len(items_of(eval_set)) == 1
    assert any(n.startswith(f"{name}: 3 damaged rows are left out, such as ") for n in eval_set.notes), eval_set.notes


def test_damaged_rows_of_tables_are_left_out(tmp_path):
    image = base64.b64encode(picture("blue")).decode()
    rows = [{**MMBENCH, "answer": "B", "image": image}, {**MMBENCH, "index": "4", "answer": "D", "image": image}]
    eval_set = open_benchmark("mmbench", mmbench(tmp_path, rows))
    assert {item.id for item in items_of(eval_set)} == {"3"} and "question 2: the answer 'D'" in eval_set.notes[0]


def test_what_is_wrong_with_a_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds none of val_v1"):
        open_benchmark("docvqa", tmp_path)
    docvqa(tmp_path, [DOCVQA], key="questions")
    with pytest.raises(ValueError, match='a list of questions is expected under "data"'):
        open_benchmark("docvqa", tmp_path)
    (tmp_path / "val_v1.0_withQT.json").write_text('{"data": [')
    with pytest.raises(ValueError, match="val_v1.0_withQT.json"):
        open_benchmark("docvqa", tmp_path)
    with pytest.raises(ValueError, match="unknown benchmark 'chess': use one of chartqa"):
        open_benchmark("chess", tmp_path)
    with pytest.raises(ValueError, match="nowhere does not exist"):
        open_benchmark("docvqa", tmp_path / "nowhere")


def test_a_picture_outside_its_folder_is_not_read(tmp_path):
    put(tmp_path / "secret.png")
    (tmp_path / "inner").mkdir()
    eval_set = open_benchmark("docvqa", docvqa(tmp_path / "inner", [{**DOCVQA, "image": "../secret.png"}]))
    with pytest.raises(ValueError, match="path-outside"):
        next(eval_set.images()).load()


# --- packs -----------------------------------------------------------------------------------------------------------


def pack(folder, splits):
    lines = []
    for i, split in enumerate(splits):
        put(folder / "images" / f"{i}.png")
        row = {"image": f"images/{i}.png", "split": split, "qa": [{"question": "Total?", "answer": f"{i}.00"}]}
        lines.append(json.dumps(row) + "\n")
    lines.append(json.dumps({"image": "images/0.png", "split": "test"}) + "\n")
    (folder / "annotations.jsonl").write_text("".join(lines))
    return folder


def test_packs_ask_what_is_held_out(tmp_path):
    eval_set = open_benchmark("sroie", pack(tmp_path, ["train", "val", "test"]))
    assert [(i.id, i.truth, i.asked) for i in items_of(eval_set)] == [
        ("images/1.png", ["1.00"], f"Total?\n{SHORT_ANSWER}"),
        ("images/2.png", ["2.00"], f"Total?\n{SHORT_ANSWER}"),
    ]
    assert eval_set.notes == []


def test_a_pack_without_splits_is_asked_whole_and_says_so(tmp_path):
    eval_set = open_benchmark("f30k_vqa", pack(tmp_path, ["train", "train"]))
    assert [i.asked for i in items_of(eval_set)] == ["Total?", "Total?"]
    assert eval_set.notes == ["f30k_vqa: no split is held out, all 2 questions are asked"]
    (tmp_path / "annotations.jsonl").write_text('{"image": "images/0.png"}\n{"image"\n')
    with pytest.raises(ValueError, match="annotations.jsonl: line 2"):
        open_benchmark("f30k_vqa", tmp_path)


# --- POPE ------------------------------------------------------------------------------------------------------------


def test_pope(tmp_path):
    put(tmp_path / "val2014" / "COCO_val2014_000000000001.jpg")
    for kind in ("random", "adversarial"):
        rows = [
            {"question_id": n, "image": "COCO_val2014_000000000001.jpg", "text": "Is there a dog?", "label": label}
            for n, label in enumerate(("yes", "No"))
        ]
        (tmp_path / f"coco_pope_{kind}.json").write_text("".join(json.dumps(r) + "\n" for r in rows))
    eval_set = open_benchmark("pope", tmp_path)
    assert [(i.task, i.key, i.truth) for i in items_of(eval_set)] == [
        ("pope-adversarial", "0", ["yes"]),
        ("pope-adversarial", "1", ["no"]),
        ("pope-random", "0", ["yes"]),
        ("pope-random", "1", ["no"]),
    ]
    assert eval_set.image_count == 1
    (tmp_path / "coco_pope_random.json").write_text(json.dumps({**rows[0], "label": "maybe"}))
    with pytest.raises(ValueError, match="line 1: the label is 'maybe', not yes or no"):
        open_benchmark("pope", tmp_path)


# --- multiple choice -------------------------------------------------------------------------------------------------

MMBENCH = {"index": "3", "question": "Which colour?", "hint": "nan", "A": "red", "B": "blue", "C": "green", "D": "nan"}


def mmbench(folder, rows):
    file = folder / "mmbench_dev_en.tsv"
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, [*MMBENCH, "answer", "image"], delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return file


def test_mmbench_turns_the_options(tmp_path):
    image = base64.b64encode(picture("blue")).decode()
    rows = [
        {**MMBENCH, "answer": "B", "image": image},
        {
            **MMBENCH,
            "index": "4",
            "hint": "EvalImage.",
            "C": "nan",
            "answer": "A",
            "image": "3",
        },  # the picture of question 3
        {**MMBENCH, "index": "1000003", "answer": "A", "image": image},
    ]
    eval_set = open_benchmark("mmbench", mmbench(tmp_path, rows))
    items = items_of(eval_set)
    assert [(i.id, i.key, i.options, i.truth) for i in items] == [
        ("3", "3/0", ["red", "blue", "green"], ["B"]),
        ("3", "3/1", ["blue", "green", "red"], ["A"]),
        ("3", "3/2", ["green", "red", "blue"], ["C"]),
        ("4", "4/0", ["red", "blue"], ["A"]),
        ("4", "4/1", ["blue", "red"], ["B"]),
    ]
    assert items[0].asked == f"Which colour?\nA. red\nB. blue\nC. green\n{ONE_LETTER}"
    assert items[4].asked == f"EvalImage.\nWhich colour?\nA. blue\nB. red\n{ONE_LETTER}"
    assert loaded(eval_set) == {"3": BLUE, "4": BLUE}


def test_mmbench_damaged(tmp_path):
    for row, said in (
        ({"answer": "", "image": "x"}, "question 1: one of index, question, A, B, answer, image is missing"),
        ({"answer": "D", "image": "x"}, "question 1: the answer 'D' is none of its 3 options"),
    ):
        with pytest.raises(ValueError, match=said):
            open_benchmark("mmbench", mmbench(tmp_path, [{**MMBENCH, **row}]))
    for image in ("no base64!", "aé=="):
        eval_set = open_benchmark("mmbench", mmbench(tmp_path, [{**MMBENCH, "answer": "A", "image": image}]))
        with pytest.raises(GranvitError, match="the image of question 3"):
            next(eval_set.images()).load()


def test_seed_asks_about_single_images(tmp_path):
    put(tmp_path / "SEED-Bench-image" / "a_b")
    row = {"question_id": "1", "question": "Which?", "answer": "C", "data_id": "a_b", "data_type": "image"}
    row |= {f"choice_{letter}": f"option {letter}" for letter in "abcd"}
    file = {"questions": [row, {**row, "data_type": "video"}], "question_type": {}}
    (tmp_path / "SEED-Bench.json").write_text(json.dumps(file))
    eval_set = open_benchmark("seed", tmp_path)
    [item] = items_of(eval_set)
    assert item.options == ["option a", "option b", "option c", "option d"] and item.truth == ["C"]
    assert loaded(eval_set) == {"a_b": RED}


def test_scienceqa_asks_test_questions_with_a_picture(tmp_path):
    put(tmp_path / "test" / "5" / "image.png")
    problem = {"question": "Which?", "choices": ["x", "y"], "answer": 1, "hint": "Read.", "split": "test"}
    problems = {
        "5": {**problem, "image": "image.png"},
        "6": {**problem, "image": None},
        "7": {**problem, "image": "image.png", "split": "val"},
    }
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    eval_set = open_benchmark("scienceqa", tmp_path)
    [item] = items_of(eval_set)
    assert item.truth == ["B"] and item.asked == f"Read.\nWhich?\nA. x\nB. y\n{ONE_LETTER}"
    assert loaded(eval_set) == {"5/image.png": RED}
    (tmp_path / "problems.json").write_text(json.dumps({"5": {**problems["5"], "answer": 2}}))
    with pytest.raises(ValueError, match="problem 5: the answer 2 is none of its 2 choices"):
        open_benchmark("scienceqa", tmp_path)


def test_mmmu_leaves_questions_about_several_pictures_out_and_says_so(tmp_path):
    image = {"bytes": picture("blue"), "path": "a.png"}
    row = {
        "id": "validation_Art_1",
        "question": "What is <image 1>?",
        "options": '[\'a "cat"\', "a dog\'s tail"]',
        "question_type": "multiple-choice",
        "answer": "B",
        "image_1": image,
        "image_2": None,
    }
    rows = [
        row,
        {**row, "id": "validation_Art_2", "question_type": "open", "options": "[]", "answer": "['0.5', '1/2']"},
        {**row, "id": "validation_Art_3", "image_2": image},
    ]
    (tmp_path / "Art").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "Art" / "validation-00000-of-00001.parquet")
    eval_set = open_benchmark("mmmu", tmp_path)
    choice, free = items_of(eval_set)
    assert choice.options == ['a "cat"', "a dog's tail"] and choice.asked.startswith("What is ?\nA. a")
    assert (choice.truth, free.truth, free.options) == (["B"], ["0.5", "1/2"], [])
    assert loaded(eval_set) == {"validation_Art_1": BLUE, "validation_Art_2": BLUE}
    assert eval_set.notes == ["mmmu: 1 questions about several pictures are left out"]
    pq.write_table(pa.Table.from_pylist([{**row, "options": "[__import__('os')]"}]), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="question 0: .* is no list"):
        open_benchmark("mmmu", tmp_path / "x.parquet")


def test_every_benchmark_tells_its_layout_and_belongs_to_a_group():
    assert set(BENCHMARKS) >= {"refcoco", "docvqa", "infovqa", "textvqa", "chartqa", "ocrbench", "sroie", "f30k_vqa"}
    for reader in BENCHMARKS.values():
        assert (reader.__doc__ or "").startswith("SRC is ")
