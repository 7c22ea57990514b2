"""A pipe in place of a benchmark's file is refused; nobody would ever write into it."""

import os

import pytest

from granvit.corpus.dedup.leakage import load_benchmarks
from granvit.errors import GranvitError
from granvit.evaluate.answering import Journal
from granvit.evaluate.benchmarks.base import LeftOut, json_lines
from granvit.evaluate.benchmarks.choices import mmbench
from granvit.evaluate.evaluation import ITEMS, SCORES, read_scores


@pytest.mark.parametrize("name", ["names.txt", "names.jsonl", "ids.json.gz"])
def test_a_list_of_names(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(GranvitError, match=f"{name}: not a regular file"):
        load_benchmarks((tmp_path / name,), 1)


def test_questions(tmp_path):
    os.mkfifo(tmp_path / "pope.json")
    with pytest.raises(GranvitError, match="pope.json: not a regular file"):
        next(json_lines(tmp_path / "pope.json", LeftOut()))
    os.mkfifo(tmp_path / "mmbench_dev.tsv")
    with pytest.raises(GranvitError, match="mmbench_dev.tsv: not a regular file"):
        mmbench(tmp_path, None)


def test_answers_of_an_evaluation(tmp_path):
    os.mkfifo(tmp_path / "answers.jsonl")
    with pytest.raises(GranvitError, match="answers.jsonl: not a regular file"):
        Journal(tmp_path / "answers.jsonl", "x")
    (tmp_path / SCORES).write_text('{"tasks": {}}')
    os.mkfifo(tmp_path / ITEMS)
    with pytest.raises(GranvitError, match=f"{ITEMS}: .*not a regular file"):
        read_scores(tmp_path)
