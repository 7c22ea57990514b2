import json

import pytest

from granvit.evaluate.answering import Journal, question_digest
from granvit.evaluate.items import Item, Task
from granvit.loading.run_folder import checkpoint_id

SHOWN = "digest of the picture"
TASKS = {"locate": Task("locate", "boxes"), "read": Task("read", "reading", window=64)}


def items():
    return [
        Item("img", "locate", (0, 0), ["cup"], (1, 2, 3, 4), key="0", how="phrase", asked="cup"),
        Item("img", "read", (0, 0), ["TEA"], (1, 2, 3, 4), key="0", how="box"),
    ]


def answered():
    some = items()
    some[0].said, some[0].found, some[0].size = "[0.1, ...]", (1.5, 2.0, 3.0, 4.0), (20, 10)
    some[0].confidence = 0.1 + 0.2
    some[1].said, some[1].size = "té", (20, 10)
    return some


@pytest.fixture
def path(tmp_path):
    with Journal(tmp_path / "answers.jsonl", "abc") as journal:
        journal.write(answered(), TASKS, SHOWN)
    return tmp_path / "answers.jsonl"


def recalled(path, checkpoint="abc"):
    some = items()
    with Journal(path, checkpoint) as journal:
        return some, [journal.recall(item, TASKS[item.task], SHOWN) for item in some]


def test_answers_are_found_again(path):
    some, known = recalled(path)
    assert known == [True, True] and some == answered()
    assert [item.confidence for item in some] == [0.1 + 0.2, None]


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_a_line_cut_off_by_a_crash_is_dropped_and_written_again(path, cut):
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert recalled(path)[1] == [True, False]
    with Journal(path, "abc") as journal:
        journal.write(answered()[1:], TASKS, SHOWN)
    assert path.read_bytes() == whole


def test_a_file_cut_within_its_first_line_begins_anew(path):
    path.write_bytes(path.read_bytes()[:10])
    assert recalled(path)[1] == [False, False]
    assert json.loads(path.read_text())["checkpoint"] == "abc"


def test_another_checkpoints_answers_are_refused(path):
    with pytest.raises(ValueError, match="answers.jsonl holds another checkpoint's answers"):
        Journal(path, "abd")


@pytest.mark.parametrize(
    ("line", "said"),
    [("[1]", "line 3 is not an answer"), ('{"task": 1}', "line 3 is not an answer"), ("{", "line 3: ")],
)
def test_a_damaged_line_is_named(path, line, said):
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    with pytest.raises(ValueError, match=f"answers.jsonl: {said}"):
        Journal(path, "abc")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"some": "thing"}', "line 1 is not that of a file of answers"),
        ('{"journal": "granvit-answers"}', "another checkpoint's answers"),
    ],
)
def test_another_file_is_refused(tmp_path, line, said):
    (tmp_path / "answers.jsonl").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=said):
        Journal(tmp_path / "answers.jsonl", "abc")


def test_what_decides_the_answer_decides_whether_it_is_known():
    locate, read = items()
    same = question_digest(locate, TASKS["locate"], SHOWN)
    locate.truth, locate.box = ["other"], (0, 0, 1, 1)  # the right answer is not shown to the model
    assert question_digest(locate, TASKS["locate"], SHOWN) == same
    locate.asked = "cups"
    assert question_digest(locate, TASKS["locate"], SHOWN) != same
    shown = question_digest(read, TASKS["read"], SHOWN)
    assert question_digest(read, Task("read", "reading", window=65), SHOWN) != shown
    assert question_digest(read, Task("read", "reading", window=64, longest=5), SHOWN) != shown
    assert question_digest(read, TASKS["read"], "another picture") != shown
    read.box = (1, 2, 3, 5)
    assert question_digest(read, TASKS["read"], SHOWN) != shown


def test_a_checkpoint_is_identified_by_its_weights_and_settings(tmp_path):
    inner = tmp_path / "run" / "checkpoint"
    inner.mkdir(parents=True)
    (inner / "granvit.json").write_text("{}")
    (inner / "model.safetensors").write_bytes(b"weights")
    first = checkpoint_id(tmp_path / "run")
    assert checkpoint_id(inner) == first
    (inner / "model.safetensors").write_bytes(b"weighty")
    assert checkpoint_id(inner) != first
